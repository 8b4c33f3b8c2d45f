"""Bills token usage through Stripe, each token once. Imports no Airflow; see docs/ for the way a token travels."""
