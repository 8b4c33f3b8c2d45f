"""Every resource the simulator has: their endpoints, and what their objects can expand. A new resource is a module and a line here."""

from __future__ import annotations

from sandbox.stripe_simulator.endpoint import Endpoint
from sandbox.stripe_simulator.expansion import Expanders
from sandbox.stripe_simulator.resources import (
    account,
    core_events,
    customers,
    invoices,
    meter_event_adjustments,
    meter_event_summaries,
    meter_events,
    meters,
    prices,
    products,
    subscription_items,
    subscriptions,
)

#: Meter events first: routes are tried in order, and they are nearly all of the traffic.
ENDPOINTS: list[Endpoint] = [
    *meter_events.ENDPOINTS,
    *meter_event_summaries.ENDPOINTS,
    *meter_event_adjustments.ENDPOINTS,
    *meters.ENDPOINTS,
    *customers.ENDPOINTS,
    *subscriptions.ENDPOINTS,
    *subscription_items.ENDPOINTS,
    *invoices.ENDPOINTS,
    *prices.ENDPOINTS,
    *products.ENDPOINTS,
    *core_events.ENDPOINTS,
    *account.ENDPOINTS,
]

EXPANDERS: Expanders = {
    **customers.EXPANDERS,
    **invoices.EXPANDERS,
    **prices.EXPANDERS,
    **products.EXPANDERS,
    **subscriptions.EXPANDERS,
}
