"""Questions to people whose choices differ from one to the next."""

from airflow.providers.standard.operators.hitl import HITLOperator


class AskOperator(HITLOperator):
    """Asks with options that are known when the task runs, as its subject and body are."""

    template_fields = (*HITLOperator.template_fields, "options")
