"""A stand-in for Stripe on one machine: usage-based billing, answered like Stripe would, held to Stripe's own API description.

It breaks on demand: connections, answers, delays and second thoughts about meter events, one by one or by a seed (`faults`); and what
it holds can be made wrong in silence (`plant_control`).

It runs as a process of its own (`python -m sandbox.stripe_simulator`), keeps its own clock, and can be killed at any instant
without forgetting what it has answered (`--state-dir`). Start one from Python with `process.StripeSimulator`.

Layers, each importing only those above it:
    clock, errors, form, params                      rules that know nothing of Stripe's objects
    meter_event_log, idempotency, journal, agenda,
    state                                            what is remembered; knows no HTTP
    pagination, expansion, tier_pricing              rules shared by all resources
    faults                                           which requests meet trouble; knows no HTTP
    resources/                                       one module a resource: functions of (state, decoded parameters); what is
                                                     shown and done without a route has modules of its own, as `invoice_cycle`,
                                                     and what time alone does is in `passing_time`
    webhook_courier, timekeeping                     posts events, and keeps the state up with its clock
    recording, broken_connection, delayed_delivery,
    gateway, webhook_control, plant_control,
    control, application                             HTTP
    __main__, process                                the process, and how others start it

What Stripe does that nobody here has seen on a live account is marked "unverified" where it is decided.
"""

#: The API version that the pinned SDK (stripe 16.1.0) sends with every request; the one whose shapes the simulator speaks.
API_VERSION = "2026-10-28.endive"

#: The last version with usage records: under it, they and prices that are backed by no meter can be made; all else is answered as ever.
LEGACY_API_VERSION = "2025-02-24.acacia"
