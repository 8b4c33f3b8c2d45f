"""The stages as Airflow tasks call them: the window from the run's data interval, the ways out from its connections, and counts
back for XCom."""

from airflow.sdk import Context

from billing_airflow.connections import billing_clock, billing_db, stripe_target
from token_billing.model import Shard
from token_billing.settings import PushSettings, shards_for
from token_billing.stages import check_conservation as checking
from token_billing.stages import freeze as freezing
from token_billing.stages import mark_billed as marking
from token_billing.stages import push as pushing
from token_billing.stages.adopt import adopt_if_new
from token_billing.windows import Window, window_of


def freeze(context: Context) -> list[list[int]]:
    """Freezes the run's window, in a database adopted now if none of it was billed before; returns the shards to push, as
    [number, count]: none where nothing is left to send."""
    clock = billing_clock()
    adopt_if_new(billing_db, clock)
    frozen = freezing.freeze(billing_db, _window(context), clock)
    return [[shard.number, shard.count] for shard in shards_for(frozen.pending_count)]


def push(context: Context, shard: list[int]) -> dict[str, int]:
    """Pushes one shard of the run's window; returns reports by state."""
    target = stripe_target()
    settings = PushSettings.from_environment(target.secret_key)
    pushed = pushing.push(billing_db, target, _window(context), Shard(*shard), billing_clock(), settings)
    return {str(state): count for state, count in pushed.reports.items()}


def mark_billed(context: Context) -> dict[str, int]:
    """Marks the rows of the window's accepted reports; returns how many reports and rows."""
    marked = marking.mark_billed(billing_db, _window(context), billing_clock())
    return {"reports": marked.report_count, "rows": marked.row_count}


def check_conservation(context: Context) -> dict[str, int]:
    """The window's tokens by what became of them."""
    return checking.check_conservation(billing_db, _window(context))


def _window(context: Context) -> Window:
    return window_of(context.get("data_interval_start"), context.get("data_interval_end"))
