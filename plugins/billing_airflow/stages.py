"""The stages as Airflow tasks call them: windows from runs or as text, the ways out from Airflow's connections, and counts back for
XCom."""

import logging
from datetime import datetime
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.log import mask_secret

from billing_airflow.connections import billing_clock, billing_db, newest_billing_db, stripe_target
from billing_airflow.variables import AirflowVariables
from billing_airflow.webhook_secrets import WEBHOOK_SECRET_VARIABLE, find_webhook_secrets
from token_billing.adapters.database import Connect
from token_billing.adapters.stripe_gateway import StripeTarget
from token_billing.catalog_plan import Wanted
from token_billing.errors import FactsUnknown, SendingPaused
from token_billing.model import Shard
from token_billing.proposals import Decision
from token_billing.reconciliation import OF_METERS
from token_billing.settings import PushSettings, ReconcileSettings, price_overrides, shards_for
from token_billing.stages import apply_proposals as applying
from token_billing.stages import cancel_surplus as cancelling
from token_billing.stages import check_conservation as checking
from token_billing.stages import close_billing_periods as closing
from token_billing.stages import decide_proposals as deciding
from token_billing.stages import freeze as freezing
from token_billing.stages import hold, late_usage
from token_billing.stages import mark_billed as marking
from token_billing.stages import propose as proposing
from token_billing.stages import push as pushing
from token_billing.stages import reconcile_meters as reconciling_meters
from token_billing.stages import set_up_stripe as setting_up
from token_billing.stages import sync_subscriptions as syncing
from token_billing.stages.adopt import adopt_if_new
from token_billing.stages.discrepancies import require_none
from token_billing.windows import Window, window_of

log = logging.getLogger(__name__)


def run_window(context: Context) -> str:
    """The start of the window that the run's data interval covers, as text for XCom."""
    return window_of(context.get("data_interval_start"), context.get("data_interval_end")).start.isoformat()


def await_facts(window: str) -> bool:
    """Whether it is known which subscriptions began, changed and ended up to the window's end."""
    return _facts_are_known(_window(window))


def late_windows() -> list[str]:
    """The starts of the closed windows that hold something left to bill, and of which the facts are known."""
    late = late_usage.late_windows(_adopted_db(), billing_clock())
    newest = max(late, default=None)
    known = newest is None or _known_or_overdue(newest)
    return [window.start.isoformat() for window in late if known or window != newest]


def sync_subscriptions() -> dict[str, int]:
    """Follows Stripe's subscriptions; returns how many events were handled, and how many tenants' billing changed."""
    target, settings = _stripe()
    done = syncing.sync_subscriptions(_adopted_db(), target, billing_clock(), settings, price_overrides())
    return {"events": done.event_count, "tenants": len(done.tenants)}


def future_usage() -> dict[str, int]:
    """Tokens by tenant that are dated in hours to come."""
    return {tenant_id: tokens for tenant_id, (_, tokens) in late_usage.future_usage(_adopted_db(), billing_clock()).items()}


def freeze(window: str) -> list[list[int]]:
    """Freezes the window; returns the shards to push, as [number, count]: none where nothing is left to send."""
    frozen = freezing.freeze(_adopted_db(), _window(window), billing_clock())
    return [[shard.number, shard.count] for shard in shards_for(frozen.pending_count)]


def push(window: str, shard: list[int]) -> dict[str, int]:
    """Pushes one shard of the window; returns reports by state. Skipped while sending is paused."""
    target, settings = _stripe()
    try:
        pushed = pushing.push(newest_billing_db(), target, _window(window), Shard(*shard), billing_clock(), settings, AirflowVariables())
    except SendingPaused as pause:
        raise AirflowSkipException(str(pause)) from pause
    return {str(state): count for state, count in pushed.reports.items()}


def cancel_surplus() -> int:
    """Cancels what Stripe counts twice; returns how many events."""
    target, settings = _stripe()
    return cancelling.cancel_surplus(_adopted_db(), target, billing_clock(), settings)


def hold_and_release() -> dict[str, int]:
    """Holds incomplete drafts and lets complete ones go; returns how many are drafts, were held, let go and told of as incomplete."""
    target, pace = _stripe()
    done = closing.hold_and_release(_adopted_db(), target, billing_clock(), pace, ReconcileSettings.from_environment())
    return {"drafts": done.draft_count, "held": done.held_count, "released": done.released_count, "incomplete": done.incomplete_count}


def check_closings() -> None:
    """Fails where an invoice is, or is about to be, finalised without all usage of its periods."""
    closing.check_closings(_adopted_db(), billing_clock())


def questions_about_held() -> list[dict[str, Any]]:
    """What to ask about the held reports that nobody is being asked about."""
    return [
        {
            "report_id": held.report_id,
            "subject": f"Bill {held.token_count:,} tokens to {held.tenant_id} for {held.window}?",
            "body": (
                f"The hour comes to **{held.token_count:,}** tokens; the gate `{held.reason}` lets {held.limit_tokens:,} through.\n\n"
                f"*Approve* has report {held.report_id} sent to Stripe within the hour, *Refuse* quarantines it. Nothing else waits for it."
            ),
        }
        for held in hold.take_questions(_adopted_db(), billing_clock())
    ]


