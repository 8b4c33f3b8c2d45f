"""The routes beside Stripe's: /simulator/…, where a test moves the clock, resets, breaks things, and looks at what was received.

No key is asked for. Nothing but what makes no sense is refused, and a clock that would go backwards, which only a reset may do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.stripe_simulator import API_VERSION
from sandbox.stripe_simulator.clock import ClockRefusal, ClockSetting, parse_clock, rfc3339
from sandbox.stripe_simulator.errors import StripeError
from sandbox.stripe_simulator.faults import BadFault, parse_script, parse_seeded
from sandbox.stripe_simulator.gateway import Gateway
from sandbox.stripe_simulator.meter_event_log import MeterEvent
from sandbox.stripe_simulator.plant_control import BadPlant, PlantControl
from sandbox.stripe_simulator.resources import core_events, usage_records
from sandbox.stripe_simulator.state import State
from sandbox.stripe_simulator.webhook_control import WebhookControl
from sandbox.stripe_simulator.webhook_courier import BadWebhookSettings

#: Events of one page of /simulator/meter_events: about 40 ms of work and 2 MB.
LARGEST_PAGE = 10_000

#: From the decoded body to the body of the answer, at once or awaited.
Work = Callable[[dict[str, Any]], dict[str, Any] | Awaitable[dict[str, Any]]]
Route = tuple[str, str, Callable[[Request], Awaitable[Response]]]


class BadControlRequest(ValueError):
    """The body of a control request cannot be understood; the message says why."""


class Control:
    """The control routes over one state and the gateway to it."""

    def __init__(self, state: State, gateway: Gateway) -> None:
        self._state = state
        self._gateway = gateway
        self._timekeeper = gateway.timekeeper

    def routes(self) -> list[Route]:
        return [
            ("GET", "/simulator/health", self._answering(self._health)),
            ("GET", "/simulator/clock", self._answering(self._clock)),
            ("POST", "/simulator/clock", self._answering(self._set_clock)),
            ("POST", "/simulator/reset", self._answering(self._reset)),
            ("GET", "/simulator/settings", self._answering(self._settings)),
            ("POST", "/simulator/settings", self._answering(self._change_settings)),
            ("GET", "/simulator/meter_events", self._meter_events),
            ("POST", "/simulator/meter_events/disown", self._answering(self._disown)),
            ("GET", "/simulator/usage_records", self._answering(lambda _: {"data": usage_records.seen(self._state)})),
            ("GET", "/simulator/faults", self._answering(self._faults)),
            ("POST", "/simulator/faults/script", self._answering(self._script_faults)),
            ("POST", "/simulator/faults/seed", self._answering(self._seed_faults)),
            ("POST", "/simulator/faults/clear", self._answering(self._clear_faults)),
            ("POST", "/simulator/faults/release", self._answering(self._release_delayed)),
            *((method, path, self._answering(work)) for method, path, work in WebhookControl(self._state, self._timekeeper).routes()),
            *((method, path, self._answering(work)) for method, path, work in PlantControl(self._state, self._timekeeper).routes()),
        ]

    def _answering(self, work: Work) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                result = work(_parsed(await request.body()))
                return JSONResponse(result if isinstance(result, dict) else await result)
            except (BadControlRequest, BadFault, BadPlant, BadWebhookSettings, ClockRefusal, StripeError) as error:
                return JSONResponse({"error": str(error)}, 400)

        return answer

    def _health(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"status": "ok", "api_version": API_VERSION, "pid": os.getpid(), "meter_events": len(self._state.meter_events)}

    def _clock(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"now": rfc3339(self._state.clock.now_ms()), "mode": self._state.clock.setting.mode}

    async def _set_clock(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"now": RFC 3339}` freezes there, `{"mode": "real"}` follows the system, `{"mode": "frozen"}` freezes at the present.

        Requests whose delivery is due by then take effect on the way, each at its own instant.
        """
        match body:
            case {"mode": "real"}:
                setting = ClockSetting(None)
            case {"now": str(now)}:
                setting = parse_clock(now)
            case {"mode": "frozen"}:
                setting = ClockSetting(self._state.clock.now_ms())
            case _:
                raise BadControlRequest('give {"now": "2025-10-01T00:00:00Z"} or {"mode": "real"} or {"mode": "frozen"}')
        self._state.clock.check_forwards(setting)
        await self._gateway.delayed.pass_time(setting)
        self._state.set_clock(setting)
        self._timekeeper.catch_up()
        self._gateway.delayed.set_alarm()
        return self._clock({})

    def _reset(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"clock": "real" | RFC 3339}`, or nothing: the clock as the process was started with."""
        clock = body.get("clock")
        self._state.reset(None if clock is None else parse_clock(str(clock)))
        self._gateway.forget_faults()
        self._timekeeper.courier.forget()
        return self._clock({})

    def _settings(self, body: dict[str, Any]) -> dict[str, Any]:
        settings = self._state.settings
        return asdict(settings)

    def _change_settings(self, body: dict[str, Any]) -> dict[str, Any]:
        known = self._settings({}).keys()
        for name, value in body.items():
            if name not in known or isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise BadControlRequest(f"{name}: settings are {', '.join(known)}, in seconds, not negative")
        self._state.change_settings(**body)
        return self._settings({})

    def _disown(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"identifiers": […], "error_code": …}`: these events do not count after all, and a thin event for each meter says why."""
        identifiers, error_code = body.get("identifiers"), body.get("error_code", "meter_event_customer_not_found")
        if not isinstance(identifiers, list) or not identifiers or error_code not in core_events.ERROR_CODES:
            raise BadControlRequest(f"give identifiers, a list, and an error_code out of {', '.join(core_events.ERROR_CODES)}")
        self._timekeeper.keep_up()
        by_meter: dict[str, dict[int, MeterEvent]] = {}
        for identifier in identifiers:
            event = self._state.meter_events.latest_of(str(identifier))
            if event is None:
                raise BadControlRequest(f"no meter event was received under the identifier {identifier}")
            by_meter.setdefault(event.meter, {})[event.number] = event
        reports = []
        for meter_id, events in by_meter.items():
            for number in events:
                self._state.disown_meter_event(number, error_code)
            reports.append(core_events.report_disowned(self._state, meter_id, error_code, list(events.values())))
        self._timekeeper.commit()
        self._timekeeper.keep_up()
        return {"events": [report["id"] for report in reports]}

    def _faults(self, body: dict[str, Any]) -> dict[str, Any]:
        """What may still come, what was met, and how many requests are on their way."""
        return {**self._gateway.faults.as_json(), "delayed": len(self._gateway.delayed)}

    def _script_faults(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"faults": […]}`, each a kind or a hash as in `faults.Fault`; replaces the script."""
        self._gateway.faults.follow_script(parse_script(body.get("faults")))
        return self._faults({})

    def _seed_faults(self, body: dict[str, Any]) -> dict[str, Any]:
        """A hash as in `faults.SeededFaults`; replaces the seed."""
        self._gateway.faults.follow_seed(parse_seeded(body))
        return self._faults({})

    def _clear_faults(self, body: dict[str, Any]) -> dict[str, Any]:
        """No more faults; requests on their way stay there, to be released."""
        self._gateway.faults.clear()
        return self._faults({})

    async def _release_delayed(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"statuses": await self._gateway.delayed.release_all()}

    async def _meter_events(self, request: Request) -> Response:
        """`?after=number&limit=count`, in order of receipt; `next_after` is null on the last page."""
        after, limit = (_whole(request.query_params.get(name), default) for name, default in (("after", 0), ("limit", LARGEST_PAGE)))
        page = self._state.meter_events.received(after, min(max(limit, 1), LARGEST_PAGE))
        has_more = bool(page) and page[-1].number < len(self._state.meter_events)
        body = {"data": [_shown(event) for event in page], "has_more": has_more, "next_after": page[-1].number if has_more else None}
        return Response(json.dumps(body), media_type="application/json")


def _shown(event: MeterEvent) -> dict[str, Any]:
    """Times in seconds since 1970, `received_at` with milliseconds."""
    return {
        "number": event.number,
        "identifier": event.identifier,
        "event_name": event.event_name,
        "meter": event.meter,
        "customer": event.customer,
        "value": event.value,
        "timestamp": event.timestamp,
        "received_at": event.received_at_ms / 1000,
        "status": event.status,
        "error_code": event.error_code,
    }


def _parsed(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise BadControlRequest(f"the body is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise BadControlRequest("the body must be a JSON object")
    return parsed


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default
