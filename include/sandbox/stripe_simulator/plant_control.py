"""The control routes that make what Stripe holds wrong, in silence: /simulator/plant/…. A reconciliation must find each.

An event of a foreign reporter needs no route: it is a meter event like any other. No event tells of what is planted here, but of an
invoice item that is added, as whenever somebody adds one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import InvalidOperation
from typing import Any

from sandbox.stripe_simulator.errors import StripeError
from sandbox.stripe_simulator.meter_event_log import MeterEvent
from sandbox.stripe_simulator.resources import invoice_cycle, invoice_lines, invoice_rendering, pending_items, planted_lines, prices
from sandbox.stripe_simulator.state import JsonObject, State
from sandbox.stripe_simulator.timekeeping import Timekeeper

_Work = Callable[[dict[str, Any]], dict[str, Any] | Awaitable[dict[str, Any]]]

#: Why an event that was lost in silence does not count; no report of Stripe's has this code.
LOST = "lost_in_silence"


class BadPlant(ValueError):
    """What is to be planted makes no sense; the message says why."""


class PlantControl:
    """The bodies of these routes, by method and path. They raise BadPlant and StripeError."""

    def __init__(self, state: State, timekeeper: Timekeeper) -> None:
        self._state = state
        self._timekeeper = timekeeper

    def routes(self) -> list[tuple[str, str, _Work]]:
        return [
            ("POST", "/simulator/plant/lose_event", self._lasting(self._lose_event)),
            ("POST", "/simulator/plant/double_event", self._lasting(self._double_event)),
            ("POST", "/simulator/plant/change_event", self._lasting(self._change_event)),
            ("POST", "/simulator/plant/edit_price", self._lasting(self._edit_price)),
            ("POST", "/simulator/plant/shift_period", self._lasting(self._shift_period)),
            ("POST", "/simulator/plant/change_line", self._lasting(self._change_line)),
            ("POST", "/simulator/plant/change_currency", self._lasting(self._change_currency)),
            ("POST", "/simulator/plant/drop_line", self._lasting(self._drop_line)),
            ("POST", "/simulator/plant/add_line", self._lasting(self._add_line)),
            ("POST", "/simulator/plant/double_usage", self._lasting(self._double_usage)),
        ]

    def _lasting(self, work: Callable[[dict[str, Any]], dict[str, Any]]) -> _Work:
        def planted(body: dict[str, Any]) -> dict[str, Any]:
            self._timekeeper.keep_up()
            try:
                result = work(body)
            except (BadPlant, StripeError):
                self._state.rollback()
                raise
            self._timekeeper.commit()
            self._timekeeper.keep_up()
            return result

        return planted

    # --- Meter events and prices ----------------------------------------------------------------------------------------------

    def _lose_event(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"identifier"}`: an accepted event counts no more, and nothing tells of it."""
        self._state.disown_meter_event(self._event(body).number, LOST)
        return {}

    def _double_event(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"identifier"}`: the same customer, time and value once more, received now under another identifier, which is answered."""
        event = self._event(body)
        identifier = f"doubled-{self._state.next_number('doubled')}"
        again = MeterEvent(
            identifier,
            event.event_name,
            list(event.payload),
            event.timestamp,
            self._state.clock.now_ms(),
            event.meter,
            event.customer,
            event.value,
            event.error_code,
        )
        self._state.add_meter_event(again)
        return {"identifier": identifier}

    def _change_event(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"identifier", "value", "timestamp"}`, one of these or both: an accepted event counts so much, or at that time (seconds)."""
        event = self._event(body)
        value, timestamp = body.get("value", event.value), body.get("timestamp", event.timestamp)
        if not str(value).isdecimal() or not isinstance(timestamp, int):
            raise BadPlant("give a value, a whole number, or a timestamp in seconds")
        self._state.alter_meter_event(event.number, str(value), timestamp)
        return {}

    def _edit_price(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"price", "unit_amount_decimal": text}` or `{"price", "tiers": […]}`, as for a new one: other amounts under the same id."""
        try:
            return prices.edited(self._state, str(body.get("price")), {key: body[key] for key in body if key != "price"})
        except (InvalidOperation, TypeError, KeyError) as error:
            raise BadPlant(f"give unit_amount_decimal, or tiers with up_to: {error!r}") from error

    # --- Invoices, drafts and final ones: their totals follow ------------------------------------------------------------------

    def _shift_period(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"invoice", "seconds", "line"?}`: a line, or every metered line, is of a time so much later."""
        return self._edited(body, {"kind": "shift_period", "seconds": _whole(body, "seconds")})

    def _change_line(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"invoice", "line"?, "quantity"?, "amount"?, "price"?}`: these of a line, or of the metered line of most units, and no other."""
        changes: JsonObject = {name: _whole(body, name) for name in ("quantity", "amount") if name in body}
        if "price" in body:
            changes["price"] = prices.named(self._state, str(body["price"]), "price")["id"]
        return self._edited(body, {"kind": "change_line", **changes})

    def _change_currency(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"invoice", "currency"}`: the same numbers in another currency."""
        currency = str(body.get("currency"))
        invoice_cycle.changed(self._state, self._invoice(body), {"currency": currency})
        return self._edited(body, {"kind": "change_currency", "currency": currency})

    def _drop_line(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"invoice", "line"?}`: a line, or the metered line of most units, is not there."""
        return self._edited(body, {"kind": "drop_line"})

    def _add_line(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"invoice", "amount", "description"?}`: an invoice item that somebody adds, also to an invoice that is final."""
        invoice = self._invoice(body)
        item = pending_items.made(
            self._state,
            invoice["customer"],
            invoice["currency"],
            _whole(body, "amount"),
            description=body.get("description", "Added by hand"),
            subscription=invoice["subscription"],
            invoice=invoice["id"],
        )
        if invoice["lines"] is None:
            return invoice_rendering.rendered(self._state, invoice)
        return self._edited(body, {"kind": "add_line", "added": pending_items.line(item)})

    def _double_usage(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"invoice", "line"?}`: the usage of the item of a line, or of the metered line of most units, is billed twice."""
        return self._edited(body, {"kind": "double_usage"})

    def _edited(self, body: dict[str, Any], edit: JsonObject) -> dict[str, Any]:
        state, invoice = self._state, self._invoice(body)
        edit["line"] = body.get("line")
        lines = invoice_lines.lines_at(state, invoice, state.clock.now_ms())
        if edit["kind"] not in ("change_currency", "add_line") and planted_lines.meant(state, lines, edit) is None:
            raise BadPlant(f"the invoice has no such line: {body.get('line') or 'none is metered'}")
        if invoice["lines"] is None:
            changes: JsonObject = {"edits": [*invoice["edits"], edit]}
        else:
            changes = {"lines": planted_lines.edited(state, lines, edit)}
        return invoice_rendering.rendered(state, invoice_cycle.changed(state, invoice, changes))

    def _invoice(self, body: dict[str, Any]) -> JsonObject:
        invoice = self._state.invoices.get(str(body.get("invoice")))
        if invoice is None or "deleted" in invoice:
            raise BadPlant(f"there is no invoice {body.get('invoice')}")
        return invoice

    def _event(self, body: dict[str, Any]) -> MeterEvent:
        event = self._state.meter_events.latest_of(str(body.get("identifier")))
        if event is None or event.status != "accepted":
            raise BadPlant(f"no meter event is counted under the identifier {body.get('identifier')}")
        return event


def _whole(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadPlant(f"give {name}, a whole number")
    return value
