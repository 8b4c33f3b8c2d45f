"""check_conservation: at the end of every run, the tokens of the rows are the sum of what became of them."""

import logging

from token_billing.adapters import ledger
from token_billing.adapters.database import Connect, session
from token_billing.errors import ConservationBroken
from token_billing.model import Conservation
from token_billing.windows import Window

log = logging.getLogger(__name__)


def check_conservation(connect: Connect, window: Window) -> dict[str, int]:
    """The window's tokens by what became of them; raises ConservationBroken naming the tenants for which they do not add up."""
    with session(connect) as db:
        cut_over = ledger.identity(db).cut_over
        tenants = ledger.conservation(db, window.start, window.end)
    # Before the cut-over hour another job billed; its rows are marked without a report of ours.
    ours = cut_over is None or window.start >= cut_over
    broken = [tenant for tenant in tenants if not (tenant.holds if ours else tenant.holds_beside_another_job)]
    # safeguard: the conservation law
    if broken:
        raise ConservationBroken(
            f"window {window}: tokens do not add up for {len(broken)} tenants: "
            + "; ".join(map(_terms, broken[:5]))
            + '. Usage was changed, deleted or marked behind the ledger\'s back; see the runbook under "Conservation".'
        )
    totals = {
        "tokens": sum(tenant.row_tokens for tenant in tenants),
        "billed": sum(tenant.billed_tokens for tenant in tenants),
        "pending": sum(tenant.pending_tokens for tenant in tenants),
        "not_frozen": sum(tenant.unfrozen_tokens for tenant in tenants),
        "quarantined": sum(tenant.quarantined_tokens for tenant in tenants),
    }
    log.info("window %s: %s", window, ", ".join(f"{name.replace('_', ' ')} {tokens}" for name, tokens in totals.items()))
    return totals


def _terms(tenant: Conservation) -> str:
    return (
        f"{tenant.tenant_id!r} rows {tenant.row_tokens} ≠ billed {tenant.billed_tokens} + pending {tenant.pending_tokens} + not frozen "
        f"{tenant.unfrozen_tokens} + quarantined {tenant.quarantined_tokens} (rows marked billed: {tenant.marked_tokens})"
    )
