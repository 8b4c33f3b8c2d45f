"""Every resource the simulator has: their endpoints, and what their objects can expand. A new resource is a module and a line here."""

from __future__ import annotations

from sandbox.stripe_simulator.endpoint import Endpoint
from sandbox.stripe_simulator.expansion import Expanders
from sandbox.stripe_simulator.resources import (
    account,
    checkout_sessions,
    core_events,
    credit_notes,
    customers,
    events,
    invoice_items,
    invoices,
    meter_event_adjustments,
    meter_event_summaries,
    meter_events,
    meters,
    prices,
    products,
    subscription_items,
    subscriptions,
    usage_records,
    webhook_endpoints,
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
    *invoice_items.ENDPOINTS,
    *credit_notes.ENDPOINTS,
    *prices.ENDPOINTS,
    *products.ENDPOINTS,
    *core_events.ENDPOINTS,
    *events.ENDPOINTS,
    *webhook_endpoints.ENDPOINTS,
    *checkout_sessions.ENDPOINTS,
    *account.ENDPOINTS,
]

#: Outside Stripe's present description.
LEGACY_ENDPOINTS: list[Endpoint] = [*usage_records.ENDPOINTS]

EXPANDERS: Expanders = {
    **checkout_sessions.EXPANDERS,
    **credit_notes.EXPANDERS,
    **customers.EXPANDERS,
    **invoice_items.EXPANDERS,
    **invoices.EXPANDERS,
    **prices.EXPANDERS,
    **products.EXPANDERS,
    **subscriptions.EXPANDERS,
}
