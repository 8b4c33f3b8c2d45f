"""Customers of the months: what they do at Stripe, each thing at its second, and the record of it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from crash.stripe_account import StripeAccount
from crash.subscription_oracle import NO_METER, Record, Tenure
from months.plans import Act
from months.price_list import SOLO, Terms


@dataclass(frozen=True)
class Sold:
    """A plan's price at Stripe, its meter, and the base fee beside it, where it has one."""

    terms: Terms
    price_id: str
    meter_id: str
    event_name: str
    base_price_id: str | None = None


class Customers:
    """Each tenant buys as a customer of its own, or as another tenant's (`customer_of`)."""

    def __init__(
        self, account: StripeAccount, sold: Mapping[str, Sold], solo_price: str, customer_of: Mapping[str, str], figures: Counter[str]
    ) -> None:
        self.record = Record(timedelta())
        self.sold = dict(sold)
        self.customers: dict[str, str] = {}
        self._account, self._solo, self._customer_of, self._figures = account, solo_price, customer_of, figures

    def do(self, act: Act) -> None:
        self._figures[f"at Stripe: {act.kind}"] += 1
        if act.kind == "buy":
            return self._buy(act)
        tenure = self.record.tenures[act.tenant][-1]
        subscription = f"subscriptions/{tenure.subscription_id}"
        match act.kind:
            case "pause":
                self._account.post(subscription, {"pause_collection[behavior]": "mark_uncollectible"})
            case "resume":
                self._account.post(subscription, {"pause_collection": ""})
            case "leave at once":
                self._account.cancel(tenure.subscription_id)
                self.record.end(act.tenant, act.at, subscription=True)
            case "leave with the period":
                left = self._account.post(subscription, {"cancel_at_period_end": "true"})
                self.record.end(act.tenant, datetime.fromtimestamp(left["cancel_at"], UTC), subscription=True)
            case _:
                self._change(act, tenure)

    def next_end(self, tenant: str, after: datetime) -> datetime | None:
        """When the tenant's next invoice after an instant is made; None where it has nothing to bill."""
        return min(
            (cell.closes_at for cell in self.record.cells(tenant, after + timedelta(days=62)) if cell.closes_at > after), default=None
        )

    def _change(self, act: Act, tenure: Tenure) -> None:
        """The old plan's items go and the new one's come; `other price`: the metered one stays, at another price."""
        items = self._account.get(f"subscriptions/{tenure.subscription_id}")["items"]["data"]
        stays = tenure.usage_item_id if act.kind == "other price" else ""
        wanted = [price for price in self._prices(act.plan) if price != self._metered(act.plan) or not stays]
        changed: dict[str, Any] = {}
        for number, item in enumerate(items):
            changed[f"items[{number}][id]"] = item["id"]
            if item["id"] == stays:
                changed[f"items[{number}][price]"] = self._metered(act.plan)
            else:
                changed[f"items[{number}][deleted]"] = "true"
        changed |= {f"items[{len(items) + number}][price]": price for number, price in enumerate(wanted)}
        after = self._account.post(f"subscriptions/{tenure.subscription_id}", changed)
        item_id, event_name = self._item(after, act.plan)
        self.record.begin(act.tenant, replace(tenure, usage_item_id=item_id, event_name=event_name, since=act.at, until=None))

    def _buy(self, act: Act) -> None:
        """By a checkout that names the tenant."""
        asked: dict[str, Any] = {"mode": "subscription", "client_reference_id": act.tenant, "success_url": "https://example.com/done"}
        for number, price in enumerate(self._prices(act.plan)):
            asked[f"line_items[{number}][price]"] = price
            if price != self._metered(act.plan):
                asked[f"line_items[{number}][quantity]"] = 1
        if customer := self.customers.get(self._customer_of.get(act.tenant, act.tenant)):
            asked["customer"] = customer
        if act.trial_days:
            asked["subscription_data[trial_period_days]"] = act.trial_days
        session = self._account.complete_checkout(self._account.post("checkout/sessions", asked)["id"])
        self.customers[act.tenant] = session["customer"]
        bought = self._account.get(f"subscriptions/{session['subscription']}")
        item_id, event_name = self._item(bought, act.plan)
        anchor = act.at + timedelta(days=act.trial_days)
        self.record.begin(act.tenant, Tenure(bought["id"], bought["customer"], item_id, event_name, act.at, anchor, act.at))

    def _metered(self, plan: str) -> str:
        return "" if plan == SOLO else self.sold[plan].price_id

    def _prices(self, plan: str) -> list[str]:
        if plan == SOLO:
            return [self._solo]
        return [price for price in (self.sold[plan].base_price_id, self.sold[plan].price_id) if price]

    def _item(self, subscription: Mapping[str, Any], plan: str) -> tuple[str, str]:
        """The metered item, and the event name of its meter."""
        wanted = self._metered(plan) or self._solo
        item = next(item["id"] for item in subscription["items"]["data"] if item["price"]["id"] == wanted)
        return item, NO_METER if plan == SOLO else self.sold[plan].event_name
