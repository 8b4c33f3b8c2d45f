"""The ledger's tables."""

from token_billing.adapters.migrations import run_sql

revision = "0001_ledger"
down_revision = None


def upgrade() -> None:
    run_sql(revision)
