"""Meter error events: which reports Stripe accepted and then did not count, in Stripe's own words."""

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from token_billing.adapters import discrepancies, revocation
from token_billing.adapters.database import Connect, Connection, session
from token_billing.errors import NotRevocable, ReportsDisagree
from token_billing.metering import identifier_of_key
from token_billing.model import Clock
from token_billing.reconciliation import Cause
from token_billing.stages.revoke import revoke
from token_billing.stripe_events import StripeEvent

log = logging.getLogger(__name__)


class SampleError(NamedTuple):
    """One request that a meter found invalid: its idempotency key, and what Stripe says of it."""

    key: str
    code: str
    message: str


def apply_meter_error(db: Connection, event: StripeEvent, body: Mapping[str, Any] | None, now: datetime) -> None:
    """Notes each report that the event names, with Stripe's code and message, and what it counts beyond its samples, which only totals
    can settle. A name that no report has is another system's, or a generation given up."""
    reason = ((body or event.payload).get("data") or {}).get("reason") or {}
    samples = list(_samples(reason))
    counted = int(reason.get("error_count") or len(samples))
    unknown = []
    for sample in samples:
        report_id = revocation.report_attempted_as(db, identifier_of_key(sample.key))
        if report_id is None:
            unknown.append(sample)
        else:
            details = f"{sample.code}: {sample.message} (event {event.id})"
            discrepancies.note_about_report(db, Cause.METER_ERROR, report_id, identifier_of_key(sample.key), details, now)
    if unknown or counted > len(samples) or not samples:
        names = "; ".join(f"{sample.key} {sample.code}: {sample.message}" for sample in unknown[:5])
        details = (
            f"{counted} meter events were not counted, {len(samples)} of them named, {len(unknown)} under names that no report has. "
            f"{(reason.get('error_types') and _codes(reason)) or event.type}. {names}"
        )
        discrepancies.note(db, Cause.METER_ERROR, details.strip(), now, stripe_id=event.id)


def take_back(connect: Connect, clock: Clock) -> int:
    """Revokes the reports that error events named and that still count as accepted: their rows are not billed. They are kept aside, since
    what Stripe said of them it would say again; a person decides. Returns how many were revoked."""
    with session(connect) as db:
        disowned = revocation.disowned_by_error(db)
    revoked = 0
    for one in disowned:
        try:
            revoke(connect, one, clock, revoked_by="sync_subscriptions", resend=False)
            revoked += 1
        except (NotRevocable, ReportsDisagree) as refusal:  # its discrepancy stays open
            log.error("%s", refusal)
    return revoked


def _samples(reason: Mapping[str, Any]) -> Iterator[SampleError]:
    for kind in reason.get("error_types") or []:
        for sample in kind.get("sample_errors") or []:
            key = (sample.get("request") or {}).get("identifier")
            if key:
                yield SampleError(str(key), str(kind.get("code")), str(sample.get("error_message") or ""))


def _codes(reason: Mapping[str, Any]) -> str:
    return ", ".join(f"{kind.get('error_count')} × {kind.get('code')}" for kind in reason.get("error_types") or [])
