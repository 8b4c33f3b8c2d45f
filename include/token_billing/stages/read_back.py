"""Settling reports whose answer was lost for too long: Stripe's own summary of their minute, or their item's billing period, tells
whether they arrived."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from uuid import uuid4

from aiolimiter import AsyncLimiter

from token_billing import metering
from token_billing.adapters import sending
from token_billing.adapters.database import Connection
from token_billing.adapters.stripe_gateway import Counted, StripeGateway
from token_billing.doubtful import DoubtfulReport, ReadBack
from token_billing.model import Clock, LedgerIdentity, Shard
from token_billing.settings import PushSettings
from token_billing.windows import Window

log = logging.getLogger(__name__)


async def read_back(
    db: Connection, stripe: StripeGateway, identity: LedgerIdentity, window: Window, shard: Shard, clock: Clock, settings: PushSettings
) -> None:
    """Reads what Stripe counts of every report of the shard that may have arrived but must not be resent: its minute where it is too
    old for that, its hour where a restored database may have forgotten more. What is present is accepted; what is absent twice, a day
    apart, may be sent again as a new generation; anything else stays for a person.

    Of a usage record Stripe tells its item's whole billing period. It is looked for there although it may be resent: Stripe takes
    nothing more of a period that is over. What is proven absent begins again under its name."""
    found: Counter[ReadBack] = Counter()
    reads = AsyncLimiter(settings.reads_per_second, 1)

    async def counted(report: DoubtfulReport) -> Counted | None:
        await reads.acquire()
        return await stripe.sink(report.destination.sink).counted_around(report)

    with _readable(db, window, shard, clock, settings.lease) as reports:
        while group := list(islice(reports, settings.concurrency)):
            for report, around in zip(group, await asyncio.gather(*map(counted, group)), strict=True):
                verdict = ReadBack.UNCLEAR if around is None else _judge(db, report, around, clock)
                _act_on(db, identity, window, report, verdict, clock)
                found[verdict] += 1
    if found:
        told = ", ".join(f"{count} {verdict}" for verdict, count in found.items())
        log.info("window %s: of the reports that must not be resent blindly, Stripe's summaries show %s", window, told)


@contextmanager
def _readable(db: Connection, window: Window, shard: Shard, clock: Clock, lease: timedelta) -> Iterator[Iterator[DoubtfulReport]]:
    """The reports to read back. While a whole hour is read nobody else may send into it: those customers are leased, or left for later."""

    def reports() -> list[DoubtfulReport]:
        return sending.reports_to_read_back(db, window, shard, clock() - metering.RESEND_LIMIT)

    found = reports()
    if not any(report.forgotten for report in found):
        yield iter(found)
        return
    holder, read_until = str(uuid4()), time.monotonic() + lease.total_seconds() / 2
    leased, _ = sending.lease_customers(db, [report.destination.lease for report in found if report.forgotten], holder, lease)
    try:
        # safeguard: while an hour is read nobody sends into it
        yield (
            report for report in reports() if not report.forgotten or (report.destination.lease in leased and time.monotonic() < read_until)
        )
    finally:
        sending.release_leases(db, holder, ())


def _judge(db: Connection, report: DoubtfulReport, around: Counted, clock: Clock) -> ReadBack:
    if around.period is not None:
        other_tokens, doubtful_tokens = sending.usage_in_period(db, report, around.period)
        report = replace(report, other_tokens=other_tokens, doubtful_tokens=doubtful_tokens)
    return metering.judge_read_back(report, around.token_count, clock(), around.period)


def _act_on(db: Connection, identity: LedgerIdentity, window: Window, report: DoubtfulReport, verdict: ReadBack, clock: Clock) -> None:
    match verdict:
        case ReadBack.PRESENT:
            sending.accept_read_back(db, report, clock())
        case ReadBack.ABSENT:
            sending.note_absence(db, report, report.absent_since or clock(), clock())
        # safeguard: usage records keep their name and their time
        case ReadBack.PROVEN_ABSENT if report.destination.sink.takes_a_resend_at_any_age:
            sending.begin_again(db, report)
        case ReadBack.PROVEN_ABSENT:
            generation = report.generation + 1
            identifier = metering.identifier(identity.ledger_id, report.tenant_id, window, report.side, report.revision, generation)
            sending.begin_generation(db, report, identifier, clock())
        # safeguard: what is unclear was not absent
        case ReadBack.UNCLEAR:
            sending.note_absence(db, report, None, clock())
