"""The customers of a followed history: what they do at Stripe, each thing at its second, and the record of it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dateutil.relativedelta import relativedelta

from crash.following import Change, Following, Sync
from crash.plans import EPOCH
from crash.stripe_account import Link, StripeAccount
from crash.subscription_oracle import NO_METER, Record, Tenure
from crash.workers import Connection

#: The product takes Stripe's list for complete up to so long ago.
LISTED_WITHIN_S = 60


class Subscribers:
    """Each tenant has a customer of its own, and a subscription as long as it is subscribed."""

    def __init__(self, account: StripeAccount, following: Following, figures: Counter[str]) -> None:
        self.record = Record(timedelta(seconds=following.grace_s))
        self._account, self._following, self._figures = account, following, figures
        self._ahead = list(following.changes_and_syncs)
        #: Of new customers: whose they are.
        self.tenant_of: dict[str, str] = {}

    def begin(self, tenants: Sequence[str]) -> dict[str, Link | None]:
        """The tenants' first subscriptions, in turn to one of the two plans; what each is linked to."""
        self._account.change_settings(events_delay_seconds=self._following.events_delay_s, invoice_grace_seconds=self._following.grace_s)
        return {tenant: self._first_of(number, tenant) for number, tenant in enumerate(tenants)}

    def until(self, instant: datetime) -> Iterator[tuple[datetime, Change | Sync]]:
        """What is to happen up to an instant and has not yet, in order; it is for the caller to do it then."""
        while self._ahead and EPOCH + timedelta(seconds=self._ahead[0].second) <= instant:
            following = self._ahead.pop(0)
            yield EPOCH + timedelta(seconds=following.second), following

    def synced(self, db: Connection, now: datetime) -> None:
        """The product knows of all that Stripe lists by now."""
        self.record.learned(db, now - timedelta(seconds=self._following.events_delay_s))

    def told_that_facts_are_known(self, db: Connection, until: datetime) -> None:
        """The product has said so of all up to an instant. It means what Stripe lists within a minute."""
        if self._following.events_delay_s <= LISTED_WITHIN_S:
            self.record.learned(db, until)

    def do(self, change: Change, now: datetime) -> None:
        """What a change is while its tenant is, or is not, subscribed was drawn with it."""
        self._figures[f"at Stripe: {change.kind}"] += 1
        if change.kind == "buy":
            return self._buy(change.tenant, now)
        tenure = self.record.tenures[change.tenant][-1]
        if change.kind == "leave":
            self._account.cancel(tenure.subscription_id)
            return self.record.end(change.tenant, now, subscription=True)
        others = [plan for plan in self._account.plans if plan[1] != tenure.event_name]
        price, event_name = self._solo() if change.kind == "no tokens" else others[0]
        if change.kind == "other price":
            items = {"items[0][id]": tenure.usage_item_id, "items[0][price]": price}
        else:
            items = {"items[0][id]": tenure.usage_item_id, "items[0][deleted]": "true", "items[1][price]": price}
        changed = self._account.post(f"subscriptions/{tenure.subscription_id}", items)
        item = _item(changed)
        self.record.begin(change.tenant, replace(tenure, usage_item_id=item, event_name=event_name, since=now, until=None))

    def final_invoices(self) -> dict[tuple[str, datetime], datetime]:
        """When the invoices of subscriptions became final, by the subscription and by when they were made."""
        subscriptions = {tenure.subscription_id for tenures in self.record.tenures.values() for tenure in tenures}
        invoices = [
            (subscription, invoice)
            for subscription in subscriptions
            for invoice in self._account.get(f"invoices?subscription={subscription}&limit=100")["data"]
        ]
        return {
            (subscription, datetime.fromtimestamp(invoice["created"], UTC)): datetime.fromtimestamp(final_at, UTC)
            for subscription, invoice in invoices
            if invoice["billing_reason"] != "subscription_create" and (final_at := invoice["status_transitions"]["finalized_at"])
        }

    def _solo(self) -> tuple[str, str]:
        """A plan without a metered price."""
        parameters = {"currency": "usd", "product_data[name]": "solo", "recurring[interval]": "month", "unit_amount": 1900}
        return self._account.post("prices", parameters)["id"], NO_METER

    def _first_of(self, number: int, tenant: str) -> Link | None:
        customer = self._account.post("customers", {"name": tenant})
        self.tenant_of[customer["id"]] = tenant
        if tenant in self._following.unsubscribed:
            return None
        price, event_name = self._account.plans[number % 2]
        parameters: dict[str, Any] = {"customer": customer["id"], "items[0][price]": price}
        first_end = EPOCH + relativedelta(months=1)
        if tenant in self._following.anchors:
            first_end = EPOCH + timedelta(seconds=self._following.anchors[tenant])
            parameters["billing_cycle_anchor"] = int(first_end.timestamp())
        bought = self._account.post("subscriptions", parameters)
        self._begin(tenant, bought, event_name, EPOCH, first_end)
        return Link(customer["id"], bought["id"], _item(bought), event_name)

    def _buy(self, tenant: str, now: datetime) -> None:
        """By a checkout, as a customer of before or as a new one in turn."""
        bought_before = len(self.record.tenures[tenant])
        price, event_name = self._account.plans[bought_before % 2]
        parameters = {"mode": "subscription", "line_items[0][price]": price, "success_url": "https://example.com/done"}
        parameters["client_reference_id"] = tenant
        if bought_before % 2:
            parameters["customer"] = self.record.tenures[tenant][-1].customer_id
        session = self._account.complete_checkout(self._account.post("checkout/sessions", parameters)["id"])
        self.tenant_of[session["customer"]] = tenant
        bought = self._account.get(f"subscriptions/{session['subscription']}")
        self._begin(tenant, bought, event_name, now, now + relativedelta(months=1))

    def _begin(self, tenant: str, bought: dict[str, Any], event_name: str, now: datetime, first_end: datetime) -> None:
        item = _item(bought)
        self.record.begin(tenant, Tenure(bought["id"], bought["customer"], item, event_name, now, first_end, now))


def _item(subscription: dict[str, Any]) -> str:
    [item] = subscription["items"]["data"]
    return str(item["id"])