def decide(report_id: int, approve: bool, user: Any) -> str:
    """Carries a person's decision out; `user` as Airflow tells who answered."""
    by = _name_of(user)
    hold.decide(newest_billing_db(), report_id, approve=approve, by=by, clock=billing_clock())
    return f"{'approved' if approve else 'refused'} by {by}"


def apply_proposals(only: int | None = None) -> int:
    """Carries out what people decided about proposals, or about one; returns how many are done. Skipped while sending is paused."""
    target, settings = _stripe()
    try:
        return applying.apply_proposals(newest_billing_db(), target, billing_clock(), settings, only)
    except SendingPaused as pause:
        raise AirflowSkipException(str(pause)) from pause


def questions_about_proposals() -> list[dict[str, Any]]:
    """What to ask about the proposals that nobody is being asked about."""
    return [
        {
            "number": one.id,
            "subject": f"{one.what.kind} of {one.what.tenant_id or one.what.customer_id}: {one.what.worth}?",
            "body": (
                f"{one.what.evidence}.\n\nNothing is done before somebody decides; the runbook says what each choice does, under "
                f'"Proposals". The same from a shell: `python -m billing_airflow decide-proposal {one.id}`.'
            ),
            "options": [str(choice) for choice in one.what.choices],
        }
        for one in proposing.take_questions(_adopted_db(), billing_clock())
    ]


def decide_proposal(number: int, answer: str, user: Any) -> str:
    """Carries a person's decision about a proposal out; `user` as Airflow tells who answered."""
    decided = deciding.decide(newest_billing_db(), number, Decision(answer), _name_of(user), billing_clock())
    if decided.applied_at is None and decided.decision != Decision.DECLINED:
        apply_proposals(number)
    return decided.standing


def mark_billed(window: str) -> dict[str, int]:
    """Marks the rows of the window's accepted reports; returns how many reports and rows."""
    marked = marking.mark_billed(newest_billing_db(), _window(window), billing_clock())
    return {"reports": marked.report_count, "rows": marked.row_count}


def check_conservation(window: str) -> dict[str, int]:
    """The window's tokens by what became of them."""
    return checking.check_conservation(newest_billing_db(), _window(window))


def reconcile_meters() -> dict[str, int]:
    """Compares what Stripe's meters count with what was accepted; returns counts."""
    target, settings = _stripe()
    return reconciling_meters.reconcile_meters(_adopted_db(), target, billing_clock(), settings)


def require_meters_agree() -> int:
    """How many differences of meters are open within the tolerance; fails where any goes beyond it."""
    return require_none(newest_billing_db(), OF_METERS, ReconcileSettings.from_environment().tolerance)


def plan_set_up(context: Context) -> str:
    """What an apply would do at Stripe, as a diff."""
    return str(setting_up.plan_set_up(_adopted_db(), stripe_target(), _wanted(context), billing_clock()))


def apply_set_up(context: Context) -> str:
    """Has Stripe's account hold the catalogue; returns what was done, as a diff. Skipped unless the run's params ask for it."""
    if not context["params"]["apply"]:
        raise AirflowSkipException("this run only plans; trigger another with `apply` switched on to carry the plan out")
    return str(setting_up.apply_set_up(_adopted_db(), stripe_target(), _wanted(context), billing_clock(), _keep_webhook_secret))


def _name_of(user: Any) -> str:
    return str(user.get("name") or user.get("id") if isinstance(user, dict) else user or "somebody")


def _wanted(context: Context) -> Wanted:
    url = (context["params"]["webhook_url"] or "").strip() or None
    return Wanted(price_overrides(), webhook_url=url, secret_is_known=url is not None and bool(find_webhook_secrets()))


def _keep_webhook_secret(secret: str) -> None:
    mask_secret(secret)  # whatever logs it later shows stars
    AirflowVariables().write(WEBHOOK_SECRET_VARIABLE, secret, "The signing secret of Stripe's webhook endpoint, kept by set_up_stripe")


def _facts_are_known(window: Window) -> bool:
    target, settings = _stripe()
    return syncing.facts_are_known(_adopted_db(), target, window, billing_clock(), settings, price_overrides())


def _known_or_overdue(window: Window) -> bool:
    try:
        return _facts_are_known(window)
    except FactsUnknown as unknown:  # its own run has told of it
        log.warning("%s", unknown)
        return True


def _stripe() -> tuple[StripeTarget, PushSettings]:
    """Which Stripe, and how fast."""
    target = stripe_target()
    return target, PushSettings.from_environment(target.secret_key)


def _adopted_db() -> Connect:
    """The billing database, adopted now if none of it was billed before: whatever runs first finds it so."""
    adopt_if_new(newest_billing_db(), billing_clock())
    return billing_db


def _window(start: str) -> Window:
    return Window(datetime.fromisoformat(start))
