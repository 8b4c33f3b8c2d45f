"""What a subscription's parameters come to: its anchor, trial, payment terms and cancellation. Pure functions of parameters and time.

All times are seconds since 1970.
"""

from __future__ import annotations

from sandbox.stripe_simulator import errors
from sandbox.stripe_simulator.billing_periods import first_anchor
from sandbox.stripe_simulator.clock import SECONDS_A_DAY
from sandbox.stripe_simulator.params import Params
from sandbox.stripe_simulator.state import JsonObject


def anchor(params: Params, now: int, trial_end: int | None) -> int:
    if "billing_cycle_anchor" in params and "billing_cycle_anchor_config" in params:
        raise errors.exclusive_parameters("billing_cycle_anchor", "billing_cycle_anchor_config")
    if "billing_cycle_anchor" in params:
        if params["billing_cycle_anchor"] < now:
            raise errors.refused("billing_cycle_anchor cannot be in the past.", "billing_cycle_anchor")
        return int(params["billing_cycle_anchor"])
    if "billing_cycle_anchor_config" in params:
        return first_anchor(now, **params["billing_cycle_anchor_config"])
    return now if trial_end is None else trial_end


def anchor_config(params: Params) -> JsonObject | None:
    given = params.get("billing_cycle_anchor_config")
    return None if given is None else {"hour": None, "minute": None, "month": None, "second": None, **given}


def trial_end(params: Params, now: int) -> int | None:
    if "trial_end" in params and "trial_period_days" in params:
        raise errors.exclusive_parameters("trial_end", "trial_period_days")
    if params.get("trial_period_days"):
        return now + int(params["trial_period_days"]) * SECONDS_A_DAY
    trial_end = params.get("trial_end", "now")
    if trial_end == "now":
        return None
    if trial_end <= now:
        raise errors.refused("Invalid timestamp: must be an integer Unix timestamp in the future.", "trial_end")
    return int(trial_end)


def days_until_due(collection_method: str, given: int | None) -> int | None:
    if collection_method == "send_invoice":
        if given is None:
            raise errors.missing_parameter("days_until_due")
        return given
    return None


def billing_mode(kind: str) -> JsonObject:
    return {"flexible": {"proration_discounts": "included"} if kind == "flexible" else None, "type": kind}


def cancelling(cancel_at: int | None, *, at_period_end: bool, now: int) -> JsonObject:
    reason = None if cancel_at is None else "cancellation_requested"
    return {
        "cancel_at": cancel_at,
        "cancel_at_period_end": at_period_end,
        "canceled_at": None if cancel_at is None else now,
        "cancellation_details": {"comment": None, "feedback": None, "reason": reason},
    }
