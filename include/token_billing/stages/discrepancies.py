"""discrepancies: what does not fit together, as people see it and deal with it."""

from token_billing.adapters import discrepancies, ledger
from token_billing.adapters.database import Connect, session
from token_billing.adapters.discrepancies import OpenDiscrepancy
from token_billing.errors import NoSuchDiscrepancy
from token_billing.model import Clock


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
