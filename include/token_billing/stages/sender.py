"""Sending a shard's open reports in chunks: lease and note (commit) → send → record (commit).

While one chunk is on the network, the database is busy with its neighbours: what became of the one before is recorded, the one
after is noted. That one follows as the first runs out, or after it where they share a customer."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from uuid import uuid4

from token_billing import metering
from token_billing.adapters import ledger, sending
from token_billing.adapters.database import Connection
from token_billing.errors import BillingError, SendingPaused, StripeRefusesKey, StripeUnavailable, WrongSink
from token_billing.model import (
    AttemptResult,
    Clock,
    Destination,
    Outcome,
    QuarantineReason,
    SendableReport,
    Shard,
    Sink,
    Undelivered,
    Unresolved,
)
from token_billing.periods import FinalPeriods
from token_billing.settings import PushSettings
from token_billing.stages.delivery import Delivery
from token_billing.windows import Window

log = logging.getLogger(__name__)

#: A report's id, and where it would go.
Waiting = tuple[int, Destination]


@dataclass(frozen=True)
class Chunk:
    """Reports whose attempts are noted and whose customers are leased until then (monotonic clock)."""

    to_send: list[SendableReport]
    leased: set[tuple[str, str]]
    leased_until: float
    holder_count: int


class Sender:
    """Goes through a shard's open reports, each attempted or set aside once."""

    def __init__(
        self,
        db: Connection,
        delivery: Delivery,
        window: Window,
        shard: Shard,
        clock: Clock,
        settings: PushSettings,
        *,
        last_report: int,
        keep_mark: Callable[[], None],
        may_have_forgotten: bool,
        final_periods: FinalPeriods,
    ) -> None:
        """`last_report`: what was frozen after it is another push's. `keep_mark`: called when attempts are noted, before any of them is
        sent. `may_have_forgotten`: the database may know less of the window's reports than Stripe does, so that none of them is sent
        for the first time."""
        self._db, self._delivery, self._window, self._shard = db, delivery, window, shard
        self._clock, self._settings = clock, settings
        self._last_report = last_report
        self._keep_mark, self._may_have_forgotten, self._final_periods = keep_mark, may_have_forgotten, final_periods
        self._holder = str(uuid4())
        self._done: set[int] = set()
        self._passed_over = False
        self._pause: str | None = None
        self._wrong_sink: str | None = None

    async def send_all(self) -> None:
        """Customers that another run holds are waited for, as long as a dead run's lease can last.

        Raises, with every outcome recorded, SendingPaused, StripeUnavailable or StripeRefusesKey where a whole chunk got no
        usable answer, and WrongSink where reports can go to the other sink only: those stay as they are, all others are sent."""
        patience = 2 * self._settings.lease.total_seconds()
        waiting_since, done_before = time.monotonic(), 0
        while True:
            self._passed_over = False
            await self._pass_through()
            if not self._passed_over:
                break
            if len(self._done) > done_before:
                waiting_since, done_before = time.monotonic(), len(self._done)
            elif time.monotonic() > waiting_since + patience:
                break
            await asyncio.sleep(1)
        if self._wrong_sink:
            raise _wrong_sink(self._wrong_sink)

    async def _pass_through(self) -> None:
        results: list[AttemptResult] = []
        waiting = iter(sending.waiting_reports(self._db, self._window, self._shard, self._last_report))
        # The first chunk is half as large: while it is noted, nothing is on the network.
        chunk = await asyncio.to_thread(self._note_next, waiting, -(-self._settings.chunk_size // 2))
        on_the_network = self._start_sending(chunk)
        while chunk is not None:
            try:
                following = await asyncio.to_thread(self._record_and_note, results, chunk, waiting)
            except Exception:
                self._delivery.stop()
                await asyncio.to_thread(self._record, await on_the_network)
                raise
            # safeguard: chunks that share a customer follow one another
            if following is not None and following.leased & chunk.leased:  # one call at a time per customer
                await asyncio.wait([on_the_network])
            next_on_the_network = self._start_sending(following)
            results = await on_the_network
            outcomes = [result.outcome for result in results if result.started]
            self._wrong_sink = next(filter(None, map(_wrong_sink_refusal, outcomes)), self._wrong_sink)
            trouble = _hopeless(outcomes)
            if trouble is not None:
                self._delivery.stop()
                await asyncio.to_thread(self._record, results + await next_on_the_network)
                raise trouble
            chunk, on_the_network = following, next_on_the_network
        await asyncio.to_thread(self._record, results)
        if self._pause:
            raise SendingPaused(
                f"sending is paused {self._pause}. Nothing is lost by waiting; `python -m billing_airflow resume` lets it go on, and "
                "what waits is then sent by the DAG report_late_usage"
            )

    def _start_sending(self, chunk: Chunk | None) -> asyncio.Task[list[AttemptResult]]:
        if chunk is None:
            return asyncio.create_task(_nothing())
        return asyncio.create_task(self._delivery.send(chunk.to_send, chunk.leased_until, chunk.holder_count))

    def _record_and_note(self, results: list[AttemptResult], on_the_network: Chunk, waiting: Iterator[Waiting]) -> Chunk | None:
        # safeguard: what is on the network stays leased
        self._record(results, still_leased=on_the_network.leased)
        return self._note_next(waiting, self._settings.chunk_size)

    def _note_next(self, waiting: Iterator[Waiting], size: int) -> Chunk | None:
        """Leases and notes the next chunk of the pass; None where there is no further one."""
        fresh = ((report_id, to) for report_id, to in waiting if report_id not in self._done)
        wanted = list(islice(fresh, size))
        if wanted:
            # safeguard: a pause before each chunk
            self._pause = ledger.current_pause(self._db)
        if not wanted or self._pause:
            return None
        leased_until = time.monotonic() + self._settings.lease.total_seconds()
        with self._db.transaction():
            leased, holder_count = sending.lease_customers(self._db, [to.lease for _, to in wanted], self._holder, self._settings.lease)
            # safeguard: only leased customers
            mine = [(report_id, to) for report_id, to in wanted if to.lease in leased]
            now = self._clock()
            reports = sending.reports_to_send(self._db, mine)
            reasons = {report.id: why for report in reports if (why := metering.wrong_sink(report, self._settings.sink))}
            self._wrong_sink = next(iter(reasons.values()), self._wrong_sink)
            # safeguard: nothing goes to a sink that was not chosen
            to_send, to_quarantine = _sort_out([report for report in reports if report.id not in reasons], self._final_for, now)
            if to_quarantine:
                sending.quarantine_reports(self._db, to_quarantine, now)
            # safeguard: no first send before its hour was read back
            if self._may_have_forgotten:
                never_sent = [report for report in to_send if report.attempt_count == 0]
                to_send = [report for report in to_send if report.attempt_count > 0]
                sending.doubt_reports(self._db, never_sent, now)
            # safeguard: the attempt is noted before the send
            sending.note_attempts(self._db, to_send, now)
            if to_send:
                # safeguard: attempts are counted
                sending.count_attempts(self._db, len(to_send))
        if to_send:
            # safeguard: the kept mark before each send
            self._keep_mark()
        self._passed_over |= len(mine) < len(wanted)
        self._done.update(report_id for report_id, _ in mine)
        return Chunk(to_send, leased, leased_until, holder_count)

    def _final_for(self, report: SendableReport, event_time: datetime) -> bool:
        """Whether the report's billing period has a final invoice; of what may have been sent and forgotten, that is asked later."""
        if self._may_have_forgotten and report.attempt_count == 0:
            return False
        return self._final_periods.hold(report.destination.usage_item_id, event_time, self._clock())

    def _record(self, results: list[AttemptResult], still_leased: set[tuple[str, str]] | None = None) -> None:
        """Records outcomes and gives back the leases, except those that the chunk on the network needs."""
        with self._db.transaction():
            sending.record_outcomes(self._db, results, self._clock())
            sending.release_leases(self._db, self._holder, still_leased or set())
        given_back = {result.report_id for result in results if not result.started}
        self._done -= given_back
        self._passed_over |= bool(given_back)


def _sort_out(
    reports: Sequence[SendableReport], is_final: Callable[[SendableReport, datetime], bool], now: datetime
) -> tuple[list[SendableReport], dict[int, QuarantineReason]]:
    """The reports to send, each with its event time, and why others must be quarantined. A report that is too old for a blind
    resend, or of a period with a final invoice, but may have arrived, is neither: it stays as it is, to be read back. So does one for
    which its item's hour has no second left."""
    to_send, to_quarantine = [], {}
    used: defaultdict[tuple[str, str], list[datetime]] = defaultdict(list)
    for report in reports:
        used_here = used[report.destination.lease]
        # safeguard: minutes given away in the same chunk
        event_time = metering.event_time(report, [*report.used_event_times, *used_here])
        if event_time is None:
            log.error("%s has more reports in one hour than seconds: %d waits", report.destination.usage_item_id, report.id)
            continue
        used_here.append(event_time)
        final = is_final(report, event_time)
        # safeguard: a final invoice takes nothing more
        if not final and metering.may_be_sent(report, event_time, report.may_have_arrived, now):
            to_send.append(report._replace(event_time=event_time, first_attempted_at=report.first_attempted_at or now))
        # safeguard: only what cannot have arrived is quarantined
        elif not report.may_have_arrived:
            reason = metering.cannot_be_sent(report.token_count, event_time, now, report.destination.sink)
            if reason or final:
                to_quarantine[report.id] = reason or QuarantineReason.PERIOD_INVOICED
    return to_send, to_quarantine


async def _nothing() -> list[AttemptResult]:
    return []


def _wrong_sink(why: str) -> WrongSink:
    return WrongSink(
        f"usage cannot be reported to the sink that is set: {why}. Then clear the task; nothing was lost, and what waits goes out then."
    )


def _wrong_sink_refusal(outcome: Outcome) -> str | None:
    """What Stripe said of the sink, and what to change; the refusals that say so all come of usage records."""
    if isinstance(outcome, Undelivered) and outcome.wrong_sink:
        return f"Stripe said: {outcome.message} {metering.set_sink(Sink.BILLING_METERS)}"
    return None


def _hopeless(outcomes: Sequence[Outcome]) -> BillingError | None:
    """The error that ends the push where a whole chunk got no usable answer: the next one would get none either."""
    troubles = [
        outcome
        for outcome in outcomes
        if isinstance(outcome, Undelivered | Unresolved)
        and (outcome.try_again or outcome.http_status in metering.KEY_REFUSED or _wrong_sink_refusal(outcome))
    ]
    if not troubles or len(troubles) < len(outcomes):
        return None
    for trouble in troubles:
        if refusal := _wrong_sink_refusal(trouble):
            return _wrong_sink(refusal)
        if trouble.http_status in metering.KEY_REFUSED:
            return StripeRefusesKey(
                "Stripe refused the secret key of connection `stripe_default`; put a valid key there and clear the task. "
                f"Stripe said: {trouble.message}"
            )
    return StripeUnavailable(
        f"Stripe (connection `stripe_default`) gave no usable answer to {len(troubles)} reports, for instance: {troubles[0].message}. "
        "What has no known answer is sent again by the task's retries, under the same identifiers."
    )
