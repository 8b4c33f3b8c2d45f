"""A shop whose month is over: some of its usage came too late for the invoice."""

from datetime import UTC, datetime, timedelta
from typing import Any, Self

import stripe

from token_billing.proposals import Decision, Kind, Proposal
from token_billing.stages.apply_proposals import apply_proposals
from token_billing.stages.decide_proposals import decide
from token_billing.stages.propose import propose
from token_billing.windows import HOUR, Window
from world import SETTINGS, World

#: Every subscription here begins at this instant; its first period ends a month later, in the middle of an hour.
BEGUN = datetime(2025, 10, 15, 12, 30, tzinfo=UTC)
PERIOD_END = datetime(2025, 11, 15, 12, 30, tzinfo=UTC)
LAST = Window(datetime(2025, 11, 15, 11, tzinfo=UTC))
#: Its invoice is final since an hour and a half.
AFTER = PERIOD_END + timedelta(hours=2, minutes=30)

LATE_TOKENS = 1_000_000


class Office:
    """What people and the stages do about proposals."""

    def __init__(self, world: World) -> None:
        self.world = world

    @classmethod
    def opened(cls, world: World) -> Self:
        """Tenant a (Bundled) has 6 million tokens in its first period, which is 1 million above the free ones."""
        world.simulator.reset(clock=BEGUN)
        world.simulator.settings(summary_delay_seconds=0)
        world.link("a")
        office = cls(world)
        office.bill(Window(datetime(2025, 10, 15, 13, tzinfo=UTC)), 6_000_000, datetime(2025, 10, 15, 14, 5, tzinfo=UTC))
        return office

    def bill_late(self) -> None:
        """A million tokens more come when the period's invoice is final, in two reports."""
        self.bill(LAST, LATE_TOKENS - 10, AFTER)
        self.bill(Window(LAST.start - HOUR), 10, AFTER)

    @property
    def client(self) -> Any:
        return stripe.StripeClient(self.world.simulator.api_key, base_addresses={"api": self.world.simulator.base_url}).v1

    def bill(self, window: Window, tokens: int, at: datetime, tenant: str = "a") -> None:
        self.world.set_time(at)
        self.world.window = window
        self.world.use(tenant, tokens)
        self.world.bill()

    def proposed(self, kind: Kind | None = None) -> list[Proposal]:
        return [one for one in propose(self.world.connect, self.world.clock) if kind in (None, one.what.kind)]

    def decide(self, decision: Decision, by: str = "ann", number: int | None = None) -> Proposal:
        number = number or self.proposed()[0].id
        return decide(self.world.connect, number, decision, by, self.world.clock)

    def apply(self) -> int:
        return apply_proposals(self.world.connect, self.world.target, self.world.clock, SETTINGS)

    def customer(self, tenant: str = "a") -> str:
        return str(self.world.sql("SELECT stripe_customer_id FROM tenants WHERE id = %s", tenant)[0][0])

    def items(self) -> list[tuple[int, str, str]]:
        """Amount, currency and proposal of the invoice items at Stripe."""
        found = self.client.invoice_items.list({"customer": self.customer(), "limit": 100})
        return [(one.amount, one.currency, one.metadata["proposal"]) for one in found.auto_paging_iter()]

    def audited(self) -> list[tuple[str, str, str]]:
        return self.world.sql("SELECT action, subject, decided_by FROM billing.audit ORDER BY id")

    def lease_is_over(self) -> None:
        """A dead worker's lease has run out."""
        self.world.sql("DELETE FROM billing.customer_lease")
