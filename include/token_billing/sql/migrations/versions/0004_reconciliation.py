"""What Stripe's meters and invoices say of what was billed, and what was decided about what differs."""

from token_billing.adapters.migrations import run_sql

revision = "0004_reconciliation"
down_revision = "0003_subscriptions"


def upgrade() -> None:
    run_sql(revision)
