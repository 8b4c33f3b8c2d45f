"""What stands in for production on one machine: PostgreSQL, Stripe and an application that has users."""

from pathlib import Path

#: Creates the tables the application owns (``tenants``, ``token_usage``) where they do not exist yet; safe to run again.
APPLICATION_SQL: Path = Path(__file__).with_name("application.sql")
