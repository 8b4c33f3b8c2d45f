"""
### approve_held_usage

Asks a person about reports whose totals look wrong, before anything of them is sent: more tokens in one tenant's hour than
`BILLING_GATE_TOKENS`, or more than `BILLING_GATE_TIMES_HISTORY` times the tenant's own largest hour of the four weeks before.
Without those settings nothing is held. No other report waits for a held one.

1. **find_held** – held reports that nobody is being asked about.
2. **ask** – the question, under *Required actions* in the UI: tenant, hour, tokens, and what the gate allows. It waits for a day;
   then it fails, which alerts, and the next run asks again.
3. **decide** – an approved report is sent by the next run of `report_late_usage`, a refused one is quarantined. Who decided is kept.

The same from a shell: `python -m billing_airflow held`, `python -m billing_airflow decide`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.exceptions import HITLTimeoutError
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import CronDataIntervalTimetable, ExceptionRetryPolicy, RetryAction, RetryRule, dag, task, task_group

from billing_airflow.policy import TASK_DEFAULTS

APPROVE, REFUSE = "Approve", "Refuse"


@dag(
    schedule=CronDataIntervalTimetable("10 * * * *", timezone="UTC"),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=25,  # a run waits for its answers, for a day at most; the next ones ask about what came since
    doc_md=__doc__,
    tags=["billing", "stripe"],
    default_args=TASK_DEFAULTS,
)
def approve_held_usage() -> None:
    @task
    def find_held() -> list[dict[str, Any]]:
        """The questions to ask: report id, subject and body."""
        from billing_airflow import stages

        return stages.questions_about_held()

    @task_group
    def one_report(report_id: int, subject: str, body: str) -> None:
        ask = HITLOperator(
            task_id="ask",
            doc_md="Waits for somebody to approve or refuse the report.",
            subject=subject,
            body=body,
            options=[APPROVE, REFUSE],
            response_timeout=timedelta(hours=24),
            retry_policy=ExceptionRetryPolicy(
                rules=[RetryRule(exception=HITLTimeoutError, action=RetryAction.FAIL, reason="nobody answered; the next run asks again")]
            ),
        )

        @task
        def decide(report_id: int, answer: dict[str, Any]) -> str:
            """What was decided, by whom."""
            from billing_airflow import stages

            return stages.decide(report_id, answer["chosen_options"] == [APPROVE], answer["responded_by_user"])

        decide(report_id, ask.output)

    one_report.expand_kwargs(find_held())


approve_held_usage()
