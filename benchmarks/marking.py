"""freeze and mark_billed of one large hour, beside one bare UPDATE of the same rows.

Every measured part runs in a database of its own, copied file by file from a template: the pages, their free space, the indexes and
the statistics are the same each time, which un-marking the rows again would not give. Statistics are older than the frozen hour, as they
are in life; what push would have recorded is written in between by SQL, unmeasured.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from benchmarks.comparison import Comparison, Say, time_ratio
from benchmarks.databases import APPLICATION_MADE_SQL, SANDBOX_SQL, Databases, usage_of_hour
from token_billing.adapters.clock import system_clock
from token_billing.adapters.database import Connect, session
from token_billing.stages.adopt import adopt
from token_billing.stages.freeze import freeze
from token_billing.stages.mark_billed import mark_billed
from token_billing.windows import HOUR, Window, last_closed_window

#: Hours of usage before the measured one, as large, and billed: the table is five times the hour.
EARLIER_HOURS = 4

#: Rows of one tenant in the hour, on average.
ROWS_PER_TENANT = 100

ADOPTED_LIMIT, OWN_LAYOUT_LIMIT = 1.4, 0.7

# Every tenant is unresolved or not by its id alone, so that the bare UPDATE can leave out the same ones; with this seed of the hash it is
# 30 % of the rows, too, where the hour has its usual million.
_BARE_UPDATE = "UPDATE token_usage SET billed = true WHERE NOT billed AND created_at >= %(start)s AND created_at < %(end)s"
_BARE_UPDATE_OF_SOME = """
UPDATE token_usage SET billed = true
FROM accepted_tenant
WHERE NOT billed AND created_at >= %(start)s AND created_at < %(end)s AND token_usage.tenant_id = accepted_tenant.tenant_id
"""
_ACCEPTED_TENANTS = """
CREATE TABLE accepted_tenant AS
SELECT DISTINCT tenant_id FROM token_usage WHERE NOT billed AND hashtextextended(tenant_id, 6) & 1023 >= 307
"""

_EARLIER_FENCES = """
INSERT INTO billing.fence (window_start, revision, snapshot, frozen_at)
SELECT start, 0, pg_current_snapshot(), start + interval '1 hour'
FROM generate_series(%(start)s::timestamptz, %(end)s::timestamptz - interval '1 hour', interval '1 hour') AS start
"""
_METER = "INSERT INTO billing.meter VALUES ('mtr_bench', 'tokens', 'stripe_customer_id', 'value')"
_EARLIER_REPORTS = """
INSERT INTO billing.usage_report
    (tenant_id, window_start, side_start, side_end, revision, identifier, row_count, token_count, frozen_at, state,
     sink, customer_id, event_name, meter_id, usage_item_id, event_time, first_attempted_at, attempt_count, accepted_at, billed_at)
SELECT tenant_id, hour, hour, hour + interval '1 hour', 0, 'earlier-' || hour || tenant_id, count(*), sum(input_tokens + output_tokens),
       hour + interval '1 hour', 'billed', 'billing_meters', 'cus_' || tenant_id, 'tokens', 'mtr_bench', 'si_' || tenant_id,
       hour + interval '30 seconds', %(now)s, 1, %(now)s, %(now)s
FROM (SELECT *, date_trunc('hour', created_at, 'UTC') AS hour FROM token_usage WHERE billed) usage
GROUP BY tenant_id, hour
"""

# What push leaves behind: every report attempted, most of them accepted.
_PUSHED = """
UPDATE billing.usage_report
SET state = CASE WHEN unresolved THEN 'unresolved' ELSE 'accepted' END,
    accepted_at = CASE WHEN NOT unresolved THEN %(now)s::timestamptz END,
    may_have_arrived = unresolved, attempt_count = 1, first_attempted_at = %(now)s, event_time = side_start + interval '30 seconds',
    sink = 'billing_meters', customer_id = 'cus_' || tenant_id, event_name = 'tokens',
    meter_id = 'mtr_bench', usage_item_id = 'si_' || tenant_id
FROM (SELECT id AS report_id, %(some_unresolved)s AND hashtextextended(tenant_id, 6) & 1023 < 307 AS unresolved
      FROM billing.usage_report WHERE window_start = %(start)s) answer
