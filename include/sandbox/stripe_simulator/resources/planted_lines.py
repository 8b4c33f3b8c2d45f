"""Errors on an invoice's lines, made on purpose: what a comparison with our own numbers must find. Pure functions of lines.

An edit of a draft is made anew whenever its lines are worked out, until they are fixed with the edit in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandbox.stripe_simulator.state import JsonObject, State, scrambled

Lines = list[JsonObject]


def edited(state: State, lines: Lines, edit: JsonObject) -> Lines:
    """The lines after one edit, `{"kind", "line": its id, or None for the metered line of most units, …}`; as they were where none is
    meant."""
    return _EDITS[edit["kind"]](state, lines, edit)


def is_metered(state: State, line: JsonObject) -> bool:
    details = line["parent"]["subscription_item_details"]
    price = state.prices.get(line["pricing"]["price_details"]["price"])
    return (
        details is not None and not details["proration"] and price is not None and (price["recurring"] or {}).get("usage_type") == "metered"
    )


def meant(state: State, lines: Lines, edit: JsonObject) -> JsonObject | None:
    """The line that an edit is about."""
    if edit.get("line") is not None:
        return next((line for line in lines if line["id"] == edit["line"]), None)
    return max((line for line in lines if is_metered(state, line)), key=lambda line: int(line["quantity"]), default=None)


def _shift_period(state: State, lines: Lines, edit: JsonObject) -> Lines:
    """Without a line, of all metered ones."""
    seconds = edit["seconds"]

    def shifted(line: JsonObject) -> JsonObject:
        if not (is_metered(state, line) if edit.get("line") is None else line["id"] == edit["line"]):
            return line
        return {**line, "period": {bound: instant + seconds for bound, instant in line["period"].items()}}

    return [shifted(line) for line in lines]


def _change_line(state: State, lines: Lines, edit: JsonObject) -> Lines:
    """Its quantity alone, its amount alone, or the price it names."""
    line = meant(state, lines, edit)
    changed: dict[str, Any] = {}
    if "quantity" in edit:
        changed |= {"quantity": edit["quantity"], "quantity_decimal": str(edit["quantity"])}
    if "amount" in edit:
        changed |= {"amount": edit["amount"], "subtotal": edit["amount"]}
    if "price" in edit and line is not None:
        price = state.prices.get(edit["price"])
        assert price is not None, "the control route has looked"
        changed["pricing"] = {**line["pricing"], "price_details": {"price": price["id"], "product": price["product"]}}
    return [{**one, **changed} if one is line else one for one in lines]


def _change_currency(state: State, lines: Lines, edit: JsonObject) -> Lines:
    return [{**line, "currency": edit["currency"]} for line in lines]


def _drop_line(state: State, lines: Lines, edit: JsonObject) -> Lines:
    line = meant(state, lines, edit)
    return [one for one in lines if one is not line]


def _add_line(state: State, lines: Lines, edit: JsonObject) -> Lines:
    added: JsonObject = edit["added"]
    return [*lines, added]


def _double_usage(state: State, lines: Lines, edit: JsonObject) -> Lines:
    """All lines of the item whose line is meant, once more."""
    line = meant(state, lines, edit)
    if line is None:
        return lines
    item = line["parent"]["subscription_item_details"]["subscription_item"]
    again = [one for one in lines if is_metered(state, one) and one["parent"]["subscription_item_details"]["subscription_item"] == item]
    return [*lines, *({**one, "id": "il_1" + scrambled(f"{one['id']}:again", 23)} for one in again)]


_EDITS: dict[str, Callable[[State, Lines, JsonObject], Lines]] = {
    "shift_period": _shift_period,
    "change_line": _change_line,
    "change_currency": _change_currency,
    "drop_line": _drop_line,
    "add_line": _add_line,
    "double_usage": _double_usage,
}
