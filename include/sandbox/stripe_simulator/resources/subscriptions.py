"""Subscriptions: /v1/subscriptions. Paid without fail, changes prorated (`prorations`). What time alone does to one is `passing_time`'s.

Every change by a request is one `customer.subscription.updated` (or `.deleted`), with what it shows before and after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.billing_periods import period_containing
from sandbox.stripe_simulator.endpoint import delete, get, get_list, post
from sandbox.stripe_simulator.expansion import Expander
from sandbox.stripe_simulator.pagination import list_page
from sandbox.stripe_simulator.params import (
    BOUNDS,
    EXPAND,
    OneOf,
    Params,
    Text,
    is_within,
    merged_metadata,
)
from sandbox.stripe_simulator.resources import (
    events,
    invoice_cycle,
    invoice_rendering,
    item_times,
    prices,
    prorations,
    subscribed_items,
    subscription_params,
    subscription_terms,
)
from sandbox.stripe_simulator.resources.subscription_rendering import announced, rendered, status_at, stored
from sandbox.stripe_simulator.state import JsonObject, State

_STATUSES = ("active", "canceled", "incomplete", "incomplete_expired", "past_due", "paused", "trialing", "unpaid")


def create(state: State, params: Params) -> JsonObject:
    customer = state.customers.get(params["customer"])
    if customer is None or "deleted" in customer:
        raise errors.no_such("customer", params["customer"], param="customer")
    if not params["items"]:
        raise errors.missing_parameter("items")
    now = state.clock.now_seconds()
    start = params.get("backdate_start_date", now)
    if start > now:
        raise errors.refused("`backdate_start_date` must be in the past.", "backdate_start_date")
    trial_end = subscription_terms.trial_end(params, now)
    if "price" not in params["items"][0]:
        raise errors.missing_parameter("items[0][price]")
    first_price = prices.named(state, params["items"][0]["price"], "items[0][price]")
    subscription_id = state.new_id("subscription")
    collection_method = params.get("collection_method", "charge_automatically")
    subscription: JsonObject = {
        "id": subscription_id,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": subscription_terms.anchor(params, now, trial_end),
        "billing_cycle_anchor_config": subscription_terms.anchor_config(params),
        "billing_mode": subscription_terms.billing_mode(params.get("billing_mode", {"type": "flexible"})["type"]),
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": params.get("cancel_at"),
        "cancel_at_period_end": False,
        "canceled_at": now if "cancel_at" in params else None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": collection_method,
        "created": now,
        "currency": params.get("currency", first_price["currency"]),
        "customer": customer["id"],
        "customer_account": None,
        "days_until_due": subscription_terms.days_until_due(collection_method, params.get("days_until_due")),
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": params.get("description"),
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": [],
        "latest_invoice": None,
        "left_charges": [],
        "livemode": False,
        "metadata": merged_metadata({}, params.get("metadata") or {}),
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "rolled_over_at": now,
        "schedule": None,
        "start_date": start,
        "test_clock": None,
        "transfer_data": None,
        "trial_end": trial_end,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": None if trial_end is None else now,
    }
    if subscription["cancel_at"] is not None and subscription["cancel_at"] <= now:
        raise errors.refused("`cancel_at` must be in the future.", "cancel_at")
    state.put("subscriptions", subscription)
    for index, item in enumerate(params["items"]):
        subscribed_items.added(state, stored(state, subscription_id), item, f"items[{index}]", since=start)
    _check_anchor(state, subscription_id, now)
    if params.get("cancel_at_period_end"):
        _put(state, stored(state, subscription_id), _cancelling_at_period_end(state, subscription_id, wanted=True))
    if customer["currency"] is None:  # a customer's currency is fixed by its first subscription
        with_currency = {**customer, "currency": subscription["currency"]}
        state.put("customers", with_currency)
        events.emit_update(state, "customer.updated", customer, with_currency)
    events.emit(state, "customer.subscription.created", rendered(state, stored(state, subscription_id)))
    invoice_cycle.open_with_subscription(state, stored(state, subscription_id), prorates=params.get("proration_behavior") != "none")
    return rendered(state, stored(state, subscription_id))


def update(state: State, params: Params, subscription_id: str) -> JsonObject:
    subscription = _existing(state, subscription_id)
    now = state.clock.now_seconds()
    if status_at(subscription, now) == "canceled" and not params.keys() <= {"metadata", "cancellation_details", "expand"}:
        raise errors.refused("A canceled subscription can only update its cancellation_details and metadata.")
    with announced(state, subscription_id):
        _change(state, subscription, params, now)
        invoice_cycle.invoice_change(state, subscription_id, params)
    return rendered(state, stored(state, subscription_id))


def _change(state: State, subscription: JsonObject, params: Params, now: int) -> None:
    subscription_id = subscription["id"]
    _change_items(state, subscription_id, params)
    changed: dict[str, Any] = {name: params[name] for name in ("description", "collection_method") if name in params}
    if "metadata" in params:
        changed["metadata"] = merged_metadata(subscription["metadata"], params["metadata"])
    if "collection_method" in params or "days_until_due" in params:
        method: str = params.get("collection_method") or subscription["collection_method"]
        changed["days_until_due"] = subscription_terms.days_until_due(method, params.get("days_until_due", subscription["days_until_due"]))
    if "cancellation_details" in params:
        changed["cancellation_details"] = {**subscription["cancellation_details"], **params["cancellation_details"]}
    if "pause_collection" in params:
        paused = params["pause_collection"]
        changed["pause_collection"] = None if paused is None else {"resumes_at": None, **paused}
    if params.get("billing_cycle_anchor") == "now":
        _credit_unused(state, subscription_id, params)
        changed["billing_cycle_anchor"] = now
    if "trial_end" in params:
        trial_end = subscription_terms.trial_end(params, now)
        if trial_end is not None:
            trial_start = subscription["trial_start"]
            if status_at(subscription, now) != "trialing":
                trial_start = now
                _credit_unused(state, subscription_id, params)
                for item in subscribed_items.of(state, stored(state, subscription_id)):  # what came before it is not free
                    item_times.leave_price(state, subscription_id, item, params)
            changed |= {"trial_end": trial_end, "trial_start": trial_start, "billing_cycle_anchor": trial_end}
        elif subscription["trial_end"] is not None and subscription["trial_end"] > now:
            changed |= {"trial_end": now, "billing_cycle_anchor": now}
    if "cancel_at_period_end" in params and "cancel_at" in params:
        raise errors.exclusive_parameters("cancel_at", "cancel_at_period_end")
    _put(state, stored(state, subscription_id), changed)
    if "cancel_at_period_end" in params:
        wanted = params["cancel_at_period_end"]
        _put(state, stored(state, subscription_id), _cancelling_at_period_end(state, subscription_id, wanted=wanted))
    elif "cancel_at" in params:
        cancel_at = params["cancel_at"]
        if cancel_at is not None and cancel_at <= now:
            raise errors.refused("`cancel_at` must be in the future.", "cancel_at")
        _put(state, stored(state, subscription_id), subscription_terms.cancelling(cancel_at, at_period_end=False, now=now))


def retrieve(state: State, params: Params, subscription_id: str) -> JsonObject:
    return rendered(state, _existing(state, subscription_id))


def list_(state: State, params: Params) -> JsonObject:
    """Without a status, all that are not canceled; `ended` is canceled and incomplete_expired; `all` is all."""
    wanted = params.get("status")
    now = state.clock.now_seconds()

    def matches(subscription: JsonObject) -> bool:
        if "collection_method" in params and subscription["collection_method"] != params["collection_method"]:
            return False
        status = status_at(subscription, now)
        if wanted != "all" and status not in {None: set(_STATUSES) - {"canceled"}, "ended": {"canceled"}}.get(wanted, {wanted}):
            return False
        if not is_within(subscription["created"], params.get("created")):
            return False
        if not params.keys() & {"price", "current_period_start", "current_period_end"}:
            return True
        items = [subscribed_items.rendered(state, subscription, item) for item in subscribed_items.of(state, subscription)]
        return ("price" not in params or any(item["price"]["id"] == params["price"] for item in items)) and all(
            any(is_within(item[name], params.get(name)) for item in items) for name in ("current_period_start", "current_period_end")
        )

    of_customer = params.get("customer")
    return list_page(
        state.subscriptions.newest_first() if of_customer is None else state.subscriptions.newest_first_of(of_customer),
        params,
        url="/v1/subscriptions",
        noun="subscription",
        matches=matches,
        render=lambda subscription: rendered(state, subscription),
    )


def cancel(state: State, params: Params, subscription_id: str) -> JsonObject:
    """At once. A subscription that is canceled already is not there to cancel.

    Its usage so far is invoiced with `invoice_now`, else dropped; what was paid in advance is given back with `prorate`.
    """
    subscription = _existing(state, subscription_id)
    now = state.clock.now_seconds()
    if status_at(subscription, now) == "canceled":
        raise errors.no_such("subscription", subscription_id, in_path=True)
    if params.get("prorate"):
        _credit_unused(state, subscription_id, {})
    details = {**subscription["cancellation_details"], **params.get("cancellation_details", {}), "reason": "cancellation_requested"}
    _put(state, subscription, {"canceled_at": now, "ended_at": now, "cancellation_details": details})
    if params.get("invoice_now"):
        invoice_cycle.settle_cancellation(state, stored(state, subscription_id))
    ended = rendered(state, stored(state, subscription_id))
    events.emit(state, "customer.subscription.deleted", ended)
    return ended


# --- What customers use -----------------------------------------------------------------------------------------------------------


def running_of(state: State, customer_id: str) -> list[JsonObject]:
    """A customer's subscriptions that are not canceled, newest first, as Stripe shows them."""
    now = state.clock.now_seconds()
    return [
        rendered(state, subscription)
        for subscription in state.subscriptions.newest_first_of(customer_id)
        if status_at(subscription, now) != "canceled"
    ]


