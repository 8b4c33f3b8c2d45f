"""The two ways out: the ledger in Postgres, and Stripe."""
