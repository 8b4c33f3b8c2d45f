"""What every DAG of the product owes its readers and operators."""

import ast
import os
import subprocess
import sys
from typing import Any

import pytest

from sandbox.environment import ROOT

DAG_FILES = sorted((ROOT / "dags").glob("*.py"))


@pytest.fixture(scope="module")
def dags() -> dict[str, Any]:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(ROOT / "dags"))
    assert bag.import_errors == {}
    return bag.dags


def test_every_file_is_one_dag_of_its_name(dags: dict[str, Any]) -> None:
    """The DAG ids are the file names, for outside tools rely on them."""
    assert sorted(dags) == [file.stem for file in DAG_FILES]
    assert "report_usage" in dags


def test_every_dag_is_a_document(dags: dict[str, Any]) -> None:
    """Its module docstring is what the UI shows; every task says what it does in its own."""
    for file in DAG_FILES:
        dag = dags[file.stem]
        assert dag.doc_md == ast.get_docstring(ast.parse(file.read_text()), clean=False)
        assert dag.tags and all(task.owner == "billing" for task in dag.tasks)
        assert all(task.doc_md or task.python_callable.__doc__ for task in dag.tasks)


def test_every_task_is_tried_again_unless_a_person_is_needed(dags: dict[str, Any]) -> None:
    """And none runs for ever."""
    for dag in dags.values():
        for task in dag.tasks:
            assert task.retries >= 2 and task.retry_policy is not None and task.execution_timeout is not None


def test_a_failed_task_fails_its_run(dags: dict[str, Any]) -> None:
    """No run ends with a task that runs whatever became of those before it."""
    for dag in dags.values():
        assert not [leaf.task_id for leaf in dag.leaves if leaf.upstream_list and leaf.trigger_rule == "all_done"]


def test_every_schedule_gives_one_hour_of_utc_and_starts_no_flood(dags: dict[str, Any]) -> None:
    """A bare cron string would give a data interval of no length; catch-up would create a run for every hour since the start date."""
    timetable = dags["report_usage"].timetable
    assert (type(timetable).__name__, timetable.expression, str(timetable.timezone)) == ("CronDataIntervalTimetable", "0 * * * *", "UTC")
    assert not any(dag.catchup for dag in dags.values())


def test_reading_a_dag_does_no_input_or_output() -> None:
    """The DAG processor reads the files over and over: no connection, no variable, none of the heavy libraries."""
    script = (
        "import socket, sys, importlib.util\n"
        "import airflow.sdk\n"
        "def refuse(*_): raise AssertionError('a DAG file opens a connection when it is read')\n"
        "socket.socket.connect = socket.create_connection = refuse\n"
        "before = set(sys.modules)\n"
        "for file in sys.argv[1:]:\n"
        "    spec = importlib.util.spec_from_file_location('dag_file', file)\n"
        "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "heavy = {'stripe', 'pandas', 'psycopg', 'alembic', 'aiohttp'} & (set(sys.modules) - before)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins"}
    done = subprocess.run([sys.executable, "-c", script, *map(str, DAG_FILES)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_dag_file_only_says_when_and_in_what_order() -> None:
    """A task's body is an import and one call; longer work belongs to a stage."""
    for file in DAG_FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any("task" in ast.unparse(decorator) for decorator in node.decorator_list):
                assert len(node.body) <= 3, f"{file.name}: {node.name}"


def test_the_catalogue_says_what_the_dags_say() -> None:
    """docs/dags.md is generated."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/include:{ROOT}/plugins"}
    command = [sys.executable, str(ROOT / "scripts" / "dag_catalogue.py"), "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
