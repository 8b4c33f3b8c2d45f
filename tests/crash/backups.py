"""Copies of a history's database: one is taken, and later takes the database's place, as a restored backup does."""

import time

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

#: The server clears away behind clients that are gone; longer than this it never took.
CLEARED_S = 20


def back_up(dsn: str) -> None:
    """Keeps a copy of the database as it is; whoever is still connected is thrown out."""
    name = _name(dsn)
    with _server(dsn) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(f"{name}_copy")))
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(f"{name}_copy"), sql.Identifier(name))
        until = time.monotonic() + CLEARED_S
        while True:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            try:
                admin.execute(copy)
                return
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)


def restore(dsn: str) -> None:
    """The copy takes the database's place, and is used up."""
    name = _name(dsn)
    with _server(dsn) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        admin.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(f"{name}_copy"), sql.Identifier(name)))


def _name(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["dbname"])


def _server(dsn: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(make_conninfo(dsn, dbname="postgres"), autocommit=True)
