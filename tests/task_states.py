"""How the tasks of an Airflow run ended."""

from typing import Any


def states(run: Any) -> dict[str, str]:
    """By task; of one that was mapped, how one of its instances ended."""
    return {instance.task_id: str(instance.state) for instance in run.get_task_instances()}
