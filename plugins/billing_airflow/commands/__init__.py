"""Commands for operators, a module a topic; `billing_airflow.__main__` joins them."""
