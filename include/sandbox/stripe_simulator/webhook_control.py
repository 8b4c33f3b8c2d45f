"""The control routes for webhooks and checkout: /simulator/webhooks…, /simulator/checkout/complete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from sandbox.stripe_simulator.errors import StripeError
from sandbox.stripe_simulator.resources import checkout_sessions, webhook_endpoints
from sandbox.stripe_simulator.state import State
from sandbox.stripe_simulator.timekeeping import Timekeeper
from sandbox.stripe_simulator.webhook_courier import BadWebhookSettings

_Work = Callable[[dict[str, Any]], dict[str, Any] | Awaitable[dict[str, Any]]]


class WebhookControl:
    """The bodies of these routes, by method and path. They raise StripeError and BadWebhookSettings."""

    def __init__(self, state: State, timekeeper: Timekeeper) -> None:
        self._state = state
        self._timekeeper = timekeeper

    def routes(self) -> list[tuple[str, str, _Work]]:
        return [
            ("GET", "/simulator/webhooks", self._deliveries),
            ("GET", "/simulator/webhooks/settings", self._settings),
            ("POST", "/simulator/webhooks/settings", self._change_settings),
            ("POST", "/simulator/webhooks/flush", self._flush),
            ("POST", "/simulator/webhooks/endpoints", self._make_endpoint),
            ("POST", "/simulator/webhooks/roll_secret", self._roll_secret),
            ("POST", "/simulator/checkout/complete", self._complete_checkout),
        ]

    def _deliveries(self, body: dict[str, Any]) -> dict[str, Any]:
        """In order of the events: where each went, how it ended, and every attempt with the status it was answered with, if any."""
        self._timekeeper.keep_up()
        deliveries = reversed(list(self._state.webhook_deliveries.newest_first()))
        shown = [{name: value for name, value in delivery.items() if name != "id"} for delivery in deliveries]
        return {"deliveries": shown, "counts": self._timekeeper.courier.counts()}

    def _settings(self, body: dict[str, Any]) -> dict[str, Any]:
        return asdict(self._timekeeper.courier.settings)

    def _change_settings(self, body: dict[str, Any]) -> dict[str, Any]:
        """Any of `webhook_courier.WebhookSettings`; for deliveries that begin from now on."""
        self._timekeeper.courier.change_settings(body)
        return self._settings({})

    async def _flush(self, body: dict[str, Any]) -> dict[str, Any]:
        """Everything that is due is delivered or given up when this answers."""
        self._timekeeper.keep_up()
        return await self._timekeeper.courier.flush()

    def _make_endpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"url", "enabled_events"}`: an endpoint as the dashboard would make it, thin events included; answers with its secret."""
        url, enabled = body.get("url"), body.get("enabled_events", ["*"])
        known = {*webhook_endpoints.EVENT_TYPES, *webhook_endpoints.THIN_EVENT_TYPES}
        if not isinstance(url, str) or not isinstance(enabled, list) or not enabled or not set(enabled) <= known:
            raise BadWebhookSettings(f"give a url and enabled_events, a list out of {', '.join(sorted(known))}")
        return self._lasting(webhook_endpoints.subscribed(self._state, {"url": url, "enabled_events": enabled}))

    def _roll_secret(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"endpoint", "keep_old": true}`: a new secret, beside the old one until it is rolled with `keep_old` false."""
        secret = webhook_endpoints.roll_secret(self._state, str(body.get("endpoint")), keeps_old=bool(body.get("keep_old", True)))
        return self._lasting({"secret": secret})

    def _complete_checkout(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"session"}`: the customer pays; answers the completed session."""
        self._timekeeper.keep_up()
        try:
            return self._lasting(checkout_sessions.complete(self._state, str(body.get("session"))))
        except StripeError:
            self._state.rollback()
            raise

    def _lasting(self, result: dict[str, Any]) -> dict[str, Any]:
        self._timekeeper.commit()
        self._timekeeper.keep_up()
        return result
