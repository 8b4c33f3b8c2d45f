"""A world whose meters are compared: hours pass, others report too, Stripe loses and doubles events."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import stripe

from token_billing.model import Disowned, RevocationCause
from token_billing.reconciliation import EXACT, OF_METERS
from token_billing.settings import PushSettings
from token_billing.stages.discrepancies import open_discrepancies, require_none
from token_billing.stages.reconcile_meters import reconcile_meters
from token_billing.stages.revoke import revoke
from world import SETTINGS, World


@dataclass
class Meters:
    """What Stripe's meters do, and what is found there."""

    world: World

    def at(self, hours: float) -> None:
        """So many hours after the window's end."""
        self.world.set_time(self.world.window.end + timedelta(hours=hours))

    def compare(self, settings: PushSettings = SETTINGS, **limits: Any) -> dict[str, int]:
        return reconcile_meters(self.world.connect, self.world.target, self.world.clock, settings, **limits)

    def report(
        self, tokens: float, *, tenant: str = "a", minute: int = 59, identifier: str = "foreign", hour: datetime | None = None
    ) -> None:
        """Somebody reports to the tenant's customer and meter, at a minute of an hour."""
        world = self.world
        ((customer, event_name),) = world.sql(
            "SELECT stripe_customer_id, (SELECT event_name FROM billing.meter ORDER BY meter_id LIMIT 1) FROM tenants WHERE id = %s", tenant
        )
        bases: Any = {"api": world.simulator.base_url, "meter_events": world.simulator.base_url}
        client = stripe.StripeClient(world.simulator.api_key, base_addresses=bases)
        event: Any = {
            "event_name": event_name,
            "payload": {"stripe_customer_id": customer, "value": str(tokens)},
            "identifier": identifier,
            "timestamp": int(((hour or world.window.start) + timedelta(minutes=minute)).timestamp()),
        }
        client.v1.billing.meter_events.create(event)

    def lose(self, tenant: str) -> None:
        """Stripe counts the tenant's report no more; nobody hears of it."""
        self.world.simulator.lose_event(self.identifier(tenant))

    def revoke(self, tenant: str) -> None:
        """A person has the tenant's report sent anew."""
        ((report_id,),) = self.world.sql("SELECT id FROM billing.usage_report WHERE tenant_id = %s", tenant)
        disowned = Disowned(report_id, RevocationCause.SETTLED_SUMMARY, "Stripe's summary lacks it")
        revoke(self.world.connect, disowned, self.world.clock, revoked_by="ann")

    def identifier(self, tenant: str) -> str:
        return str(self.world.sql("SELECT identifier FROM billing.usage_report WHERE tenant_id = %s ORDER BY revision", tenant)[0][0])

    def minute(self, tenant: str) -> int:
        """The minute of the window that the tenant's report is dated with."""
        return int(self.world.sql("SELECT extract(minute FROM event_time) FROM billing.usage_report WHERE tenant_id = %s", tenant)[0][0])

    def confirmed(self) -> dict[str, int]:
        """Confirmed tokens by tenant."""
        return dict(
            self.world.sql("SELECT tenant_id, sum(token_count)::bigint FROM billing.usage_report WHERE confirmed_at IS NOT NULL GROUP BY 1")
        )

    def found(self) -> list[tuple[Any, ...]]:
        """Open discrepancies: cause, tenant, tokens expected and found."""
        rows = open_discrepancies(self.world.connect)
        return sorted(((one.cause, one.tenant_id, one.expected_token_count, one.found_token_count) for one in rows), key=str)

    def differing_hours(self) -> list[datetime]:
        return [start for (start,) in self.world.sql("SELECT window_start FROM billing.meter_difference ORDER BY window_start")]

    def require_none(self) -> int:
        return require_none(self.world.connect, OF_METERS, EXACT)

    def conclude(self) -> None:
        """Two looks, six hours apart."""
        for hours in (0.5, 6.6):
            self.at(hours)
            self.compare()
