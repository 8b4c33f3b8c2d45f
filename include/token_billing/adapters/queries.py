"""Loads the named queries of `sql/`: a line `-- name: x` begins query x, and its next line says what it is for."""

import re
from functools import cache
from importlib import resources
from typing import LiteralString, cast

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def queries(file_name: str) -> dict[str, LiteralString]:
    """The queries of one file by name; the text is our own, hence literal, whatever a type checker can see."""
    text = resources.files("token_billing").joinpath("sql", file_name).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: cast(LiteralString, body.strip()) for name, body in zip(parts[::2], parts[1::2], strict=True)}
