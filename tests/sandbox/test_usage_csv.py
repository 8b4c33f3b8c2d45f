"""What reading, re-dating and importing a usage file promises."""

from __future__ import annotations

import csv
import gzip
import io
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.usage_csv import MAX_TOKEN_COUNT, UsageFileError, UsageRows, import_usage, read_usage, redate

HEADER = "created_at,tenant_id,model,prompt_tokens,completion_tokens\n"
ROW = "2025-10-01T00:00:01Z,acme,m,1,2\n"
NOW = datetime(2026, 3, 4, 15, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def usage_file(folder: Path, content: str | bytes, name: str = "usage.csv") -> Path:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)
    return path


def refusal(path: Path) -> UsageFileError:
    with pytest.raises(UsageFileError) as caught:
        read_usage(path)
    assert str(path) in str(caught.value)
    assert "nothing of it was imported" in str(caught.value)
    return caught.value


def as_tuples(rows: UsageRows) -> list[tuple[datetime, str, str, int, int]]:
    return [
        (row[0].replace(tzinfo=UTC), rows.tenant_ids[row[1]], rows.models[row[2]], row[3], row[4])
        for row in zip(
            rows.created_at.tolist(),
            rows.tenant_codes.tolist(),
            rows.model_codes.tolist(),
            rows.input_tokens.tolist(),
            rows.output_tokens.tolist(),
            strict=True,
        )
    ]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """Any order, either spelling, further columns ignored; with and without compression."""
    content = "note,output_tokens,tenant_id,input_tokens,model,created_at\nx,2,acme,1,m,2025-10-01T00:00:01Z\n"
    expected = [(datetime(2025, 10, 1, 0, 0, 1, tzinfo=UTC), "acme", "m", 1, 2)]
    assert as_tuples(read_usage(usage_file(tmp_path, content))) == expected
    assert as_tuples(read_usage(usage_file(tmp_path, content, "usage.csv.gz"))) == expected


def test_spreadsheet_files_are_read(tmp_path: Path) -> None:
    """A byte-order mark, CRLF, quoted fields with commas, quotes and line ends in them, and empty lines at the end are all CSV."""
    content = "\ufeff" + HEADER.replace("\n", "\r\n") + '"2025-10-01 00:00:01Z","a ""b"", c\nd",m,"1",2\r\n\r\n\r\n'
    assert [row[1] for row in as_tuples(read_usage(usage_file(tmp_path, content)))] == ['a "b", c\nd']


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023-11-16 18:17:03.9799600", datetime(2023, 11, 16, 18, 17, 3, 979960, UTC)),
        ("2023-11-16 18:59:59.9999999", datetime(2023, 11, 16, 18, 59, 59, 999999, UTC)),
        ("2023-11-16T18:17:03.5Z", datetime(2023, 11, 16, 18, 17, 3, 500000, UTC)),
        ("2023-11-16T18:17:03+05:30", datetime(2023, 11, 16, 12, 47, 3, 0, UTC)),
        ("2023-11-16 18:17:03+00", datetime(2023, 11, 16, 18, 17, 3, 0, UTC)),
        ("1969-12-31T23:59:59.999999Z", datetime(1969, 12, 31, 23, 59, 59, 999999, UTC)),
    ],
)
def test_times_are_utc_and_cut_to_microseconds(tmp_path: Path, text: str, expected: datetime) -> None:
    """Without an offset a time is UTC; a seventh digit is cut off, never rounded into the next hour."""
    assert as_tuples(read_usage(usage_file(tmp_path, HEADER + f"{text},acme,m,1,2\n")))[0][0] == expected


@pytest.mark.parametrize("bad", ["", "yesterday", "2025-10-01", "20251001T000000Z", "2025-13-01T00:00:00Z", "2025-10-01T24:00:01Z",
                                 "2025-02-29T00:00:00Z", "2025-10-01T00:00:00 Z", "1759276800", "2025-10-01T00:00:00+25:00",
                                 "٢٠٢٥-10-01T00:00:00Z", "2025-W40-3T00:00:00Z", "2025-10-01T00:00:60Z"])  # fmt: skip
def test_a_bad_time_is_refused(tmp_path: Path, bad: str) -> None:
    """What is not plainly a time is named with its line."""
    error = refusal(usage_file(tmp_path, HEADER + ROW + f"{bad},acme,m,1,2\n"))
    assert [(problem.line, problem.reason.split(" is ")[0]) for problem in error.problems] == [(3, "created_at")]


