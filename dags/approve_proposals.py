"""
### approve_proposals

Asks a person what to do about usage that came too late for its invoice, about what an invoice billed too much, about reports that
Stripe's meters proved to lack, and about quarantined usage whose cause is gone. Nothing of it is done before somebody decides.

1. **carry_out** – what was decided and is not done yet, because Stripe could not be reached or a run was killed. Skipped while
   sending is paused.
2. **find_proposals** – brings the proposals up to what the books say now; those that nobody is being asked about.
3. **ask** – the question, under *Required actions* in the UI: tenant, tokens, amount, the evidence, and the choices there are. It waits
   for a day; then it fails, which alerts, and the next run asks again.
4. **decide** – writes the decision down and carries it out: an invoice item, a credit note, a write-off, a resend, a release, or
   nothing. Who decided, and what it changed, is kept.

The same from a shell: `python -m billing_airflow proposals`, `python -m billing_airflow decide-proposal`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.sdk import CronDataIntervalTimetable, ExceptionRetryPolicy, RetryAction, RetryRule, dag, task, task_group

from billing_airflow.asking import AskOperator
from billing_airflow.policy import TASK_DEFAULTS


@dag(
    schedule=CronDataIntervalTimetable("20 * * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=25,  # a run waits for its answers, for a day at most; the next ones ask about what came since
    doc_md=__doc__,
    tags=["billing", "stripe"],
    default_args=TASK_DEFAULTS,
)
def approve_proposals() -> None:
    @task
    def carry_out() -> int:
        """How many decisions are done now."""
        from billing_airflow import stages

        return stages.apply_proposals()

    @task
    def find_proposals() -> list[dict[str, Any]]:
        """The questions to ask: the proposal's number, subject, body and options."""
        from billing_airflow import stages

        return stages.questions_about_proposals()

    @task_group
    def one_proposal(number: int, subject: str, body: str, options: list[str]) -> None:
        ask = AskOperator(
            task_id="ask",
            doc_md="Waits for somebody to choose what is done.",
            subject=subject,
            body=body,
            options=options,
            response_timeout=timedelta(hours=24),
            retry_policy=ExceptionRetryPolicy(
                rules=[RetryRule(exception=HITLTimeoutError, action=RetryAction.FAIL, reason="nobody answered; the next run asks again")]
            ),
        )

        @task
        def decide(number: int, answer: dict[str, Any]) -> str:
            """What was decided, by whom, and how far it is."""
            from billing_airflow import stages

            return stages.decide_proposal(number, answer["chosen_options"][0], answer["responded_by_user"])

        decide(number, ask.output)

    carry_out()
    one_proposal.expand_kwargs(find_proposals())


approve_proposals()
