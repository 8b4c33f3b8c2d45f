"""What DAGs tell each other of; read with the DAG files, so it imports nothing heavy."""

from airflow.sdk import Asset

#: Invoices that became final, or were paid or voided: `sync_subscriptions` learns of it, `reconcile_invoices` compares them.
FINAL_INVOICES = Asset(name="final_invoices", uri="billing://final_invoices")