@pytest.mark.parametrize(
    "bad", ["", "-1", "+1", "1.0", "1e3", "\u0663", " 1", "1 ", "1_000", "NaN", "0x10", str(MAX_TOKEN_COUNT + 1), "9" * 5000]
)
@pytest.mark.parametrize("column", ["prompt_tokens", "completion_tokens"])
def test_a_bad_count_is_refused(tmp_path: Path, bad: str, column: str) -> None:
    """Counts are plain digits within the database's integer: nothing is rounded, guessed or wrapped around."""
    fields = {"prompt_tokens": "1", "completion_tokens": "2"} | {column: bad}
    error = refusal(usage_file(tmp_path, HEADER + f"2025-10-01T00:00:01Z,acme,m,{fields['prompt_tokens']},{fields['completion_tokens']}\n"))
    assert [problem.line for problem in error.problems] == [2]
    assert error.problems[0].reason.startswith(f"{column} is ")
    assert len(str(error)) < 1000


def test_counts_from_zero_to_the_databases_limit_are_kept(tmp_path: Path, usage_database: psycopg.Connection[Any]) -> None:
    """The extremes arrive in the table as they stand in the file, and their total does not overflow."""
    rows = read_usage(usage_file(tmp_path, HEADER + f"2025-10-01T00:00:01Z,acme,m,0,{MAX_TOKEN_COUNT}\n" * 3))
    assert rows.token_total == 3 * MAX_TOKEN_COUNT
    import_usage(usage_database, rows)
    assert usage_database.execute("SELECT sum(input_tokens), sum(output_tokens) FROM token_usage").fetchone() == (0, 3 * MAX_TOKEN_COUNT)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", None, "is empty"),
        ("\n\n", None, "is empty"),
        (HEADER, None, "no rows"),
        (HEADER.replace("model", "Model") + ROW, 1, "no column model; its columns are 'created_at, tenant_id, Model"),
        (HEADER.replace("model", "tenant_id") + ROW, 1, "tenant_id and tenant_id both name"),
        (HEADER.replace("model", "model,input_tokens") + ROW, 1, "input_tokens and prompt_tokens both name the input_tokens"),
        (HEADER.replace("completion", "generated") + ROW, 1, "no column completion_tokens or output_tokens"),
        (HEADER + ROW + "2025-10-01T00:00:01Z,acme,m,1\n", 3, "has 4 fields, the header has 5"),
        (HEADER + ROW + ROW.replace("\n", ",\n"), 3, "has 6 fields"),
        (HEADER + ROW.replace("acme", ""), 2, "tenant_id is empty"),
        (HEADER + ROW.replace("acme", "  "), 2, "tenant_id is empty"),
        (HEADER + ROW.replace("acme", "a" * 256), 2, "256 characters, more than 255"),
        (HEADER + ROW + ROW.replace("acme", "ac\0me"), 3, "NUL"),
        (HEADER + '"2025-10-01T00:00:01Z,acme,m,1,2\n' + ROW, 2, "not well-formed CSV"),
        (HEADER + '2025-10-01T00:00:01Z,"ac"me,m,1,2\n', 2, "not well-formed CSV"),
        (HEADER + ROW.replace("acme", "a" * 200_000), 2, "not well-formed CSV"),
        (HEADER.encode() + ROW.encode() + ROW.encode().replace(b"acme", b"caf\xe9"), 3, "not UTF-8"),
        ((HEADER + ROW).encode("utf-16"), 1, "NUL"),
        (gzip.compress((HEADER + ROW).encode(), mtime=0), None, "is gzip data"),
    ],
)
def test_a_faulty_file_is_refused_with_line_and_reason(tmp_path: Path, content: str | bytes, line: int | None, reason: str) -> None:
    """Whatever is wrong with the file as such, its name, the line and the reason are told."""
    error = refusal(usage_file(tmp_path, content))
    assert error.problems[-1].line == line
    assert reason in str(error)