WHERE id = report_id
"""


@dataclass(frozen=True)
class _Part:
    """One thing to measure: in a copy of which template, and how; `run` returns the seconds taken and the rows marked."""

    name: str
    template: str
    run: Callable[[Connect], tuple[float, int]]
    marks_all: bool


def compare_marking(databases: Databases, row_count: int, repeats: int, say: Say) -> list[Comparison]:
    """Bills an hour of so many rows, in a table five times as large, in every way that is compared."""
    window = last_closed_window(system_clock())
    _prepare(databases, window, row_count, say)
    parts = [
        _Part("bare", "bare", lambda connect: _bare_update(connect, window, _BARE_UPDATE), True),
        _Part("adopted", "adopted", lambda connect: _freeze_and_mark(connect, window, some_unresolved=False), True),
        _Part("own", "own", lambda connect: _freeze_and_mark(connect, window, some_unresolved=False), True),
        _Part("bare_some", "bare", lambda connect: _bare_update(connect, window, _BARE_UPDATE_OF_SOME), False),
        _Part("adopted_some", "adopted", lambda connect: _freeze_and_mark(connect, window, some_unresolved=True), False),
        _Part("own_some", "own", lambda connect: _freeze_and_mark(connect, window, some_unresolved=True), False),
    ]
    seconds: dict[str, list[float]] = defaultdict(list)
    marked: dict[bool, set[int]] = defaultdict(set)
    for number in range(repeats):
        for part in parts:
            with databases.fresh_copy(part.template) as connect:
                taken, marked_rows = part.run(connect)
            seconds[part.name].append(taken)
            marked[part.marks_all].add(marked_rows)
        say(f"freeze + mark, round {number + 1} of {repeats}: " + ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in seconds.items()))
    # A fast wrong answer is no answer.
    if marked[True] != {row_count} or len(marked[False]) != 1:
        raise AssertionError(f"of {row_count} rows the parts marked {marked[True]}, and {marked[False]} where some reports were unresolved")
    return _comparisons(seconds, row_count, marked[False].pop())


def _comparisons(seconds: dict[str, list[float]], row_count: int, some_count: int) -> list[Comparison]:
    bare, bare_some = f"bare UPDATE of {row_count:,} rows", f"bare UPDATE of the same {some_count:,} rows"
    adopted, own = "freeze + mark, adopted table", "freeze + mark, sandbox's layout"
    adopted_some, own_some = (f"{what}, 30 % unresolved" for what in (adopted, own))
    return [
        time_ratio("mark_adopted", adopted, bare, seconds["adopted"], seconds["bare"], ADOPTED_LIMIT),
        time_ratio("mark_own_layout", own, bare, seconds["own"], seconds["bare"], OWN_LAYOUT_LIMIT),
        time_ratio("mark_adopted_30_unresolved", adopted_some, bare_some, seconds["adopted_some"], seconds["bare_some"]),
        time_ratio("mark_adopted_30_unresolved_to_all", adopted_some, bare, seconds["adopted_some"], seconds["bare"], ADOPTED_LIMIT),
        time_ratio("mark_own_layout_30_unresolved", own_some, bare_some, seconds["own_some"], seconds["bare_some"]),
        time_ratio("mark_own_layout_30_unresolved_to_all", own_some, bare, seconds["own_some"], seconds["bare"], OWN_LAYOUT_LIMIT),
    ]


def _prepare(databases: Databases, window: Window, row_count: int, say: Say) -> None:
    """The three templates, holding the same rows: never adopted, adopted in mid-life, and in the sandbox's own layout."""
    tenant_count = max(1, row_count // ROWS_PER_TENANT)
    earlier = [Window(window.start - n * HOUR) for n in range(EARLIER_HOURS, 0, -1)]

    def insert_earlier(connect: Connect) -> None:
        with connect() as db:
            for hour in earlier:
                usage_of_hour(db, hour, row_count, tenant_count, billed=True)

    def insert_measured(connect: Connect) -> None:
        with connect() as db:
            usage_of_hour(db, window, row_count, tenant_count)

    say(f"making a table of {(EARLIER_HOURS + 1) * row_count:,} rows and {tenant_count:,} tenants as an application makes it")
    bare = databases.create("bare", APPLICATION_MADE_SQL)
    insert_earlier(bare)
    databases.settle("bare")
    adopted = databases.copy("bare", "adopted")
    insert_measured(bare)
    with bare() as db:
        db.execute(_ACCEPTED_TENANTS)
    databases.settle("bare")

    say("adopting a copy of it")
    adopt(adopted, system_clock, cut_over=window.start)
    _report_earlier(adopted, earlier[0].start, window.start)
    insert_measured(adopted)
    databases.settle("adopted")

    say("making the same rows in the sandbox's layout")
    own = databases.create("own", SANDBOX_SQL)
    adopt(own, system_clock)
    insert_earlier(own)
    _report_earlier(own, earlier[0].start, window.start)
    insert_measured(own)
    databases.settle("own")


def _report_earlier(connect: Connect, start: datetime, end: datetime) -> None:
    """Reports of the earlier hours: the planner then knows the windows there were, and not the one that is measured."""
    with connect() as db:
        db.execute(_METER)
        db.execute(_EARLIER_FENCES, {"start": start, "end": end})
        db.execute(_EARLIER_REPORTS, {"now": system_clock()})


def _bare_update(connect: Connect, window: Window, update: str) -> tuple[float, int]:
    started = time.perf_counter()
    with connect() as db:
        marked = db.execute(update, {"start": window.start, "end": window.end}).rowcount  # type: ignore[arg-type]
    return time.perf_counter() - started, marked


def _freeze_and_mark(connect: Connect, window: Window, *, some_unresolved: bool) -> tuple[float, int]:
    started = time.perf_counter()
    freeze(connect, window, system_clock)
    frozen = time.perf_counter()
    with session(connect) as db:
        db.execute(_PUSHED, {"start": window.start, "now": system_clock(), "some_unresolved": some_unresolved})
        db.execute("CHECKPOINT")
    pushed = time.perf_counter()
    done = mark_billed(connect, window, system_clock)
    return frozen - started + time.perf_counter() - pushed, done.row_count
