"""The connection types that this project adds to Airflow's forms; read through `plugins/token_billing_airflow-….dist-info`, since Airflow
asks installed distributions for connection types and not plugins. Airflow reads this in every process: nothing is imported."""

from typing import Any


def provider_info() -> dict[str, Any]:
    """What Airflow shows in the form of a Stripe connection, and the hook that tests it."""
    return {
        "package-name": "token-billing-airflow",
        "name": "Token billing",
        "description": "Bills LLM token usage through Stripe.",
        "connection-types": [
            {
                "connection-type": "stripe",
                "hook-name": "Stripe",
                "hook-class-name": "billing_airflow.stripe_hook.StripeHook",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "port", "schema"],
                    "relabeling": {"password": "Secret key", "host": "API base"},
                    "placeholders": {"password": "sk_live_…, rk_live_… or sk_test_…", "host": "https://api.stripe.com"},
                },
                "conn-fields": {
                    "webhook_secret": {
                        "label": "Webhook signing secret",
                        "description": "whsec_…, of the endpoint /api/billing/webhook; while it is rolled both, separated by a space",
                        "schema": {"type": ["string", "null"], "format": "password"},
                    }
                },
            }
        ],
    }
