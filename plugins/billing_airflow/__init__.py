"""The glue between Airflow and the product: connections in, alerts out. The only code of ours, beside the DAGs, that imports Airflow."""
