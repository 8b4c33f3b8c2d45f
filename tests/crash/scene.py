"""Where a history happens: its time, its tenants and what they use, Stripe's account and the network before it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta

from crash import oracle
from crash.following import Change, Following
from crash.network import Network
from crash.people import People
from crash.plans import EPOCH, GROUPS, LINKED, RELINKED, UNLINKED, Disown, Record
from crash.stripe_account import Link, StripeAccount
from crash.subscribers import Subscribers
from crash.workers import Connection, Pool
from token_billing.windows import Window

#: The same in every database, so that a seed's identifiers are.
LEDGER_ID = "00000000-0000-4000-8000-000000000001"


def empty(pool: Pool) -> None:
    """The database is as it was when it was adopted."""
    with pool.connect() as db:
        tables = [
            table
            for (table,) in db.execute(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                "WHERE schemaname = 'billing' AND tablename NOT IN ('ledger', 'migration')"
            )
        ]
        db.execute("SET LOCAL session_replication_role = replica")  # rows may be deleted, only here
        db.execute("; ".join(f"DELETE FROM {table}" for table in [*tables, "token_usage", "tenants"]))
        db.execute(
            "UPDATE billing.ledger SET ledger_id = %s, stripe_account_id = NULL, stripe_livemode = NULL, pinned_at = NULL, "
            "noted_attempts = 0, epoch = 1, recovered_at = NULL",
            (LEDGER_ID,),
        )


class Scene:
    """The scene of one history, empty at first."""

    def __init__(
        self,
        pool: Pool,
        account: StripeAccount,
        unlinked_kind: str,
        figures: Counter[str],
        *,
        usage_records: bool,
        following: Following | None,
    ) -> None:
        self.now = EPOCH
        #: By how much every worker's clock is wrong.
        self.clock_off = timedelta()
        #: Whether an older copy took the database's place.
        self.restored = False
        self.windows: set[Window] = set()
        #: What people decided, so that tokens may rightly be kept aside.
        self.allowed = oracle.Allowed()
        self.network = Network(lambda: self.now, figures)
        self._pool, self._account, self._figures = pool, account, figures
        self._writers: dict[int, Connection] = {}
        self._foreign_count = 0
        empty(pool)
        #: Where subscriptions are followed.
        self.subscribers = Subscribers(account, following, figures) if following else None
        if self.subscribers is None:
            self._link(unlinked_kind, usage_records)
        else:
            self._subscribe(self.subscribers, unlinked_kind)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _link(self, unlinked_kind: str, usage_records: bool) -> None:
        """Two tenants share a customer; some have another one to be relinked to."""
        owners = [tenant for tenant in LINKED if tenant != "b"]
        made = self._account.reset(EPOCH, [*owners, *(f"{tenant} again" for tenant in RELINKED)], usage_records)
        links = {tenant: (made[tenant if tenant != "b" else "a"],) for tenant in LINKED}
        self.people = People(
            self._figures, links | {tenant: (*links[tenant], made[f"{tenant} again"]) for tenant in RELINKED}, self.allowed, self._account
        )
        self.group_of = {link.customer_id: GROUPS[tenant] for tenant, of in self.people.links.items() for link in of}
        numbers = {link: 2 * ord(tenant) + n for tenant, of in self.people.links.items() for n, link in enumerate(of)}
        self.network.customer_numbers = {name: n for link, n in numbers.items() for name in (link.customer_id, link.usage_item_id)}
        self._add_tenants({tenant: link for tenant, (link,) in links.items()}, unlinked_kind)

    def _subscribe(self, subscribers: Subscribers, unlinked_kind: str) -> None:
        """Every tenant has a customer of its own, and most have a subscription."""
        self._account.reset(EPOCH, [])
        links = subscribers.begin(LINKED)
        self.people = People(self._figures, {tenant: (link,) for tenant, link in links.items() if link}, self.allowed, self._account)
        self.learn_customers()
        self._add_tenants(links, unlinked_kind)

    def learn_customers(self) -> None:
        """Whose the customers are that subscribers have by now."""
        assert self.subscribers is not None
        self.group_of = {customer: GROUPS[tenant] for customer, tenant in self.subscribers.tenant_of.items()}
        self.network.customer_numbers = {customer: 2 * ord(tenant) for customer, tenant in self.subscribers.tenant_of.items()}

    def _add_tenants(self, links: Mapping[str, Link | None], unlinked_kind: str) -> None:
        rows: list[tuple[str | None, ...]] = [
            (tenant, link.customer_id, link.subscription_id, link.usage_item_id) if link else (tenant, None, None, None)
            for tenant, link in links.items()
        ]
        with self._pool.connect() as db:
            if unlinked_kind != "unknown tenant":
                rows.append((UNLINKED, "cus_without_item" if unlinked_kind == "no subscription item" else None, None, None))
            db.cursor().executemany(
                "INSERT INTO tenants (id, stripe_customer_id, stripe_subscription_id, stripe_usage_item_id) VALUES (%s, %s, %s, %s)", rows
            )

    def pass_time(self, span: timedelta) -> None:
        if not span:
            return
        if span > timedelta(hours=1):
            self.let_everything_arrive()  # no request is under way for longer
        self.now += span
        self._account.set_clock(self.now)

    def change(self, change: Change) -> None:
        """A customer does something at Stripe, now."""
        assert self.subscribers is not None
        self.subscribers.do(change, self.now)
        self.learn_customers()

    def let_everything_arrive(self) -> None:
        for _, late in self.network.under_way:
            self._figures["effects after recovery began"] += 1
            self._account.deliver(late.path, str(late.body), late.headers)
        self.network.under_way.clear()

    def record(self, step: Record) -> None:
        times = [EPOCH + timedelta(minutes=minute, seconds=7) for _, minute, _, _ in step.rows]
        self.windows |= {Window(at.replace(minute=0, second=0, microsecond=0)) for at in times}
        late = sum(at < self.now.replace(minute=0, second=0) for at in times)
        db = self._pool.connect()
        db.execute(
            "INSERT INTO token_usage (tenant_id, model, input_tokens, output_tokens, created_at) "
            "SELECT tenant, 'm', input, output, at "
            "FROM unnest(%s::text[], %s::integer[], %s::integer[], %s::timestamptz[]) AS new (tenant, input, output, at)",
            ([row[0] for row in step.rows], [row[2] for row in step.rows], [row[3] for row in step.rows], times),
        )
        if step.writer is not None:
            self._writers[step.writer] = db
            return
        self._figures["late rows"] += 0 if step.rolled_back else late
        self._figures["writers rolled back"] += step.rolled_back
        if step.rolled_back:
            db.rollback()
        else:
            db.commit()
        self._pool.give_back(db)

    def end_writer(self, number: int, commit: bool) -> None:
        writer = self._writers.pop(number)
        self._figures["long writers committed" if commit else "writers rolled back"] += 1
        if commit:
            writer.commit()
        else:
            writer.rollback()
        self._pool.give_back(writer)

    def end_writers(self) -> None:
        """Whoever is still writing commits."""
        for number in list(self._writers):
            self.end_writer(number, commit=True)

    def report_foreign(self, events: Sequence[tuple[str, int, int]]) -> None:
        for tenant, minute, tokens in events:
            self._figures["foreign events"] += 1
            self._foreign_count += 1
            at = EPOCH + timedelta(minutes=minute, seconds=15)
            if tenant in self.people.links:
                self._account.report_foreign(self._foreign_count, self.people.links[tenant][0], at, tokens)

    def disown(self, step: Disown) -> None:
        ours = oracle.of_this_ledger(self._account.meter_events())
        accepted = sorted(event["identifier"] for event in ours if event["status"] == "accepted")
        if self.restored:  # what was sent under names that the copy has forgotten, nobody could find by them
            with self._pool.connect() as db:
                known = {name for (name,) in db.execute("SELECT identifier FROM billing.push_attempt")}
            accepted = [name for name in accepted if name in known]
        disowned = {accepted[pick % len(accepted)] for pick in step.picks} if accepted else set()
        if disowned:
            self._figures["events disowned"] += len(disowned)
            self._account.disown(sorted(disowned))
            (self.people.noticed if step.noticed else self.people.unnoticed).update(disowned)
