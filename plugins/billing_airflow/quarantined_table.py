"""Quarantined usage as people and programs read it."""

from collections.abc import Sequence
from typing import Any

from billing_airflow.text_table import columns
from token_billing.quarantine import ValuedUsage
from token_billing.rating import money
from token_billing.stages.quarantined import worth

_COLUMNS = ("reason", "tenant", "period", "hours", "tokens", "would add", "standing")


def as_table(usages: Sequence[ValuedUsage]) -> str:
    """One line a reason, tenant and period, and the sum. A period is the billing period from that day; `~` marks a calendar month, where
    the billing period is not known, and an amount at list price, where no subscription item says what tokens cost. The standing tells
    what was acknowledged, and what a proposal settled."""
    if not usages:
        return "nothing is quarantined"
    rows = [
        (
            one.usage.reason,
            one.usage.tenant_id,
            f"{one.usage.period.start:%Y-%m-%d}" if one.usage.is_billing_period else f"~{one.usage.period.start:%Y-%m}",
            f"{one.usage.hour_count:,}",
            f"{one.usage.token_count:,}",
            _amount(one),
            one.usage.standing,
        )
        for one in usages
    ]
    lines = columns(_COLUMNS, rows, left=(*_COLUMNS[:3], "standing"))
    return "\n".join([*lines, "", f"{worth(list(usages))} in all"])


def _amount(one: ValuedUsage) -> str:
    if one.amount_cents is None or one.usage.price is None:
        return "unknown"
    return ("~" if one.usage.is_list_price else "") + money(one.amount_cents, one.usage.price.currency)


def as_records(usages: Sequence[ValuedUsage]) -> list[dict[str, Any]]:
    """The same for programs: times in ISO 8601, amounts in the currency's minor unit, null where no price is known."""
    return [
        {
            "reason": one.usage.reason,
            "tenant_id": one.usage.tenant_id,
            "usage_item_id": one.usage.usage_item_id,
            "period_start": one.usage.period.start.isoformat(),
            "period_end": one.usage.period.end.isoformat(),
            "period_is": "billing_period" if one.usage.is_billing_period else "calendar_month",
            "standing": one.usage.standing or None,
            "hours": one.usage.hour_count,
            "tokens": one.usage.token_count,
            "amount_cents": one.amount_cents,
            "currency": one.usage.price and one.usage.price.currency,
            "price_id": None if one.usage.is_list_price else one.usage.price and one.usage.price.id,
            "is_list_price": one.usage.is_list_price,
            "billed_tokens_of_the_period": one.usage.billed_tokens,
        }
        for one in usages
    ]
