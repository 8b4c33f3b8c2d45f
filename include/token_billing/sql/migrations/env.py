"""Alembic's way in: runs the migrations on the connection it was handed, in one transaction."""

from alembic import context

connection = context.config.attributes["connection"]
connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS billing")
context.configure(connection=connection, version_table="migration", version_table_schema="billing")
with context.begin_transaction():
    context.run_migrations()
