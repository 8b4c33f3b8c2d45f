"""Usage from a CSV file: read strictly, re-dated by whole hours, copied into the application's table.

The file (``.csv``, or ``.csv.gz``) has a header and the columns ``created_at``, ``tenant_id``, ``model``, ``prompt_tokens`` or
``input_tokens``, ``completion_tokens`` or ``output_tokens``, in any order and this spelling; other columns and empty lines are ignored.
UTF-8, with or without a byte-order mark.

- ``created_at`` is ISO 8601 (``2025-10-01T00:00:01.231141Z``, ``2025-10-01 02:00:01+02:00``). Without an offset it is UTC, as everything
  else here. More than six digits after the point are cut off, not rounded, as a row must not move into the next hour.
- token counts are whole numbers in plain digits, at most what the column ``integer`` holds.

Whatever else is in the file refuses the whole file: half-imported usage is usage billed wrongly.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

TIME_TYPE = np.dtype("datetime64[us]")

#: For each column we read, the names it may have.
USAGE_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "created_at": ("created_at",),
    "tenant_id": ("tenant_id",),
    "model": ("model",),
    "input_tokens": ("prompt_tokens", "input_tokens"),
    "output_tokens": ("completion_tokens", "output_tokens"),
}

#: The largest value of PostgreSQL's integer, which the token columns are.
MAX_TOKEN_COUNT = 2**31 - 1
#: Far longer than any identifier in use; a longer one is a sign of columns out of place.
MAX_TENANT_ID_LENGTH = 255
#: More than these tell the reader nothing new.
SHOWN_PROBLEMS = 10
#: Rows converted at once: bounds the memory that Python's strings take.
CHUNK_ROWS = 10_000
READ_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"

HOUR_MICROSECONDS = 3_600_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(?P<offset>Z|[+-][0-9]{2}(:?[0-9]{2})?)?")
DIGITS = re.compile(r"[0-9]+")
#: Python refuses to convert thousands of digits; leading zeros are no reason to refuse ten.
MAX_DIGITS = 100
COPY_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


@dataclass(frozen=True)
class UsageFileProblem:
    """One reason to refuse a usage file."""

    line: int | None  #: counted from 1, the header's included; None where the fault is the file's as a whole
    reason: str

    def __str__(self) -> str:
        return self.reason if self.line is None else f"line {self.line}: {self.reason}"


class UsageFileError(Exception):
    """A usage file is refused as a whole; the message names the file and, for its first faults, line and reason."""

    def __init__(self, path: Path, problems: Sequence[UsageFileProblem], problem_count: int | None = None) -> None:
        self.path = path
        self.problems = tuple(problems)
        self.problem_count = len(self.problems) if problem_count is None else problem_count
        more = self.problem_count - len(self.problems)
        shown = [str(problem) for problem in self.problems] + ([f"… and {more:,} more"] if more else [])
        super().__init__("\n  ".join([f"{path} cannot be billed, and nothing of it was imported: correct the file and try again.", *shown]))


@dataclass(frozen=True, eq=False)
class UsageRows:
    """Metered LLM calls as columns of equal length, in the order of their source. Identical rows are distinct calls."""

    created_at: NDArray[np.datetime64]  #: microseconds, UTC
    tenant_ids: tuple[str, ...]  #: each id once; ``tenant_codes`` points into it
    tenant_codes: NDArray[np.int32]
    models: tuple[str, ...]  #: each model once; ``model_codes`` points into it
    model_codes: NDArray[np.int32]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.created_at)

    @property
    def token_total(self) -> int:
        """Tokens, input and output alike, of all rows."""
        return int(self.input_tokens.sum()) + int(self.output_tokens.sum())

    def tenants(self) -> list[str]:
        """The ids that have rows, sorted by code point."""
        return sorted(self.tenant_ids[code] for code in np.unique(self.tenant_codes))

    def hours(self) -> tuple[datetime, datetime]:
        """Start of the first row's UTC hour and end of the last row's, half-open; ValueError without rows."""
        if len(self) == 0:
            raise ValueError("usage without rows has no hours")
        first, last = (int(edge.astype(np.int64)) // HOUR_MICROSECONDS for edge in (self.created_at.min(), self.created_at.max()))
        return EPOCH + timedelta(hours=first), EPOCH + timedelta(hours=last + 1)

    def redated(self, now: datetime) -> UsageRows:
        """The same calls, moved by whole hours so that the last falls in the last hour complete at ``now``; see ``redate``."""
        return replace(self, created_at=redate(self.created_at, now))

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> UsageRows:
        """The rows that a mask chooses, or those at the given positions, in that order."""
        columns = ("created_at", "tenant_codes", "model_codes", "input_tokens", "output_tokens")
        return replace(self, **{column: getattr(self, column)[chosen] for column in columns})


def redate(created_at: NDArray[np.datetime64], now: datetime) -> NDArray[np.datetime64]:
    """Times moved, all by the same whole number of hours, so that the latest lies in ``[H - 1 h, H)``, H being the hour ``now`` is in.

    Minutes, seconds and the distances between rows stay. A row exactly on the hour belongs to the hour it begins. ValueError if ``now``
    has no offset.
    """
    if now.tzinfo is None:
        raise ValueError(f"now ({now}) must say its offset from UTC")
    if len(created_at) == 0:
        return created_at
    current_hour = (now - EPOCH) // timedelta(hours=1)
    last_hour = int(created_at.max().astype(TIME_TYPE).astype(np.int64)) // HOUR_MICROSECONDS
    return created_at.astype(TIME_TYPE) + np.timedelta64((current_hour - 1 - last_hour) * HOUR_MICROSECONDS, "us")


def read_usage(path: Path) -> UsageRows:
    """All rows of a usage file; UsageFileError, with line numbers and reasons, if anything in it is not as this module describes."""
    return read_columns(Path(path), USAGE_COLUMNS)


def import_usage(connection: psycopg.Connection[Any], rows: UsageRows) -> int:
    """Insert the rows into ``token_usage``, all or none (one transaction, or a savepoint of the caller's), unbilled; returns how many.

    Only the columns that every application's table has are written; the database gives the rest.
    """
    tenant_ids, models = ([_copy_text(text) for text in texts] for texts in (rows.tenant_ids, rows.models))
    statement = "COPY token_usage (created_at, tenant_id, model, input_tokens, output_tokens) FROM STDIN"
    line = "%s+00\t%s\t%s\t%d\t%d\n"
    with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            columns = (
                np.datetime_as_string(rows.created_at[part], unit="us").tolist(),
                map(tenant_ids.__getitem__, rows.tenant_codes[part].tolist()),
                map(models.__getitem__, rows.model_codes[part].tolist()),
                rows.input_tokens[part].tolist(),
                rows.output_tokens[part].tolist(),
            )
            copy.write("".join(map(line.__mod__, zip(*columns, strict=True))))
    return len(rows)


def read_columns(path: Path, accepted: Mapping[str, tuple[str, ...]]) -> UsageRows:
    """As ``read_usage``, for a file whose columns have other names; tenant and model may be left out and are then empty."""
    problems = _Problems(path)
    try:
        if path.suffix.lower() == ".gz":
            # GzipFile reads lines in Python, a buffer around it in C.
            with gzip.open(path, "rb") as compressed, io.BufferedReader(compressed, READ_BYTES) as stream:
                return _read(stream, accepted, problems)
        with path.open("rb") as stream:
            return _read(stream, accepted, problems)
    except (EOFError, zlib.error) as error:
        raise problems.refusal(None, f"the compressed data is cut short or damaged ({error}): fetch the file again") from error
    except gzip.BadGzipFile as error:
        raise problems.refusal(None, f"is named .gz but is not sound gzip data ({error}): fetch it again, or rename it") from error
    except OSError as error:
        raise problems.refusal(None, f"cannot be read: {error.strerror or error}") from error


class _Problems:
    """The faults found so far: the first few to show, the others counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._first: list[UsageFileProblem] = []
        self._count = 0

    def add(self, problems: Sequence[UsageFileProblem]) -> None:
        self._first += problems[: SHOWN_PROBLEMS - len(self._first)]
        self._count += len(problems)

    def refusal(self, line: int | None, reason: str) -> UsageFileError:
        """The error for a fault after which reading on makes no sense."""
        return UsageFileError(self.path, [*self._first, UsageFileProblem(line, reason)], self._count + 1)

    def refuse_if_any(self) -> None:
        if self._count:
            raise UsageFileError(self.path, self._first, self._count)


class _Numbering:
    """Gives each distinct text a number, in order of appearance."""

    def __init__(self, check: Callable[[str], None]) -> None:
        self._check = check
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        self._check(text)
        return self.numbers.setdefault(text, len(self.numbers))


def _read(stream: Iterable[bytes], accepted: Mapping[str, tuple[str, ...]], problems: _Problems) -> UsageRows:
    chunks = _chunks(stream, problems)
    _, (header, *_) = next(chunks, ([], [[]]))
    if not header:
        raise problems.refusal(None, f"is empty: it needs a header with the columns {_names(accepted)}")
    positions = _positions(header, accepted, problems)
    tenant_ids, models = _Numbering(_check_tenant_id), _Numbering(lambda text: None)
    converters: dict[str, Callable[[str], int]] = {
        "created_at": _microseconds,
        "tenant_id": tenant_ids,
        "model": models,
        "input_tokens": _token_count,
        "output_tokens": _token_count,
    }
    parts: dict[str, list[NDArray[np.int64]]] = {column: [] for column in converters}
    for lines, records in chunks:
        found: list[UsageFileProblem] = []
        if set(map(len, records)) != {len(header)}:
            sound = [len(fields) == len(header) for fields in records]
            for line, fields in zip(lines, records, strict=True):
                if len(fields) != len(header):
                    found.append(UsageFileProblem(line, f"has {len(fields)} fields, the header has {len(header)}"))
            lines, records = list(compress(lines, sound)), list(compress(records, sound))
        by_position = list(zip(*records, strict=True)) or [()] * len(header)
        for column, position in positions.items():
            texts = by_position[position]
            values, reasons = _convert(texts, converters[column])
            parts[column].append(np.fromiter(map(values.__getitem__, texts), np.int64, len(texts)))
            if reasons:
                refused = ((line, text) for line, text in zip(lines, texts, strict=True) if text in reasons)
                found += (UsageFileProblem(line, f"{header[position]} {reasons[text]}") for line, text in refused)
        problems.add(sorted(found, key=lambda problem: problem.line or 0))
    problems.refuse_if_any()
    if not parts["created_at"]:
        raise problems.refusal(None, "has a header and no rows: there is nothing to bill")
    row_count = sum(map(len, parts["created_at"]))
    columns = {column: np.concatenate(arrays) if arrays else np.zeros(row_count, np.int64) for column, arrays in parts.items()}
    return UsageRows(
        created_at=columns["created_at"].view(TIME_TYPE),
        tenant_ids=tuple(tenant_ids.numbers) or ("",),
        tenant_codes=columns["tenant_id"].astype(np.int32),
        models=tuple(models.numbers) or ("",),
        model_codes=columns["model"].astype(np.int32),
        input_tokens=columns["input_tokens"],
        output_tokens=columns["output_tokens"],
    )


def _chunks(stream: Iterable[bytes], problems: _Problems) -> Iterator[tuple[list[int], list[list[str]]]]:
    """The header alone, then the records, many at a time; with each the number of its first line, as a quoted field may hold line ends."""
    reader = csv.reader(_lines(stream, problems), strict=True)
    line, size = 1, 1
    lines: list[int] = []
    records: list[list[str]] = []
    try:
        for fields in reader:
            if fields:
                lines.append(line)
                records.append(fields)
                if len(records) == size:
                    yield lines, records
                    lines, records, size = [], [], CHUNK_ROWS
            line = reader.line_num + 1
    except csv.Error as error:
        raise problems.refusal(line, f"is not well-formed CSV ({error})") from error
    if records:
        yield lines, records


def _lines(stream: Iterable[bytes], problems: _Problems) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if line.startswith(GZIP_MAGIC):
                raise problems.refusal(None, "is gzip data: give it a name that ends in .csv.gz")
        if b"\0" in line:
            raise problems.refusal(number, "holds a NUL character: it is not text in UTF-8, or damaged")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise problems.refusal(number, f"is not UTF-8 ({error.reason} at byte {error.start + 1}): save the file as UTF-8") from error


def _positions(header: Sequence[str], accepted: Mapping[str, tuple[str, ...]], problems: _Problems) -> dict[str, int]:
    """Where each column of ours stands."""
    positions: dict[str, int] = {}
    faults = []
    for column, names in accepted.items():
        found = [position for position, name in enumerate(header) if name in names]
        if len(found) == 1:
            positions[column] = found[0]
        elif found:
            faults.append(f"{' and '.join(header[position] for position in found)} both name the {column}: keep one")
        else:
            faults.append(f"has no column {' or '.join(names)}; its columns are {_shown(', '.join(header), 200)}")
    problems.add([UsageFileProblem(1, fault) for fault in faults])
    problems.refuse_if_any()
    return positions


def _convert(texts: Sequence[str], convert: Callable[[str], int]) -> tuple[dict[str, int], dict[str, str]]:
    """The value of each distinct text, and the reason against each that has none (its value is 0)."""
    values, reasons = {}, {}
    for text in dict.fromkeys(texts):
        try:
            values[text] = convert(text)
        except ValueError as error:
            values[text], reasons[text] = 0, str(error)
    return values, reasons


def _microseconds(text: str) -> int:
    """Microseconds from 1970 to the time."""
    match = TIMESTAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        time = datetime.fromisoformat(text)
        return ((time if match["offset"] else time.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND
    except ValueError:
        raise ValueError(f"is {_shown(text)}, not a time like 2025-10-01T00:00:01.5Z") from None


def _token_count(text: str) -> int:
    if DIGITS.fullmatch(text) and len(text) <= MAX_DIGITS:
        count = int(text)
        if count <= MAX_TOKEN_COUNT:
            return count
    raise ValueError(f"is {_shown(text)}, not a whole number from 0 to {MAX_TOKEN_COUNT}")


def _check_tenant_id(text: str) -> None:
    if not text.strip():
        raise ValueError("is empty: usage of nobody cannot be billed")
    if len(text) > MAX_TENANT_ID_LENGTH:
        raise ValueError(f"is {_shown(text)} with {len(text)} characters, more than {MAX_TENANT_ID_LENGTH}")


def _names(accepted: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(" or ".join(names) for names in accepted.values())


def _shown(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def _copy_text(text: str) -> str:
    """As PostgreSQL's COPY reads text: https://www.postgresql.org/docs/current/sql-copy.html, "Text Format"."""
    return text.translate(COPY_ESCAPES)
