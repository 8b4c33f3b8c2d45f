"""What every DAG of the product shares: which failures time can heal, and how its tasks are tried again."""

from datetime import timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule, TriggerRule

from token_billing.errors import OperatorNeeded

#: An error that waits for a person fails at once, so that its alert comes now and not after four tries; any other is tried again.
RETRY_WHAT_TIME_CAN_HEAL = ExceptionRetryPolicy(
    rules=[RetryRule(exception=OperatorNeeded, action=RetryAction.FAIL, reason="somebody has to change something first")]
)

#: Tries for about an hour, which a passing trouble of Stripe's or of the database's seldom outlasts.
TASK_DEFAULTS = {
    "owner": "billing",
    "retries": 4,
    "retry_delay": timedelta(seconds=90),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=20),
    "retry_policy": RETRY_WHAT_TIME_CAN_HEAL,
    "execution_timeout": timedelta(minutes=50),
}


def ended_well() -> EmptyOperator:
    """A run's last task, behind all that must not fail: it does nothing, and a failure before it fails the run, which a task that runs
    whatever became of the others would hide."""
    return EmptyOperator(task_id="ended_well", trigger_rule=TriggerRule.NONE_FAILED, doc_md="Fails the run where a task before it failed.")
