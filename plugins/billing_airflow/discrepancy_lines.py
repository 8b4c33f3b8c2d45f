"""Discrepancies as people read them."""

from collections.abc import Iterator

from token_billing.adapters.discrepancies import OpenDiscrepancy
from token_billing.rating import money


def as_line(one: OpenDiscrepancy) -> str:
    """What it is about, what was found, and by how much in tokens and money it differs from our books."""
    window = one.window_start and f"{one.window_start:%Y-%m-%dT%H:%MZ}"
    named = {"tenant": one.tenant_id, "report": one.report_id, "Stripe's": one.stripe_id, "from": window}
    about = ", ".join(f"{what} {name}" for what, name in named.items() if name)
    return f"{one.id}: {one.cause}, {about}: {'; '.join(_told(one))} ({one.found_at:%Y-%m-%dT%H:%MZ})"


def _told(one: OpenDiscrepancy) -> Iterator[str]:
    yield one.details or "see the runbook"
    if one.expected_token_count is not None and one.found_token_count is not None:
        yield f"{one.expected_token_count:,} tokens expected, {one.found_token_count:,} found"
    if one.expected_cents is not None and one.found_cents is not None and one.currency is not None:
        yield f"{money(one.expected_cents, one.currency)} expected, {money(one.found_cents, one.currency)} found"
