"""Loads the named queries of `sql/`: a line `-- name: x` begins query x, and its next line says what it is for."""

import re
from functools import cache
from pathlib import Path
from typing import LiteralString, cast

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def queries(file_name: str) -> dict[str, LiteralString]:
    """The queries of one file by name; the text is our own, hence literal, whatever a type checker can see."""
    text = sql_path(file_name).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: cast(LiteralString, body.strip()) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def sql_path(name: str) -> Path:
    """A file or folder inside `sql/`."""
    return Path(__file__).parents[1] / "sql" / name
