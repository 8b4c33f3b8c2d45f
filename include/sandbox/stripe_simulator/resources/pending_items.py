"""Invoice items as they are stored: made, put on an invoice, and shown as its lines. No routes here.

An item waits for the next invoice that Stripe makes of its subscription or, where it names none, of its customer; or it is put at once
on a draft. What an item costs was worked out when it was made. Its price is one of its own that nobody else can use, as Stripe makes
one for an amount that is given by hand.
Unverified: that the first invoice of a subscription takes what waits for its customer, and that what waits for a subscription which is
cancelled without an invoice goes on waiting.
"""

from __future__ import annotations

from decimal import Decimal

from sandbox.stripe_simulator.resources import events, prices
from sandbox.stripe_simulator.state import JsonObject, State, scrambled

#: How an item came to be, for the line that it becomes: `invoice_item_details`, unless Stripe's own doing made it of a subscription's item.
SUBSCRIPTION_ITEM, INVOICE_ITEM = "subscription_item_details", "invoice_item_details"


def made(
    state: State,
    customer: str,
    currency: str,
    amount: int,
    *,
    pricing: JsonObject | None = None,
    quantity: int = 1,
    description: str | None = None,
    metadata: dict[str, str] | None = None,
    period: JsonObject | None = None,
    subscription: str | None = None,
    subscription_item: str | None = None,
    invoice: str | None = None,
    proration: bool = False,
) -> JsonObject:
    """Store a new item and tell of it; amounts in the currency's minor unit."""
    now = state.clock.now_seconds()
    item_id = state.new_id("invoice_item")
    details = {"subscription": subscription, **({} if subscription_item is None else {"subscription_item": subscription_item})}
    item: JsonObject = {
        "id": item_id,
        "object": "invoiceitem",
        "amount": amount,
        "currency": currency,
        "customer": customer,
        "customer_account": None,
        "date": now,
        "description": description,
        "discountable": not proration and amount >= 0,
        "discounts": [],
        "invoice": invoice,
        "livemode": False,
        "metadata": metadata or {},
        "parent": None if subscription is None else {"subscription_details": details, "type": "subscription_details"},
        "period": period or {"end": now, "start": now},
        "pricing": pricing or prices.one_off(state, currency, Decimal(amount), description),
        "proration": proration,
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "tax_rates": [],
        "test_clock": None,
    }
    if proration:
        item["proration_details"] = {"credited_items": None, "discount_amounts": []}
    state.put("invoice_items", item)
    events.emit(state, "invoiceitem.created", item)
    return item


def of_customer(state: State, customer: str) -> list[JsonObject]:
    """A customer's items that were not deleted, newest first."""
    return [item for item in state.invoice_items.newest_first_of(customer) if "deleted" not in item]


def subscription_of(item: JsonObject) -> str | None:
    return None if item["parent"] is None else item["parent"]["subscription_details"]["subscription"]


def waiting(state: State, customer: str, currency: str, subscription: str | None, *, also_unbound: bool = True) -> list[JsonObject]:
    """What the next invoice of a customer, or of one of its subscriptions, takes: the oldest first. `also_unbound`: those, too, that
    name no subscription."""
    wanted = {subscription, None} if also_unbound else {subscription}
    return [
        item
        for item in reversed(of_customer(state, customer))
        if item["invoice"] is None and item["currency"] == currency and subscription_of(item) in wanted
    ]


def put_on(state: State, items: list[JsonObject], invoice_id: str | None) -> None:
    """Put items on an invoice, or let them wait again."""
    for item in items:
        state.put("invoice_items", {**item, "invoice": invoice_id})


def on_invoice(state: State, invoice: JsonObject) -> list[JsonObject]:
    """An invoice's items, oldest first."""
    return [item for item in reversed(of_customer(state, invoice["customer"])) if item["invoice"] == invoice["id"]]


def line(item: JsonObject) -> JsonObject:
    """The item as a line of its invoice. That prorations name the subscription's item is documented for previews ("consider line items
    where `parent.subscription_item_details.proration` is true") and taken to hold for invoices."""
    subscription = subscription_of(item)
    parent: JsonObject = {"invoice_item_details": None, "subscription_item_details": None}
    shared = {
        "invoice_item": item["id"],
        "proration": item["proration"],
        "proration_details": {"credited_items": None},
        "subscription": subscription,
    }
    if item["proration"]:
        subscription_item = item["parent"]["subscription_details"]["subscription_item"]
        parent |= {SUBSCRIPTION_ITEM: {**shared, "subscription_item": subscription_item}, "type": SUBSCRIPTION_ITEM}
    else:
        parent |= {INVOICE_ITEM: shared, "type": INVOICE_ITEM}
    return {
        "id": "il_1" + scrambled(item["id"], 23),
        "object": "line_item",
        "amount": item["amount"],
        "currency": item["currency"],
        "description": item["description"],
        "discount_amounts": [],
        "discountable": item["discountable"],
        "discounts": [],
        "invoice": item["invoice"],
        "livemode": False,
        "metadata": item["metadata"],
        "parent": parent,
        "period": item["period"],
        "pretax_credit_amounts": [],
        "pricing": item["pricing"],
        "quantity": item["quantity"],
        "quantity_decimal": item["quantity_decimal"],
        "subscription": subscription,
        "subtotal": item["amount"],
        "taxes": [],
    }
