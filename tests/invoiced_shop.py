"""A shop whose customers' months end: their invoices become final, and are read and compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from shop import Shop
from token_billing.adapters import discrepancies
from token_billing.stages.read_invoices import read_invoices
from token_billing.stages.reconcile_invoices import compare_invoices
from token_billing.windows import HOUR, Window, last_closed_window
from world import World

#: Nothing is in the simulator's memory before it; whoever subscribes now has a period that ends a month later, to the second.
OPENED = datetime(2026, 3, 10, 10, 0, tzinfo=UTC)
PERIOD_END = datetime(2026, 4, 10, 10, 0, tzinfo=UTC)

#: Two minutes after an hour, as the hourly run.
RUN = timedelta(minutes=2)


@dataclass
class InvoicedShop(Shop):
    """Tenants by name, each with the subscription it bought."""

    subscriptions: dict[str, Any] = field(default_factory=dict)
    period_end: datetime = PERIOD_END

    @classmethod
    def opened(cls, world: World) -> Self:
        """At ten in the morning, without a tenant."""
        world.simulator.reset(clock=OPENED)
        world.simulator.settings(summary_delay_seconds=0)
        world.set_time(OPENED)
        world.window = Window(OPENED)
        return cls(world)

    def subscribe(self, **plans: str) -> None:
        """Tenants that buy a plan now."""
        self.add_tenants(*plans)
        for tenant, plan in plans.items():
            self.subscriptions[tenant] = self.buy(plan, client_reference_id=tenant)
        self.sync()

    def use(self, *usage: tuple[str, int], at: datetime | None = None) -> None:
        """Tokens by tenant in one hour, by default in that after the opening, which is billed two minutes after it."""
        at = at or OPENED + HOUR + timedelta(minutes=30)
        self.world.window = last_closed_window(at + HOUR)
        for tenant, tokens in usage:
            self.world.use(tenant, tokens, at=at)
        self.at(max(self.world.clock(), self.world.window.end + RUN))
        self.world.bill()

    def final(self) -> None:
        """The month's invoices are final, and everything that Stripe lists is known."""
        self.at(self.period_end + HOUR + RUN)
        self.sync()

    def read(self) -> int:
        """What Stripe's invoices say is kept."""
        return read_invoices(self.world.connect, self.world.target, self.world.clock)

    def compare(self) -> dict[str, int]:
        """As a run of reconcile_invoices."""
        self.read()
        return compare_invoices(self.world.connect, self.world.target, self.world.clock, {})

    def found(self) -> dict[str, list[str]]:
        """The causes of open discrepancies, by tenant, or what they are about at Stripe."""
        causes: dict[str, list[str]] = {}
        with self.world.connect() as db:
            for one in discrepancies.open_discrepancies(db):
                causes.setdefault(one.tenant_id or one.stripe_id or "", []).append(one.cause)
        return {about: sorted(found) for about, found in causes.items()}

    def invoice(self, tenant: str) -> Any:
        """The tenant's newest, as Stripe shows it now."""
        return self.client.invoices.list({"subscription": self.subscriptions[tenant].id}).data[0]

    def identifier(self, tenant: str) -> str:
        """Of the tenant's first report."""
        [(found,), *_] = self.world.sql("SELECT identifier FROM billing.usage_report WHERE tenant_id = %s ORDER BY id", tenant)
        return str(found)

    def customer(self, tenant: str) -> str:
        return str(self.subscriptions[tenant].customer)

    def send_event(self, tenant: str, tokens: int, at: datetime, meter: str = "managed_ai_tokens_pure") -> None:
        """A meter event that is none of ours."""
        payload: Mapping[str, str] = {"stripe_customer_id": self.customer(tenant), "value": str(tokens)}
        self.client.billing.meter_events.create({"event_name": meter, "payload": payload, "timestamp": int(at.timestamp())})
