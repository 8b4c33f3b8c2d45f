"""Plants the errors: at Stripe, in its events, prices and invoices, and in our own rows, each at its moment."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

from crash.stripe_account import StripeAccount
from crash.subscription_oracle import Tenure
from crash.workers import Pool
from months.customers import Customers
from months.oracle import Flagged
from months.plans import Planting
from months.plantings import AFTER_ITS_BEGINNING, BEFORE_ITS_END, KINDS
from months.result import Found
from months.wire import Wire
from sandbox.stripe_simulator.process import StripeSimulator
from token_billing.windows import Window

#: The tenant's reports of a window that Stripe has accepted.
ACCEPTED = """
SELECT identifier, token_count, event_time FROM billing.usage_report
WHERE tenant_id = %s AND window_start = %s AND state IN ('accepted', 'billed') AND token_count > 0 ORDER BY event_time
"""

#: Hours in which a tenant has used tokens.
USED = "SELECT DISTINCT date_trunc('hour', created_at, 'UTC') FROM token_usage WHERE tenant_id = %s"

#: One row of a tenant's, in a span.
A_ROW = """
SELECT id, created_at FROM token_usage
WHERE tenant_id = %s AND created_at >= %s AND created_at < %s AND billed = %s AND input_tokens > 0 ORDER BY id LIMIT 1
"""

#: Whoever is the database's owner can switch the product's own triggers off.
BEHIND_ITS_BACK = "SET LOCAL session_replication_role = replica"


class Report(NamedTuple):
    """A row of ACCEPTED."""

    identifier: str
    tokens: int
    at: datetime


class Saboteur:
    """Plants each error once, when its moment has come; remembers under which names it may be told of."""

    def __init__(
        self,
        simulator: StripeSimulator,
        account: StripeAccount,
        customers: Customers,
        wire: Wire,
        pool: Pool,
        waiting: Sequence[Planting],
    ) -> None:
        self.waiting, self.planted = list(waiting), list[Planting]()
        #: By kind: what a discrepancy about it may name.
        self.names: dict[str, set[str]] = {}
        self._simulator, self._account, self._customers, self._wire, self._pool = simulator, account, customers, wire, pool
        self._numbers = count(1)
        #: Windows whose rows were tampered with.
        self.tampered: set[datetime] = set()

    def before_run(self, window: Window, now: datetime) -> None:
        """The window's rows are recorded and not yet billed."""
        for one in self._due("before a run", now):
            if one.kind == "a row is marked by another" and self._is_amid(one, window):
                mark = "UPDATE token_usage SET billed = true WHERE id = %s"
                self._done(one, self._change_row(one, window.start, window.end, mark, billed=False))
            elif one.kind == "the invoice becomes final under a push" and window.start <= one.period_end < window.end:
                self._finalise_under_push(one)

    def after_run(self, window: Window, now: datetime) -> bool:
        """The window's reports are with Stripe. Whether anything was planted."""
        before = len(self.planted)
        for one in self._due("after a run", now):
            reports = self._reports(one, window)
            if one.kind == "an event is dated before its period":
                began = one.period_end  # the end of the one before
                mine = [report for report in reports if began <= report.at < began + timedelta(hours=1)]
                if mine:
                    self._simulator.change_event(mine[-1].identifier, at=began - timedelta(minutes=63))
                self._done(one, bool(mine))
            elif reports and self._is_amid(one, window):
                self._done(one, self._with_event(one, reports[0], window, now))
        return len(self.planted) > before

    def look_at_invoices(self, now: datetime) -> None:
        """Drafts and final invoices of periods that have ended."""
        for when in ("draft", "final"):
            for one in self._due(when, now):
                if one.period_end > now:
                    continue
                invoice = self._invoice(one)
                if invoice is None or (invoice["status"] == "draft") != (when == "draft"):
                    continue
                (self._edit_price if when == "draft" else self._change_invoice)(one, invoice)
                self._done(one, True)

    def found(self, flagged: Sequence[Flagged], tenant_of_report: Mapping[int, str]) -> tuple[list[Found], list[Flagged]]:
        """By which causes each planted error was told; and what was told of nothing that was planted, or by a cause that is wrong."""
        causes: dict[str, Counter[str]] = {one.kind: Counter() for one in self.planted}
        names = {one.kind: self._names_about(one) for one in self.planted}
        others = []
        for discrepancy in flagged:
            about = next((one for one in self.planted if _is_about(discrepancy, names[one.kind], tenant_of_report)), None)
            if about is None or discrepancy.cause not in (KINDS[about.kind].cause, *KINDS[about.kind].also):
                others.append(discrepancy)
            else:
                causes[about.kind][discrepancy.cause] += 1
        return [Found(one.kind, one.tenant, KINDS[one.kind].cause, tuple(sorted(causes[one.kind]))) for one in self.planted], others

    def _names_about(self, one: Planting) -> set[str]:
        """The tenant, and all that it, or what was planted, has at Stripe."""
        tenures = self._customers.record.tenures.get(one.tenant, [])
        names = {one.tenant, *self.names.get(one.kind, ())}
        names |= {name for tenure in tenures for name in (tenure.customer_id, tenure.subscription_id, tenure.usage_item_id)}
        customers = [name for name in names if name.startswith("cus_")]
        invoices = [self._account.get(f"invoices?customer={customer}&limit=100")["data"] for customer in customers]
        return names | {invoice["id"] for of_customer in invoices for invoice in of_customer}

    def names_of_all(self) -> set[str]:
        """Of everything that was tampered with."""
        return {name for one in self.planted for name in self._names_about(one)}

    # --- Moments ------------------------------------------------------------------------------------------------------------

    def _due(self, when: str, now: datetime) -> list[Planting]:
        return [one for one in self.waiting if KINDS[one.kind].when == when and one.period_start <= now]

    def _is_amid(self, one: Planting, window: Window) -> bool:
        """Well inside the period."""
        return one.period_start + AFTER_ITS_BEGINNING <= window.start and window.end <= one.period_end - BEFORE_ITS_END

    def _done(self, one: Planting, done: bool) -> None:
        if done:
            self.waiting.remove(one)
            self.planted.append(one)

    def _tenure(self, one: Planting) -> Tenure:
        return self._customers.record.tenures[one.tenant][-1]

    def _reports(self, one: Planting, window: Window) -> list[Report]:
        with self._pool.connect() as db:
            return [Report(*row) for row in db.execute(ACCEPTED, (one.tenant, window.start))]

    def _name(self, one: Planting, *names: str) -> None:
        self.names.setdefault(one.kind, set()).update(names)

    # --- Events -------------------------------------------------------------------------------------------------------------

    def _with_event(self, one: Planting, report: Report, window: Window, now: datetime) -> bool:
        """Does something about an event that Stripe has accepted; False where its moment has not come."""
        tenure = self._tenure(one)
        match one.kind:
            case "an event is lost":
                self._simulator.lose_event(report.identifier)
            case "an event is doubled":
                self._simulator.double_event(report.identifier)
            case "an event's value is raised":
                self._simulator.change_event(report.identifier, value=report.tokens + 4321)
            case "an event's value is lowered":
                self._simulator.change_event(report.identifier, value=report.tokens - 4321)
            case "an event is rejected beyond the samples":
                self._reject(one, report, tenure)
            case "a foreign event in an hour of ours":
                self._foreign(tenure.customer_id, tenure.event_name, window.start + timedelta(minutes=59, seconds=7), 77_777)
            case "a foreign event in an hour of none":
                return self._foreign_elsewhere(one, tenure, now)
            case "the customer is deleted, with an event":
                self._simulator.lose_event(report.identifier)
                self._account.delete_customer(tenure.customer_id)
                self._customers.record.end(one.tenant, now, subscription=True)
            case "a second item on the meter":
                self._subscribe_again(one, tenure.customer_id, now)
            case "an item that nobody is linked to":
                customer = self._account.post("customers", {"name": "nobody's"})["id"]
                self._subscribe_again(one, customer, now)
                self._foreign(customer, tenure.event_name, now, 55_555)
        return True

    def _foreign(self, customer_id: str, event_name: str, at: datetime, tokens: int) -> str:
        identifier = f"foreign-{next(self._numbers)}"
        self._account.post(
            "billing/meter_events",
            {
                "event_name": event_name,
                "identifier": identifier,
                "timestamp": int(at.timestamp()),
                "payload[stripe_customer_id]": customer_id,
                "payload[value]": tokens,
            },
        )
        return identifier

    def _foreign_elsewhere(self, one: Planting, tenure: Tenure, now: datetime) -> bool:
        with self._pool.connect() as db:
            used = {hour for (hour,) in db.execute(USED, (one.tenant,))}
        hour = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
        if hour in used or hour < one.period_start:
            return False
        self._foreign(tenure.customer_id, tenure.event_name, hour + timedelta(minutes=17), 66_666)
        return True

    def _reject(self, one: Planting, report: Report, tenure: Tenure) -> None:
        """Stripe's error report names some events of another system's, and counts ours among the rest."""
        other = self._account.post("customers", {"name": "another system's"})["id"]
        foreign = [self._foreign(other, tenure.event_name, report.at, 1) for _ in range(5)]
        self._name(one, *self._simulator.disown([*foreign, report.identifier]))

    def _subscribe_again(self, one: Planting, customer_id: str, now: datetime) -> None:
        """A subscription that no checkout of a tenant's bought, to the price that the tenant has."""
        price = self._customers.sold[KINDS[one.kind].plan].price_id
        anchor = int((now + timedelta(days=9)).timestamp())
        asked: dict[str, Any] = {"customer": customer_id, "items[0][price]": price, "billing_cycle_anchor": anchor}
        bought = self._account.post("subscriptions", asked)
        self._name(one, customer_id, bought["id"], *(item["id"] for item in bought["items"]["data"]))

    # --- Prices and invoices ------------------------------------------------------------------------------------------------

    def _invoice(self, one: Planting) -> dict[str, Any] | None:
        """The one that closes the period."""
        found = self._account.get(f"invoices?subscription={self._tenure(one).subscription_id}&limit=100")["data"]
        made = int(one.period_end.timestamp())
        return next(
            (invoice for invoice in found if invoice["created"] == made and invoice["billing_reason"] != "subscription_create"), None
        )

    def _finalise_under_push(self, one: Planting) -> None:
        """Somebody finalises the draft by hand, between the push's look at it and its sending of the period's last hour."""
        tenure, before = self._tenure(one), int(one.period_end.timestamp())

        def finalise(timestamp: int) -> None:
            if timestamp < before:
                del self._wire.before_event[tenure.customer_id]
                invoice = self._invoice(one)
                if invoice is not None and invoice["status"] == "draft":
                    self._name(one, invoice["id"])
                    self._account.post(f"invoices/{invoice['id']}/finalize", {})
                    self._done(one, True)

        self._wire.before_event[tenure.customer_id] = finalise

    def _edit_price(self, one: Planting, invoice: Mapping[str, Any]) -> None:
        price = self._customers.sold[KINDS[one.kind].plan].price_id
        self._name(one, price, invoice["id"])
        if one.kind == "a price is edited":
            self._simulator.edit_price(price, unit_amount_decimal="0.0035")
        else:
            lower = {"up_to": 100_000, "unit_amount_decimal": "0"}
            self._simulator.edit_price(price, tiers=[lower, {"up_to": "inf", "unit_amount_decimal": "0.0011"}])

    def _change_invoice(self, one: Planting, invoice: Mapping[str, Any]) -> None:
        """What is final changes all the same, or our rows that it bills do."""
        price = self._customers.sold[KINDS[one.kind].plan].price_id
        self._name(one, invoice["id"], *(line["id"] for line in invoice["lines"]["data"]))
        line = next(line for line in invoice["lines"]["data"] if line["pricing"]["price_details"]["price"] == price)
        match one.kind:
            case "a line's period is shifted":
                self._simulator.shift_period(invoice["id"], 7200, line["id"])
            case "a line is added by hand":
                self._simulator.add_line(invoice["id"], 1234)
            case "a line's amount is changed":
                self._simulator.change_line(invoice["id"], line["id"], amount=line["amount"] + 7)
            case "a line's quantity is changed":
                self._simulator.change_line(invoice["id"], line["id"], quantity=line["quantity"] + 1000)
            case "the currency is changed":
                self._simulator.change_currency(invoice["id"], "eur")
            case "a line names another price":
                self._simulator.change_line(invoice["id"], line["id"], price=self._customers.sold["private each"].price_id)
            case "an item's usage is billed twice":
                self._simulator.double_usage(invoice["id"], line["id"])
            case "a line is dropped":
                self._simulator.drop_line(invoice["id"], line["id"])
            case "a row is changed":
                change = "UPDATE token_usage SET input_tokens = input_tokens - 1 WHERE id = %s"
                self._change_row(one, one.period_start, one.period_end, change, billed=True)
            case "a row is deleted":
                self._change_row(one, one.period_start, one.period_end, "DELETE FROM token_usage WHERE id = %s", billed=True)

    def _change_row(self, one: Planting, since: datetime, until: datetime, change: str, *, billed: bool) -> bool:
        with self._pool.connect() as db:
            found = db.execute(A_ROW, (one.tenant, since, until, billed)).fetchone()
            if found is None:
                return False
            row_id, at = found
            db.execute(BEHIND_ITS_BACK)
            db.execute(change, (row_id,))  # type: ignore[arg-type]
            self.tampered.add(at.astimezone(UTC).replace(minute=0, second=0, microsecond=0))
        with suppress(KeyError):
            self._name(one, one.tenant)
        return True


def _is_about(flagged: Flagged, names: Set[str], tenant_of_report: Mapping[int, str]) -> bool:
    told = {flagged.tenant_id, flagged.stripe_id, tenant_of_report.get(flagged.report_id or 0)}
    return bool(names & told) or any(name in (flagged.scope or "") for name in names)
