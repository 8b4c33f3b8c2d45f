"""Statements of comparisons, kept where people find them. None of these functions opens or ends a transaction."""

from datetime import datetime
from typing import Literal, NamedTuple

from token_billing.adapters.database import Connection, storable
from token_billing.adapters.queries import queries
from token_billing.reconciliation import Statement

STATEMENTS = queries("statements.sql")

Format = Literal["csv", "html"]


class StatementHead(NamedTuple):
    """A statement without its text."""

    id: int
    made_at: datetime
    title: str
    discrepancy_count: int


def add(db: Connection, statement: Statement) -> None:
    """Keeps a statement."""
    db.execute(STATEMENTS["add"], {**vars(statement), "csv": storable(statement.csv), "html": storable(statement.html)})


def newest(db: Connection, most: int) -> list[StatementHead]:
    """The newest statements, the newest first."""
    return [StatementHead(*row) for row in db.execute(STATEMENTS["newest"], {"most": most})]


def text_of(db: Connection, statement_id: int | None, form: Format) -> str | None:
    """A statement as CSV or as a page, the newest where none is named; None where there is none."""
    found = db.execute(STATEMENTS["html"] if form == "html" else STATEMENTS["csv"], {"id": statement_id}).fetchone()
    return found[0] if found else None
