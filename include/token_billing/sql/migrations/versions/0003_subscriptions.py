"""Stripe's events, the catalogue, and which subscription item bills a tenant when."""

from token_billing.adapters.migrations import run_sql

revision = "0003_subscriptions"
down_revision = "0002_adopt_token_usage"


def upgrade() -> None:
    run_sql(revision)
