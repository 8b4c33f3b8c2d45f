"""The first day: the product's own set-up at Stripe, and older sales beside it, each with a meter of its own."""

from datetime import datetime
from typing import Any

import psycopg

from crash.stripe_account import StripeAccount
from months.customers import Sold
from months.price_list import BUNDLED, OLDER, PURE, Terms
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.adapters import catalogue
from token_billing.adapters.database import Connect
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.catalog_plan import Wanted
from token_billing.stages.set_up_stripe import apply_set_up

#: How long drafts wait at Stripe: the runbook asks for the account's longest.
GRACE_S = 72 * 3600

#: How long after receipt Stripe's summaries show an event.
SUMMARY_DELAY_S = 240


def open_shop(
    simulator: StripeSimulator, account: StripeAccount, connect: Connect, target: StripeTarget, now: datetime, private: tuple[Terms, ...]
) -> tuple[dict[str, Sold], str]:
    """What is sold, by plan, and the price of the plan without tokens. `private`: prices that one customer alone has."""
    simulator.reset(clock=now)
    simulator.settings(invoice_grace_seconds=GRACE_S, summary_delay_seconds=SUMMARY_DELAY_S)
    prices = apply_set_up(connect, target, Wanted({}), lambda: now, str).price_ids
    sold = {
        "bundled": _known(account, BUNDLED, prices["managed_ai_bundled"], prices["managed_ai_bundled_base"]),
        "pure": _known(account, PURE, prices["managed_ai_pure"]),
        **{terms.name: _made(account, terms) for terms in (*OLDER, *private)},
    }
    older = [one.price_id for name, one in sold.items() if name not in ("bundled", "pure")]
    with connect() as db, db.transaction():
        catalogue.note_prices(db, {}, {"managed_ai_bundled": older}, now)
    return sold, prices["solo"]


def _known(account: StripeAccount, terms: Terms, price_id: str, base: str | None = None) -> Sold:
    meter_id = account.get(f"prices/{price_id}")["recurring"]["meter"]
    return Sold(terms, price_id, meter_id, account.get(f"billing/meters/{meter_id}")["event_name"], base)


def _made(account: StripeAccount, terms: Terms) -> Sold:
    event_name = f"tokens_{terms.name.replace(' ', '_')}"
    meter: dict[str, Any] = account.post(
        "billing/meters",
        {
            "display_name": terms.name,
            "event_name": event_name,
            "default_aggregation[formula]": "sum",
            "customer_mapping[type]": "by_id",
            "customer_mapping[event_payload_key]": "stripe_customer_id",
            "value_settings[event_payload_key]": "value",
        },
    )
    price = account.post("prices", terms.parameters(meter["id"]))
    base = None
    if terms.base is not None:
        asked = {"currency": terms.currency, "product_data[name]": f"{terms.name}, base", "recurring[interval]": "month"}
        base = account.post("prices", {**asked, "unit_amount": terms.base})["id"]
    return Sold(terms, price["id"], meter["id"], event_name, base)


def add_tenants(dsn: str, tenants: tuple[str, ...]) -> None:
    """The application knows them before they buy."""
    with psycopg.connect(dsn) as db:
        db.cursor().executemany("INSERT INTO tenants (id, name) VALUES (%s, %s)", [(name, name) for name in tenants])
