"""push: frozen reports go to Stripe. Note the attempt (commit) → send → record the outcome (commit); no transaction is open
while anything is on the network."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import uuid4

from aiolimiter import AsyncLimiter

from token_billing import metering
from token_billing.adapters import ledger, sending
from token_billing.adapters.database import Connect, Connection, session
from token_billing.adapters.stripe_gateway import StripeGateway, StripeTarget, stripe_gateway
from token_billing.errors import ReportsLeftOver, StripeRefusesKey, StripeUnavailable
from token_billing.model import (
    Clock,
    Destination,
    Outcome,
    PushedShard,
    QuarantineReason,
    ReportState,
    SendableReport,
    Shard,
    Undelivered,
    Unresolved,
)
from token_billing.settings import PushSettings
from token_billing.stages.delivery import Delivery
from token_billing.stages.read_back import read_back
from token_billing.windows import Window

log = logging.getLogger(__name__)

#: What Stripe answers to a wrong key, and to one that may not do this.
KEY_REFUSED = (401, 403)

#: Reports in these states still want an answer.
OPEN = (ReportState.FROZEN, ReportState.SENDING, ReportState.UNRESOLVED)


def push(connect: Connect, target: StripeTarget, window: Window, shard: Shard, clock: Clock, settings: PushSettings) -> PushedShard:
    """Sends the shard's open reports, many customers at once and one call at a time per customer and meter.

    Whatever happens, an accepted report stays accepted and nothing is sent that Stripe might count twice. Raises, after all that
    could be done is recorded: StripeRefusesKey, StripeUnavailable, WrongStripeAccount, and ReportsLeftOver where reports were
    refused or still have no answer."""
    return asyncio.run(_push(connect, target, window, shard, clock, settings))


async def _push(connect: Connect, target: StripeTarget, window: Window, shard: Shard, clock: Clock, settings: PushSettings) -> PushedShard:
    with session(connect) as db:
        identity = ledger.identity(db)
        sending.accept_zero_totals(db, window, clock())
        if any(state in OPEN for state in sending.shard_states(db, window, shard)):
            async with stripe_gateway(target) as stripe:
                ledger.pin_account(db, await stripe.account(), clock())
                await _look_up_items(db, stripe, window, shard, clock, settings)
                sending.quarantine_unlinked(db, window, shard, clock())
                await read_back(db, stripe, identity, window, shard, clock)
                await _Sender(db, Delivery(stripe, clock, settings, target.timeout_s), window, shard, clock, settings).send_all()
        return _conclude(window, shard, sending.shard_states(db, window, shard))


async def _look_up_items(db: Connection, stripe: StripeGateway, window: Window, shard: Shard, clock: Clock, settings: PushSettings) -> None:
    """Asks Stripe, once for each subscription item, which meter its price is backed by."""
    reads = AsyncLimiter(settings.reads_per_second, 1)
    unknown = sending.items_to_look_up(db, window, shard)
    for n in range(0, len(unknown), settings.concurrency):
        found = []
        for item in unknown[n : n + settings.concurrency]:
            await reads.acquire()
            found.append(asyncio.ensure_future(stripe.metered_item(item)))
        items = await asyncio.gather(*found)
        with db.transaction():  # one wait for the disk, not two an item
            sending.set_metered_items(db, items, clock())


class _Sender:
    """Goes through a shard's open reports in chunks, each leased, noted, sent and recorded before the next."""

    def __init__(self, db: Connection, delivery: Delivery, window: Window, shard: Shard, clock: Clock, settings: PushSettings) -> None:
        self._db, self._delivery, self._window, self._shard = db, delivery, window, shard
        self._clock, self._settings = clock, settings
        self._holder = str(uuid4())
        self._done: set[int] = set()

    async def send_all(self) -> None:
        """Until every report was attempted or set aside once; customers that another run holds are waited for, as long as a
        dead run's lease can last."""
        patience = 2 * self._settings.lease.total_seconds()
        waiting_since, done_before = time.monotonic(), 0
        while not await self._pass_through():
            if len(self._done) > done_before:
                waiting_since, done_before = time.monotonic(), len(self._done)
            elif time.monotonic() > waiting_since + patience:
                break
            await asyncio.sleep(1)

    async def _pass_through(self) -> bool:
        """One pass over the shard; says whether it left no report for a further one."""
        after_id, complete = 0, True
        while waiting := sending.waiting_reports(self._db, self._window, self._shard, after_id, self._settings.chunk_size):
            after_id = waiting[-1][0]
            chunk = [(report_id, destination) for report_id, destination in waiting if report_id not in self._done]
            if chunk:
                complete &= await self._send_chunk(chunk)
        return complete

    async def _send_chunk(self, chunk: Sequence[tuple[int, Destination]]) -> bool:
        leased_until = time.monotonic() + self._settings.lease.total_seconds()
        with self._db.transaction():  # note the attempts
            leased, holder_count = sending.lease_customers(self._db, [to for _, to in chunk], self._holder, self._settings.lease)
            mine = [(report_id, to) for report_id, to in chunk if (to.customer_id, to.meter.event_name) in leased]
            now = self._clock()
            to_send, to_quarantine = _sort_out(sending.reports_to_send(self._db, mine), now)
            sending.quarantine_reports(self._db, to_quarantine, now)
            sending.note_attempts(self._db, to_send, now)
        results = await self._delivery.send(to_send, leased_until, holder_count)
        with self._db.transaction():  # record the outcomes
            sending.record_outcomes(self._db, results, self._clock())
            sending.release_leases(self._db, self._holder)
        given_back = {result.report_id for result in results if not result.started}
        self._done.update(report_id for report_id, _ in mine if report_id not in given_back)
        _stop_if_useless([result.outcome for result in results if result.started])
        return len(mine) == len(chunk) and not given_back


