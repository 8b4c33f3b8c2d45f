"""Adopted billing databases, copied from one: adopting takes ten times as long as copying."""

import psycopg
from psycopg import sql

from sandbox.postgres import PostgresServer
from sandbox.services import prepare_billing_database
from token_billing.adapters import ledger
from token_billing.adapters.clock import system_clock

TEMPLATE = "adopted"


def make_template(server: PostgresServer) -> str:
    """A database with the application's tables, adopted but for the ledger's identity; its name."""
    dsn = server.recreate_database(TEMPLATE)
    prepare_billing_database(dsn)
    with psycopg.connect(dsn) as db:
        db.execute("DELETE FROM billing.ledger")  # what a copy of another ledger is refused for
    return TEMPLATE


def adopted_copy(server: PostgresServer, template: str, name: str = "billing") -> str:
    """A fresh database with a ledger of its own in place of the one of that name; its URL."""
    fresh, of = sql.Identifier(name), sql.Identifier(template)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(fresh))
        # By the default strategy every page of the copy would go through the log: twice the work.
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(fresh, of))
    with psycopg.connect(server.dsn(name)) as db:
        ledger.create(db, None, system_clock())
    return server.dsn(name)
