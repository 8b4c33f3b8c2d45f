"""An invoice as Stripe shows it, without taxes and discounts."""

from __future__ import annotations

from sandbox.stripe_simulator.clock import SECONDS_A_DAY
from sandbox.stripe_simulator.pagination import DEFAULT_LIMIT, list_of
from sandbox.stripe_simulator.resources.invoice_lines import lines_at
from sandbox.stripe_simulator.state import JsonObject, State


def rendered(state: State, invoice: JsonObject) -> JsonObject:
    """The invoice as Stripe shows it now, with the first page of its lines.

    What is due is the total and the customer's balance as it was before (negative: a credit), less what credit notes took off.
    """
    shown = lines_at(state, invoice, state.clock.now_ms())
    total = sum(line["amount"] for line in shown)
    is_paid, is_draft = invoice["status"] == "paid", invoice["status"] == "draft"
    customer = state.customers.get(invoice["customer"]) or {}
    starting_balance = customer.get("balance", 0) if is_draft else invoice["starting_balance"]
    before_payment, after_payment = credited(state, invoice)
    due = max(total + starting_balance, 0) - before_payment
    finalized_at, days_until_due = invoice["finalized_at"], invoice["days_until_due"]
    url = f"/v1/invoices/{invoice['id']}/lines"
    due_date = None if is_draft or days_until_due is None else finalized_at + days_until_due * SECONDS_A_DAY
    return {
        "id": invoice["id"],
        "object": "invoice",
        "account_country": "US",
        "account_name": None,
        "account_tax_ids": None,
        "amount_due": due,
        "amount_overpaid": 0,
        "amount_paid": due if is_paid else 0,
        "amount_paid_off_stripe": 0,
        "amount_remaining": 0 if is_paid else due,
        "amount_shipping": 0,
        "application": None,
        "attempt_count": 1 if is_paid and due else 0,
        "attempted": is_paid,
        "auto_advance": invoice["auto_advance"],
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None, "provider": None, "status": None},
        "automatically_finalizes_at": invoice["automatically_finalizes_at"],
        "billing_reason": invoice["billing_reason"],
        "collection_method": invoice["collection_method"],
        "created": invoice["created"],
        "currency": invoice["currency"],
        "custom_fields": None,
        "customer": invoice["customer"],
        "customer_email": customer.get("email"),
        "customer_name": customer.get("name"),
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": invoice["description"],
        "discounts": [],
        "due_date": due_date,
        "effective_at": finalized_at,
        "ending_balance": None if is_draft else min(total + starting_balance, 0),
        "footer": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "lines": list_of(shown[:DEFAULT_LIMIT], url, has_more=len(shown) > DEFAULT_LIMIT),
        "livemode": False,
        "metadata": invoice["metadata"],
        "next_payment_attempt": None,
        "number": invoice["number"],
        "on_behalf_of": None,
        "parent": None
        if invoice["subscription"] is None
        else {
            "quote_details": None,
            "subscription_details": {"metadata": {}, "subscription": invoice["subscription"]},
            "type": "subscription_details",
        },
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_end": invoice["period_end"],
        "period_start": invoice["period_start"],
        "post_payment_credit_notes_amount": after_payment,
        "pre_payment_credit_notes_amount": before_payment,
        "receipt_number": None,
        "starting_balance": starting_balance,
        "statement_descriptor": None,
        "status": invoice["status"],
        "status_transitions": {
            "finalized_at": finalized_at,
            "marked_uncollectible_at": invoice["marked_uncollectible_at"],
            "paid_at": invoice["paid_at"],
            "voided_at": invoice["voided_at"],
        },
        "subtotal": total,
        "subtotal_excluding_tax": total,
        "test_clock": None,
        "total": total,
        "total_discount_amounts": [],
        "total_excluding_tax": total,
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
        "webhooks_delivered_at": invoice["created"],
    }


def credited(state: State, invoice: JsonObject) -> tuple[int, int]:
    """What credit notes that are not void took off an invoice before it was paid, and gave back after."""
    notes = [note for note in state.credit_notes.newest_first_of(invoice["id"]) if note["status"] == "issued"]
    return sum(note["pre_payment_amount"] for note in notes), sum(note["post_payment_amount"] for note in notes)