def _sort_out(reports: Sequence[SendableReport], now: datetime) -> tuple[list[SendableReport], dict[int, QuarantineReason]]:
    """The reports to send, each with its event time, and why others must be quarantined. A report that is too old for a blind
    resend, but may have arrived, is neither: it stays unresolved."""
    to_send, to_quarantine = [], {}
    used: defaultdict[tuple[str, str], list[datetime]] = defaultdict(list)
    for report in reports:
        event_time = report.event_time
        if event_time is None:
            used_here = used[report.destination.customer_id, report.destination.meter.event_name]
            event_time = report.side.event_time([*report.used_event_times, *used_here])
            used_here.append(event_time)
        if metering.may_be_sent(report, event_time, report.may_have_arrived, now):
            to_send.append(replace(report, event_time=event_time, first_attempted_at=report.first_attempted_at or now))
        elif not report.may_have_arrived and (reason := metering.cannot_be_sent(report.token_count, event_time, now)):
            to_quarantine[report.id] = reason
    return to_send, to_quarantine


def _stop_if_useless(outcomes: Sequence[Outcome]) -> None:
    """Ends the push where a whole chunk got no usable answer: the next one would get none either."""
    troubles = [
        outcome
        for outcome in outcomes
        if isinstance(outcome, Undelivered | Unresolved) and (outcome.try_again or outcome.http_status in KEY_REFUSED)
    ]
    if not troubles or len(troubles) < len(outcomes):
        return
    for trouble in troubles:
        if trouble.http_status in KEY_REFUSED:
            raise StripeRefusesKey(
                "Stripe refused the secret key of connection `stripe_default`; put a valid key there and clear the task. "
                f"Stripe said: {trouble.message}"
            )
    raise StripeUnavailable(
        f"Stripe (connection `stripe_default`) gave no usable answer to {len(troubles)} reports, for instance: {troubles[0].message}. "
        "What has no known answer is sent again by the task's retries, under the same identifiers."
    )


def _conclude(window: Window, shard: Shard, states: dict[ReportState, tuple[int, str | None]]) -> PushedShard:
    counts = {state: count for state, (count, _) in states.items()}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    log.info("window %s shard %d/%d: %s", window, shard.number + 1, shard.count, told)
    left = [state for state in (*OPEN, ReportState.REJECTED) if state in states]
    if left:
        examples = "; ".join(f"{states[state][0]} reports {state} ({states[state][1] or 'no answer recorded'})" for state in left)
        raise ReportsLeftOver(
            f"window {window}: {examples}. What Stripe accepted stays accepted. The task's retries, or clearing it, send the open "
            'ones again; a rejected one waits for a person (runbook, "Rejected reports").'
        )
    return PushedShard(window, shard, counts)