def cancel_all_of(state: State, customer_id: str) -> None:
    for subscription in running_of(state, customer_id):
        cancel(state, {}, subscription["id"])


# --- Rules ------------------------------------------------------------------------------------------------------------------------


def _existing(state: State, subscription_id: str) -> JsonObject:
    subscription = state.subscriptions.get(subscription_id)
    if subscription is None:
        raise errors.no_such("subscription", subscription_id, in_path=True)
    return subscription


def _put(state: State, subscription: JsonObject, changed: Mapping[str, Any]) -> JsonObject:
    subscription = {**subscription, **changed}
    state.put("subscriptions", subscription)
    return subscription


def _change_items(state: State, subscription_id: str, params: Params) -> None:
    terms: Params = {name: params[name] for name in ("proration_behavior", "proration_date") if name in params}
    for index, change in enumerate(params.get("items", [])):
        name = f"items[{index}]"
        if "id" not in change:
            added = subscribed_items.added(state, stored(state, subscription_id), change, name, since=state.clock.now_seconds())
            prorations.charge_remaining(state, stored(state, subscription_id), added, terms)
            continue
        item = state.subscription_items.get(change["id"])
        if item is None or "deleted" in item or item["subscription"] != subscription_id:
            raise errors.no_such("subscription_item", change["id"], param=f"{name}[id]")
        if change.get("deleted"):
            subscribed_items.removed(state, item, {**terms, **change})
        else:
            subscribed_items.changed(state, item, {**terms, **change}, name)
    if not subscribed_items.of(state, stored(state, subscription_id)):
        raise subscribed_items.no_items_left()


