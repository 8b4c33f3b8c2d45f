"""Adopts the application's token_usage."""

from token_billing.adapters.migrations import run_sql

revision = "0002_adopt_token_usage"
down_revision = "0001_ledger"


def upgrade() -> None:
    run_sql(revision)
