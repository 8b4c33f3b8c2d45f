"""A billing period's end in a test: usage around it, the runs that close it, and its invoice at Stripe."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from shop import Shop
from token_billing.errors import PeriodsIncomplete
from token_billing.settings import ReconcileSettings
from token_billing.stages.close_billing_periods import ClosedPeriods, check_closings, hold_and_release
from token_billing.windows import Window
from world import SETTINGS, World

#: When the tenant bought, and when its first period ends.
BEGUN = datetime(2026, 3, 10, 10, 30, tzinfo=UTC)
PERIOD_END = datetime(2026, 4, 10, 10, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass
class MonthEnd:
    """The last hours of a billing period, and what comes after; times are minutes after its end."""

    shop: Shop
    subscription: str
    settings: ReconcileSettings = field(default_factory=ReconcileSettings)

    @property
    def world(self) -> World:
        return self.shop.world

    def at(self, minutes: float) -> None:
        self.shop.at(PERIOD_END + minutes * MINUTE)

    def use(self, tokens: int, minutes: float = -10, tenant: str = "acme") -> None:
        self.world.use(tenant, tokens, at=PERIOD_END + minutes * MINUTE)

    def bill(self, minutes: float = -10, *, confirmed: bool = True) -> None:
        """The hour that holds the time, through all stages."""
        self.freeze(minutes)
        self.world.bill()
        if confirmed:
            self.confirm()

    def freeze(self, minutes: float = -10) -> None:
        self.shop.sync()
        self.world.window = Window((PERIOD_END + minutes * MINUTE).replace(minute=0))
        self.world.freeze()

    def confirm(self) -> None:
        """As reconciliation does once Stripe's meters show it."""
        self.world.sql(
            "UPDATE billing.usage_report SET confirmed_at = now() WHERE state IN ('accepted', 'billed') AND confirmed_at IS NULL"
        )

    def close(self) -> ClosedPeriods:
        return hold_and_release(self.world.connect, self.world.target, self.world.clock, SETTINGS, self.settings)

    def invoice(self) -> Any:
        """The period's invoice at Stripe."""
        listed = self.shop.client.invoices.list({"subscription": self.subscription})
        [found] = [one for one in listed.data if one.billing_reason != "subscription_create"]
        return found

    def finalises_after(self) -> float:
        """Minutes after the period's end."""
        return float((datetime.fromtimestamp(self.invoice().automatically_finalizes_at, UTC) - PERIOD_END) / MINUTE)

    def quantity(self) -> int:
        """Tokens on the period's invoice."""
        return sum(line.quantity for line in self.invoice().lines.data)

    def told(self) -> list[str]:
        """What somebody is told of now."""
        found = self.world.sql("SELECT details FROM billing.discrepancy WHERE cause = 'period_incomplete' AND resolved_at IS NULL")
        return [details for (details,) in found]

    def check(self) -> str | None:
        """What the check's run fails with."""
        try:
            check_closings(self.world.connect, self.world.clock)
        except PeriodsIncomplete as incomplete:
            return str(incomplete)
        return None
