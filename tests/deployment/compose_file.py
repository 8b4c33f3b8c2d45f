"""Reads docker-compose.yaml as `docker compose` would, as far as ours uses its language: anchors, merges and variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yaml").read_text()

# $$ is a literal dollar; ${NAME}, ${NAME:-default}, ${NAME:?message}
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<word>[^}]*))?\}")


class MissingVariable(Exception):
    """A required variable has no value; the message names it and says what to do."""


def variables() -> dict[str, str]:
    """The variables that the file asks for, with the way each is asked for: "?" required, "-" with a default, "" passed on."""
    asked = {match["name"]: match["kind"] or "" for match in _VARIABLE.finditer(TEXT) if match["name"]}
    return asked | {name: "" for name, value in load({}, check=False)["x-airflow"]["environment"].items() if value is None}


def load(values: Mapping[str, str], *, check: bool = True) -> dict[str, Any]:
    """The file with the variables' values in it; raises MissingVariable unless `check` is off."""

    def fill(node: Any) -> Any:
        match node:
            case str():
                return _VARIABLE.sub(replace, node)
            case dict():
                return {key: fill(value) for key, value in node.items()}
            case list():
                return [fill(value) for value in node]
            case _:
                return node

    def replace(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        if value := values.get(match["name"]):
            return value
        if match["kind"] == "?" and check:
            raise MissingVariable(f"{match['name']}: {match['word']}")
        return match["word"] or "" if match["kind"] == "-" else ""

    return fill(yaml.safe_load(TEXT))
