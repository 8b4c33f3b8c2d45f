"""
### set_up_stripe

Has Stripe's account hold the catalogue: the products with their prices, a meter for each price that bills usage, and the webhook endpoint.
Triggered by hand. It plans; what it planned is carried out only where the form's `apply` is switched on.

1. **plan** – compares the catalogue with Stripe and shows what would be done, as a diff, in its log and its XCom. Changes nothing.
2. **apply** – makes what is missing and stores the price ids for the other DAGs. Skipped unless the form asks for it.

In the plan, `+` is created, `~` is a price that is made anew because Stripe's differs, `*` is updated, `!` is in the way, and what has
no sign is there already. No price is ever edited or archived: subscriptions go on under the one they have.

Prices are found by their lookup keys (`atom_saas_solo`, …), by what an earlier run stored, or by the settings `STRIPE_PRICE_ID_SOLO`,
`_TEAM`, `_ENTERPRISE`, `_MANAGED_AI_BUNDLED` and `_MANAGED_AI_PURE`; one that a setting names and that is not as the catalogue says is
refused. Safe to run again at any time, also after it was killed: what is there is kept.

With `webhook_url` (where Stripe reaches Airflow, ending in `/api/billing/webhook`) the webhook endpoint is made, and its signing secret
kept as the Variable `billing_stripe_webhook_secret`. Stripe sends the errors of its meters to no such endpoint: `sync_subscriptions`
reads them from its list of events.
"""

from airflow.sdk import Param, dag, get_current_context, task

from billing_airflow.policy import TASK_DEFAULTS


@dag(
    schedule=None,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["billing", "stripe"],
    default_args=TASK_DEFAULTS,
    params={
        "apply": Param(False, type="boolean", title="Apply", description="Carry the plan out. Otherwise it is only shown."),
        "webhook_url": Param(
            None,
            type=["null", "string"],
            title="Webhook URL",
            description="Where Stripe reaches this Airflow, e.g. https://airflow.example.com/api/billing/webhook. "
            "Without it webhook endpoints are left alone.",
        ),
    },
)
def set_up_stripe() -> None:
    @task
    def plan() -> str:
        """What would be done at Stripe, as a diff."""
        from billing_airflow import stages

        return stages.plan_set_up(get_current_context())

    @task
    def apply() -> str:
        """What was done at Stripe, as a diff."""
        from billing_airflow import stages

        return stages.apply_set_up(get_current_context())

    plan() >> apply()


set_up_stripe()
