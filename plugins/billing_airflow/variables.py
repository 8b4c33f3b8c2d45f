"""What Airflow's own database keeps for the pipeline, because it is not restored together with the billing database.

`Variable.get` takes every trouble for a Variable that does not exist. Here that difference decides whether money may be sent, so the
question is asked without it, and without secrets backends, which nothing is written to."""

import sys

from airflow.sdk import Variable
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType

from token_billing.errors import BillingError


class AirflowVariables:
    """Keeps texts as Airflow's Variables. Tasks reach them through the API server, commands in the metadata database itself."""

    def read(self, name: str) -> str | None:
        """The text last written; None where there is none. Raises where that cannot be told."""
        return _of_task(name) if _in_a_task() else _stored(name)

    def write(
        self, name: str, text: str, description: str = "Kept by the billing pipeline, do not edit: see its runbook, Restored databases"
    ) -> None:
        """Keeps the text, whatever was kept before."""
        if _in_a_task():
            Variable.set(name, text, description=description)
        else:
            from airflow.models.variable import Variable as StoredVariable

            StoredVariable.set(name, text, description=description)


def _in_a_task() -> bool:
    return hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS")


def _of_task(name: str) -> str | None:
    from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable, VariableResult
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    try:
        answer = SUPERVISOR_COMMS.send(GetVariable(key=name))
    except AirflowRuntimeError as error:
        answer = error.error
    if isinstance(answer, VariableResult):
        return answer.value
    if isinstance(answer, ErrorResponse) and answer.error == ErrorType.VARIABLE_NOT_FOUND:
        return None
    raise BillingError(f"Airflow's Variable {name} could not be read: {answer}. Nothing was done; the task's next try asks again.")


def _stored(name: str) -> str | None:
    from airflow.models.variable import Variable as StoredVariable
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_session() as session:
            found = session.scalar(select(StoredVariable).where(StoredVariable.key == name))
            if found is None:
                return None
            text: str | None = found.get_val()
    except SQLAlchemyError as error:
        raise BillingError(f"Airflow's database could not be read, and with it how far the ledger was: {error}") from error
    if text is None:
        raise BillingError(f"Airflow's Variable {name} cannot be decrypted; give this shell the Fernet key of Airflow's servers")
    return text
