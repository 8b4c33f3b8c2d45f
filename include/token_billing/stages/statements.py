"""statements: what comparisons of invoices found, as people read it."""

from token_billing.adapters import ledger, statements
from token_billing.adapters.database import Connect, session
from token_billing.adapters.statements import Format, StatementHead
from token_billing.errors import NoSuchStatement

#: A run a day, and one whenever invoices become final: the newest of a few weeks.
MOST_LISTED = 200


def newest_statements(connect: Connect) -> list[StatementHead]:
    """The newest statements, the newest first."""
    with session(connect) as db:
        ledger.identity(db)
        return statements.newest(db, MOST_LISTED)


def statement(connect: Connect, statement_id: int | None, form: Format) -> str:
    """A statement, the newest where none is named; raises NoSuchStatement."""
    with session(connect) as db:
        ledger.identity(db)
        text = statements.text_of(db, statement_id, form)
    if text is None:
        which = "no statement yet" if statement_id is None else f"no statement {statement_id}"
        raise NoSuchStatement(f"there is {which}; DAG `reconcile_invoices` makes one whenever invoices have become final")
    return text
