"""What every DAG of the product shares: which failures time can heal."""

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from token_billing.errors import OperatorNeeded

#: An error that waits for a person fails at once, so that its alert comes now and not after four tries; any other is tried again.
RETRY_WHAT_TIME_CAN_HEAL = ExceptionRetryPolicy(
    rules=[RetryRule(exception=OperatorNeeded, action=RetryAction.FAIL, reason="somebody has to change something first")]
)
