"""Turns traces of Azure's LLM inference service into usage that has tenants.

    python -m sandbox.azure_trace AzureLLMInferenceTrace_code.csv AzureLLMInferenceTrace_conv.csv usage.csv --tenants 40

The traces (Azure Public Dataset, CC-BY 4.0, https://github.com/Azure/AzurePublicDataset) are real requests with the columns
``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens``: who made them is not told. Here a hash (splitmix64) of the row's number in its
file, together with the file's name, picks the tenant: ``azure-001`` for the largest share of rows, and the n-th tenant for 1/n of that.
The same file always gives the same tenants, whatever comes before or after it; times and token counts are the trace's own. The model is
named after the file (``azure-code``, ``azure-conv``).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sandbox.usage_csv import UsageFileError, UsageRows, read_columns

AZURE_COLUMNS = {"created_at": ("TIMESTAMP",), "input_tokens": ("ContextTokens",), "output_tokens": ("GeneratedTokens",)}


def azure_trace_rows(path: Path, tenant_count: int) -> UsageRows:
    """One trace's requests, in its order, each given one of ``tenant_count`` tenants as this module describes.

    Raises UsageFileError as ``read_usage`` does, and ValueError for less than one tenant.
    """
    if tenant_count < 1:
        raise ValueError(f"requests cannot be spread over {tenant_count} tenants: name one or more")
    path = Path(path)
    rows = read_columns(path, AZURE_COLUMNS)
    name = path.name.split(".")[0]
    shares = 1.0 / np.arange(1, tenant_count + 1)
    borders = np.cumsum(shares / shares.sum())
    fractions = _splitmix64(np.arange(len(rows), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)) / 2.0**64
    return replace(
        rows,
        tenant_ids=tuple(f"azure-{number:03d}" for number in range(1, tenant_count + 1)),
        tenant_codes=np.minimum(np.searchsorted(borders, fractions, side="right"), tenant_count - 1).astype(np.int32),
        models=(f"azure-{name.rpartition('_')[2]}",),
    )


def write_usage(rows: Sequence[UsageRows], path: Path) -> int:
    """Write usage as a file for ``read_usage`` (``.csv`` or ``.csv.gz``), ordered by time, whole or not at all; returns how many rows."""
    records = [
        record
        for part in rows
        for record in zip(
            (f"{time}Z" for time in np.datetime_as_string(part.created_at, unit="us").tolist()),
            (part.tenant_ids[code] for code in part.tenant_codes),
            (part.models[code] for code in part.model_codes),
            part.input_tokens.tolist(),
            part.output_tokens.tolist(),
            strict=True,
        )
    ]
    records.sort(key=lambda record: record[0])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["created_at", "tenant_id", "model", "prompt_tokens", "completion_tokens"])
    writer.writerows(records)
    content = text.getvalue().encode()
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_bytes(gzip.compress(content, mtime=0) if path.suffix.lower() == ".gz" else content)
    unfinished.replace(path)
    return len(records)


def _splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scatters consecutive numbers evenly over 64 bits: https://prng.di.unimi.it/splitmix64.c."""
    z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.azure_trace", description="Give Azure's LLM traces tenants, for `make demo USAGE=…`."
    )
    parser.add_argument("traces", nargs="+", type=Path, metavar="IN", help="TIMESTAMP, ContextTokens, GeneratedTokens (.csv or .csv.gz)")
    parser.add_argument("usage", type=Path, metavar="OUT", help="the usage file to write (.csv or .csv.gz)")
    parser.add_argument("--tenants", type=int, default=40, help="how many tenants share the requests (default: 40)")
    options = parser.parse_args(arguments)
    try:
        count = write_usage([azure_trace_rows(trace, options.tenants) for trace in options.traces], options.usage)
    except (UsageFileError, ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{options.usage}: {count:,} calls of {options.tenants} tenants")


if __name__ == "__main__":
    main()
