"""What turning a trace without tenants into usage with tenants promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sandbox.azure_trace import azure_trace_rows, main, write_usage
from sandbox.usage_csv import UsageFileError, read_usage

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8"


def trace_file(folder: Path, name: str = "Trace_code.csv", rows: int = 1) -> Path:
    path = folder / name
    path.write_bytes((TRACE + "\r\n2023-11-16 18:17:05.0000000,1,1" * (rows - 1)).encode())
    return path


def test_tenants_depend_on_the_file_and_row_alone(tmp_path: Path) -> None:
    """The same trace, alone or with others, now or later, longer or not, gives each row the same tenant."""
    short, long = azure_trace_rows(trace_file(tmp_path, rows=50), 10), azure_trace_rows(trace_file(tmp_path, rows=5_000), 10)
    assert (short.tenant_codes == long.tenant_codes[: len(short)]).all()
    other = azure_trace_rows(trace_file(tmp_path, "Trace_conv.csv", rows=5_000), 10)
    assert (other.tenant_codes != long.tenant_codes).any()
    assert (long.models, other.models) == (("azure-code",), ("azure-conv",))


def test_shares_fall_with_the_tenants_number(tmp_path: Path) -> None:
    """The n-th tenant gets about 1/n of the first one's rows."""
    rows = azure_trace_rows(trace_file(tmp_path, rows=50_000), 10)
    counts = np.bincount(rows.tenant_codes, minlength=10)
    np.testing.assert_allclose(counts / counts[0], 1 / np.arange(1, 11), rtol=0.1)


def test_the_written_file_is_the_trace_with_tenants(tmp_path: Path) -> None:
    """Times (cut to microseconds) and counts are the trace's own; what read_usage reads is what was written."""
    out = tmp_path / "usage.csv.gz"
    rows = azure_trace_rows(trace_file(tmp_path), 3)
    assert write_usage([rows], out) == 2
    again = read_usage(out)
    assert again.created_at.tolist() == rows.created_at.tolist()
    assert again.input_tokens.tolist() == [4808, 3180]
    assert again.output_tokens.tolist() == [10, 8]
    assert [path.name for path in tmp_path.glob("*unfinished*")] == []


def test_a_faulty_trace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As strictly as usage; the command writes nothing then, and exits with 1."""
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE + "\r\n2023-11-16 18:17:05,1,1.5\r\n")
    with pytest.raises(UsageFileError, match=r"line 4: GeneratedTokens is '1\.5'"):
        azure_trace_rows(trace, 3)
    with pytest.raises(ValueError, match="one or more"):
        azure_trace_rows(trace_file(tmp_path), 0)
    with pytest.raises(SystemExit) as exit_of_command:
        main([str(trace), str(tmp_path / "out.csv")])
    assert exit_of_command.value.code == 1
    assert "line 4" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_the_published_traces_are_converted(real_usage: Path, tmp_path: Path) -> None:
    """Both traces of 2023 by the documented command: all 28,185 requests, in order of time."""
    traces = [str(real_usage / "azure_llm_2023" / f"AzureLLMInferenceTrace_{name}.csv") for name in ("code", "conv")]
    source_root = str(Path(__file__).parents[2] / "include")
    said = subprocess.run(
        [sys.executable, "-m", "sandbox.azure_trace", *traces, "usage.csv"],
        cwd=tmp_path, env={"PYTHONPATH": source_root}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "usage.csv: 28,185 calls of 40 tenants\n"
    rows = read_usage(tmp_path / "usage.csv")
    assert len(rows) == 8_819 + 19_366
    assert rows.token_total == sum(azure_trace_rows(Path(trace), 1).token_total for trace in traces)
    assert (np.diff(rows.created_at.astype(np.int64)) >= 0).all()
    assert len(rows.tenants()) == 40
