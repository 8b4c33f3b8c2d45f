"""The hourly job this product replaces, as such jobs are written: sum what is unbilled, increment at Stripe, mark everything.

Kept to be timed beside ours, and nothing else: a row that arrives while it pushes is marked and never billed, a crash before the last
statement bills everything twice, usage is dated with the time of the push, unlinked tenants vanish, and a failure is a print.
"""

import stripe

from token_billing.adapters.database import Connect


def seed_job(connect: Connect, client: stripe.StripeClient, event_name: str) -> int:
    """Bills whatever is unbilled now; returns how many rows it marked."""
    with connect() as db:
        usage = db.execute(
            "SELECT tenant_id, stripe_customer_id, sum(input_tokens + output_tokens) "
            "FROM token_usage JOIN tenants ON tenants.id = tenant_id "
            "WHERE billed = false AND stripe_usage_item_id IS NOT NULL GROUP BY tenant_id, stripe_customer_id"
        ).fetchall()
    for tenant_id, customer_id, tokens in usage:
        try:
            client.v1.billing.meter_events.create(
                {"event_name": event_name, "payload": {"stripe_customer_id": customer_id, "value": str(tokens)}}
            )
        except stripe.StripeError as error:
            print(f"Failed to report usage of tenant {tenant_id}: {error}")
    with connect() as db:
        return db.execute("UPDATE token_usage SET billed = true WHERE billed = false").rowcount