def _credit_unused(state: State, subscription_id: str, params: Params) -> None:
    """Give back what was paid in advance for the time after now: the period ends here."""
    subscription = stored(state, subscription_id)
    prorations.credit_all_unused(state, subscription, subscribed_items.of(state, subscription), params)


def _check_anchor(state: State, subscription_id: str, now: int) -> None:
    """An anchor lies at most one period ahead, or the first period would be longer than the price says."""
    subscription = stored(state, subscription_id)
    anchor = subscription["billing_cycle_anchor"]
    for item in subscribed_items.of(state, subscription):
        recurring = prices.rendered(state, item["price"])["recurring"]
        period = {"interval": recurring["interval"], "interval_count": recurring["interval_count"]}
        if subscription["trial_end"] is None and anchor > period_containing(now, anchor=now, **period)[1]:
            raise errors.refused("billing_cycle_anchor cannot be later than next natural billing date.", "billing_cycle_anchor")


def _cancelling_at_period_end(state: State, subscription_id: str, *, wanted: bool) -> JsonObject:
    """The changes that make a subscription end with its present period (of several, the last to end), or not end."""
    now = state.clock.now_seconds()
    if not wanted:
        return subscription_terms.cancelling(None, at_period_end=False, now=now)
    subscription = stored(state, subscription_id)
    ends = [item_times.period_of(state, subscription, item, now)[1] for item in subscribed_items.of(state, subscription)]
    return subscription_terms.cancelling(max(ends), at_period_end=True, now=now)


def _customer(state: State, subscription: JsonObject) -> JsonObject | None:
    customer = state.customers.get(subscription["customer"])
    return None if customer is None else dict(customer)


def _latest_invoice(state: State, subscription: JsonObject) -> JsonObject | None:
    invoice = next(state.invoices.newest_first_of(subscription["id"]), None)
    return None if invoice is None else invoice_rendering.rendered(state, invoice)


EXPANDERS: Mapping[str, Mapping[str, Expander]] = {
    "subscription": {
        "customer": _customer,
        "latest_invoice": _latest_invoice,
        **{name: lambda state, subscription: None for name in ("default_payment_method", "pending_setup_intent", "schedule", "test_clock")},
    }
}

ENDPOINTS = [
    post("/v1/subscriptions", create, subscription_params.CREATE),
    get_list(
        "/v1/subscriptions",
        list_,
        collection_method=OneOf(words=("charge_automatically", "send_invoice")),
        created=BOUNDS,
        current_period_end=BOUNDS,
        current_period_start=BOUNDS,
        customer=Text(),
        price=Text(),
        status=OneOf(words=(*_STATUSES, "all", "ended")),
    ),
    get("/v1/subscriptions/{subscription_exposed_id}", retrieve),
    post("/v1/subscriptions/{subscription_exposed_id}", update, subscription_params.UPDATE),
    delete("/v1/subscriptions/{subscription_exposed_id}", cancel, **subscription_params.CANCEL, **EXPAND),
]
