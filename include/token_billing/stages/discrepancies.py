"""discrepancies: what does not fit together, as people see it and deal with it."""

from collections import Counter
from collections.abc import Collection

from token_billing.adapters import discrepancies, ledger
from token_billing.adapters.database import Connect, session
from token_billing.adapters.discrepancies import OpenDiscrepancy
from token_billing.errors import DiscrepanciesFound, NoSuchDiscrepancy
from token_billing.model import Clock
from token_billing.reconciliation import Cause, Tolerance


def open_discrepancies(connect: Connect) -> list[OpenDiscrepancy]:
    """All that nobody has dealt with, the newest first."""
    with session(connect) as db:
        ledger.identity(db)
        return discrepancies.open_discrepancies(db)


def settle(connect: Connect, discrepancy_id: int, by: str, clock: Clock) -> None:
    """Notes that a person has dealt with one; raises NoSuchDiscrepancy."""
    with session(connect) as db:
        ledger.identity(db)
        if not discrepancies.settle(db, discrepancy_id, by, clock()):
            raise NoSuchDiscrepancy(f"there is no open discrepancy {discrepancy_id}; `python -m billing_airflow discrepancies` lists them")


def require_none(connect: Connect, causes: Collection[Cause], tolerance: Tolerance) -> int:
    """Ends a comparison's run: returns how many of these causes are open within the tolerance; raises DiscrepanciesFound, naming the
    first of them, where any goes beyond it and nobody has dealt with it."""
    mine = [one for one in open_discrepancies(connect) if one.cause in causes]
    beyond = [
        one for one in mine if tolerance.exceeded_by(one.expected_token_count, one.found_token_count, one.expected_cents, one.found_cents)
    ]
    # safeguard: a discrepancy fails its run
    if beyond:
        counted = ", ".join(f"{count} {cause}" for cause, count in sorted(Counter(one.cause for one in beyond).items()))
        first = "; ".join(f"{one.cause} {one.tenant_id or one.stripe_id or one.report_id}: {one.details}" for one in beyond[:5])
        raise DiscrepanciesFound(
            f"{counted}. {first}. `python -m billing_airflow discrepancies` lists all of them; the runbook says what to do about each, "
            'under "Reconciliation". Settling one, or mending its cause, lets the next run pass.'
        )
    return len(mine)
