"""Settling reports whose answer was lost for too long: Stripe's own summary of their minute tells whether they arrived."""

import logging
from collections import Counter

from token_billing import metering
from token_billing.adapters import sending
from token_billing.adapters.database import Connection
from token_billing.adapters.stripe_gateway import StripeGateway
from token_billing.model import Clock, DoubtfulReport, LedgerIdentity, ReadBack, Shard
from token_billing.windows import MINUTE, Window

log = logging.getLogger(__name__)


async def read_back(db: Connection, stripe: StripeGateway, identity: LedgerIdentity, window: Window, shard: Shard, clock: Clock) -> None:
    """Reads the minute of every report of the shard that may have arrived but is too old for a blind resend. What is present is
    accepted; what is absent twice, a day apart, may be sent again as a new generation; anything else stays for a person."""
    found: Counter[ReadBack] = Counter()
    for report in sending.reports_to_read_back(db, window, shard, clock() - metering.RESEND_LIMIT):
        counted = await stripe.summed_usage(report.customer_id, report.meter_id, report.minute, report.minute + MINUTE)
        verdict = metering.judge_read_back(report, counted, clock())
        _act_on(db, identity, window, report, verdict, clock)
        found[verdict] += 1
    if found:
        told = ", ".join(f"{count} {verdict}" for verdict, count in found.items())
        log.info("window %s: of the reports too old to be resent blindly, Stripe's summaries show %s", window, told)


def _act_on(db: Connection, identity: LedgerIdentity, window: Window, report: DoubtfulReport, verdict: ReadBack, clock: Clock) -> None:
    match verdict:
        case ReadBack.PRESENT:
            sending.accept_read_back(db, report, clock())
        case ReadBack.ABSENT:
            sending.note_absence(db, report, report.absent_since or clock())
        case ReadBack.PROVEN_ABSENT:
            generation = report.generation + 1
            identifier = metering.identifier(identity.ledger_id, report.tenant_id, window, report.side, report.revision, generation)
            sending.begin_generation(db, report, identifier, clock())
        case ReadBack.UNCLEAR:
            sending.note_absence(db, report, None)