def test_damaged_or_missing_files_are_refused(tmp_path: Path) -> None:
    """Not gzip though named so, cut short, altered, absent, a folder: each says what it is; no rows are returned for what could be read."""
    compressed = gzip.compress((HEADER + ROW * 50_000).encode())
    altered = bytearray(compressed)
    altered[len(altered) // 2] ^= 0xFF
    for name, content, reason in [
        ("plain.csv.gz", (HEADER + ROW).encode(), "not sound gzip data"),
        ("cut.csv.gz", compressed[:-20], "cut short"),
        ("altered.csv.gz", bytes(altered), ""),
        ("checksum.csv.gz", compressed[:-8] + b"\0\0\0\0" + compressed[-4:], "not sound gzip data"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert reason in refusal(tmp_path / name).problems[-1].reason
    assert "No such file" in str(refusal(tmp_path / "absent.csv"))
    assert "directory" in str(refusal(tmp_path))


def test_the_first_ten_faults_are_shown_in_order_and_the_others_counted(tmp_path: Path) -> None:
    """The reader sees where to begin and how much there is, also when the faults are in different columns or in quoted lines."""
    content = HEADER + '2025-10-01T00:00:01Z,"a\nb",m,1,2\n' + "2025-10-01T00:00:01Z,,m,x,2\n" + "never,acme,m,1,2\n" * 30_000
    error = refusal(usage_file(tmp_path, content))
    assert [problem.line for problem in error.problems] == [4, 4, *range(5, 13)]
    assert error.problem_count == 30_002
    assert str(error).endswith("… and 29,992 more")


ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=255)


@given(st.lists(st.tuples(ANY_TEXT.filter(str.strip), ANY_TEXT, st.integers(0, MAX_TOKEN_COUNT)), min_size=1))
def test_any_text_and_count_survives_the_file(tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, str, int]]) -> None:
    """What a CSV writer wrote is read back, whatever the identifiers look like."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(HEADER.strip().split(","))
    writer.writerows(("2025-10-01T00:00:01Z", tenant, model, count, 0) for tenant, model, count in values)
    rows = read_usage(usage_file(tmp_path_factory.getbasetemp(), text.getvalue()))
    assert [(tenant, model, count) for _, tenant, model, count, _ in as_tuples(rows)] == values


def test_identical_rows_are_distinct_calls(tmp_path: Path, usage_database: psycopg.Connection[Any]) -> None:
    """Two calls that equal each other in every column are two calls, and both are billed."""
    assert import_usage(usage_database, read_usage(usage_file(tmp_path, HEADER + ROW * 7))) == 7
    assert usage_database.execute("SELECT count(*), count(DISTINCT id), bool_or(billed) FROM token_usage").fetchone() == (7, 7, False)


def test_awkward_texts_arrive_unchanged(tmp_path: Path, usage_database: psycopg.Connection[Any]) -> None:
    """Tabs, line ends, backslashes, what COPY reads as NULL or as the end: the table holds what the file says."""
    names = ["\\N", "\\.", "a\tb", "a\nb", "a\r\nb", "back\\slash\\t", "'; DROP TABLE tenants; --", "%s %d {}", "株式会社🚀", " padded "]
    text = io.StringIO()
    csv.writer(text).writerows([HEADER.strip().split(","), *(["2025-10-01T00:00:01Z", name, name, 1, 2] for name in names)])
    import_usage(usage_database, read_usage(usage_file(tmp_path, text.getvalue())))
    assert usage_database.execute("SELECT tenant_id, model FROM token_usage ORDER BY id").fetchall() == [(name, name) for name in names]


def test_an_import_that_fails_leaves_nothing(tmp_path: Path, usage_database: psycopg.Connection[Any]) -> None:
    """All rows or none: also when the database refuses one in the middle."""
    rows = read_usage(usage_file(tmp_path, HEADER + ROW * 30_000 + ROW.replace(",1,", ",13,")))
    usage_database.execute("ALTER TABLE token_usage ADD CHECK (input_tokens <> 13)")
    with pytest.raises(psycopg.errors.CheckViolation):
        import_usage(usage_database, rows)
    assert usage_database.execute("SELECT count(*) FROM token_usage").fetchone() == (0,)


def test_times_arrive_in_utc_whatever_the_sessions_zone(tmp_path: Path, usage_database: psycopg.Connection[Any]) -> None:
    """A window is a UTC hour: the zone of the importing session must not move a row."""
    usage_database.execute("SET TimeZone = 'Asia/Kolkata'")
    import_usage(usage_database, read_usage(usage_file(tmp_path, HEADER + "2025-10-01T23:59:59.999999Z,acme,m,1,2\n")))
    assert usage_database.execute("SELECT created_at = '2025-10-01T23:59:59.999999Z' FROM token_usage").fetchone() == (True,)


def times(*texts: str) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    return np.array(texts, "datetime64[us]")


@pytest.mark.parametrize(
    ("now", "last", "expected"),
    [
        (NOW, "2025-10-01T05:06:07.000008", "2026-03-04T14:06:07.000008"),
        (NOW, "2025-10-01T05:00:00", "2026-03-04T14:00:00"),
        (NOW, "2025-10-01T05:59:59.999999", "2026-03-04T14:59:59.999999"),
        (NOW, "2030-01-01T00:30:00", "2026-03-04T14:30:00"),  # back in time
        (NOW, "2026-03-04T14:10:00", "2026-03-04T14:10:00"),  # there already
        (NOW, "2026-03-04T15:00:00", "2026-03-04T14:00:00"),  # the hour that is not complete yet
        (NOW, "1969-12-31T23:59:00", "2026-03-04T14:59:00"),
        (NOW.replace(minute=0), "2025-10-01T05:00:00", "2026-03-04T14:00:00"),  # an hour is complete at its end
        (NOW.replace(tzinfo=None).astimezone(UTC).replace(tzinfo=UTC), "2025-10-01T05:00:00", "2026-03-04T14:00:00"),
    ],
)
def test_the_last_row_falls_in_the_last_complete_hour(now: datetime, last: str, expected: str) -> None:
    """Whole hours are added, or taken away; a row on the hour begins its hour."""
    assert redate(times("2020-01-01T00:00:00", last), now).max() == np.datetime64(expected, "us") or last < "2020"
    assert redate(times(last), now).tolist() == times(expected).tolist()


@given(
    st.lists(st.datetimes(datetime(1960, 1, 1), datetime(2090, 1, 1)), min_size=1),  # noqa: DTZ001
    st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1), timezones=st.timezones()),  # noqa: DTZ001
)
def test_redating_keeps_minutes_and_distances(created_at: list[datetime], now: datetime) -> None:
    """Every row moves by the same whole number of hours, into the past of ``now``, and a second re-dating changes nothing."""
    before = np.array(created_at, "datetime64[us]")
    after = redate(before, now)
    shifts = np.unique(after - before)
    assert len(shifts) == 1
    assert int(shifts[0].astype(np.int64)) % 3_600_000_000 == 0
    hour_end = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0, tzinfo=None)
    assert np.datetime64(hour_end - HOUR) <= after.max() < np.datetime64(hour_end)
    assert (redate(after, now) == after).all()


def test_now_without_an_offset_is_refused() -> None:
    """A naive now would be an hour of some other zone."""
    with pytest.raises(ValueError, match="offset"):
        redate(times("2025-10-01T05:00:00"), NOW.replace(tzinfo=None))


def test_hours_are_half_open(tmp_path: Path) -> None:
    """From the start of the first row's hour to the end of the last row's; a row on the hour is in the hour it begins."""
    content = HEADER + ROW.replace("00:00:01", "03:00:00") + ROW.replace("00:00:01", "00:59:59.999999")
    rows = read_usage(usage_file(tmp_path, content))
    assert rows.hours() == (datetime(2025, 10, 1, 0, tzinfo=UTC), datetime(2025, 10, 1, 4, tzinfo=UTC))
    assert rows.redated(NOW).hours() == (datetime(2026, 3, 4, 11, tzinfo=UTC), datetime(2026, 3, 4, 15, tzinfo=UTC))
    assert (rows.tenants(), rows.token_total, len(rows)) == (["acme"], 6, 2)


def test_two_weeks_of_real_usage_are_imported_in_seconds(real_usage: Path, usage_database: psycopg.Connection[Any]) -> None:
    """442,061 rows read, checked, re-dated and copied: every row, every token, in little time (4.3 s on two cores)."""
    began = time.monotonic()
    rows = read_usage(real_usage / "servegen" / "usage.csv.gz").redated(NOW)
    assert import_usage(usage_database, rows) == 442_061
    seconds = time.monotonic() - began
    assert (rows.token_total, len(rows.tenants())) == (551_452_859, 327)
    assert rows.hours() == (datetime(2026, 2, 18, 15, tzinfo=UTC), datetime(2026, 3, 4, 15, tzinfo=UTC))
    stored = usage_database.execute(
        "SELECT count(*), sum(input_tokens::bigint + output_tokens), count(DISTINCT tenant_id), min(created_at) >= %s, max(created_at) < %s"
        " FROM token_usage",
        rows.hours(),
    ).fetchone()
    assert stored == (442_061, 551_452_859, 327, True, True)
    assert seconds < 30, f"took {seconds:.1f} s"


def test_the_error_reads_well(tmp_path: Path) -> None:
    """File, consequence, and one fault a line."""
    error = refusal(usage_file(tmp_path, HEADER + ROW.replace(",1,", ",1.0,")))
    assert re.fullmatch(
        r".*usage\.csv cannot be billed, and nothing of it was imported: correct the file and try again\.\n"
        r"  line 2: prompt_tokens is '1\.0', not a whole number from 0 to 2147483647",
        str(error),
    )
