"""What every DAG of the product shares: which failures time can heal, and how its tasks are tried again."""

from datetime import timedelta

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

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
