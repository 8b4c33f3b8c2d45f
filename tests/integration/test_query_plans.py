"""A push reads what it bills, and not the whole ledger for each report."""

import json
from typing import Any

from token_billing.adapters.sending import PUSH
from world import World, now

#: So many tenants have a report in each of so many hours before the window.
TENANTS, HOURS = 300, 60


def visited(plan: dict[str, Any]) -> int:
    """Rows of usage_report that the plan's scans yielded, all their loops together."""
    mine = plan["Actual Rows"] * plan["Actual Loops"] if plan.get("Relation Name") == "usage_report" else 0
    return int(mine) + sum(visited(part) for part in plan.get("Plans", []))


def test_what_stands_in_the_way_of_a_push_is_found_among_its_own_reports(world: World) -> None:
    tenants = [f"t{number}" for number in range(TENANTS)]
    world.link(*tenants)
    for tenant in tenants:
        world.use(tenant, 5)
    world.freeze()
    world.sql(
        "INSERT INTO billing.fence SELECT window_start - hour * interval '1 hour', revision, snapshot, frozen_at "
        f"FROM billing.fence, generate_series(1, {HOURS}) hour"
    )
    world.sql(
        "INSERT INTO billing.usage_report (tenant_id, window_start, side_start, side_end, revision, identifier, row_count, token_count, "
        "frozen_at, state, quarantined_at, quarantine_reason) SELECT tenant_id, window_start - hour * interval '1 hour', "
        "side_start - hour * interval '1 hour', side_end - hour * interval '1 hour', revision, identifier || hour, row_count, token_count, "
        f"frozen_at, 'quarantined', now(), 'no_customer' FROM billing.usage_report, generate_series(1, {HOURS}) hour"
    )
    world.sql("ANALYZE billing.usage_report")
    parameters = {"window_start": world.window.start, "now": now(), "shard": 0, "shard_count": 1, "last_report": 10**9}
    for name in ("items_in_the_way", "quarantine_unlinked", "waiting_reports"):
        with world.connect() as db:
            [(found,)] = db.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + PUSH[name], parameters)  # type: ignore[arg-type]
        plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
        assert visited(plan) <= 2 * TENANTS * (HOURS + 1) + 10 * TENANTS, (name, visited(plan))
