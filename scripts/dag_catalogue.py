"""Writes docs/dags.md from the DAGs' own docstrings and settings; `--check` fails where the file says something else."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CATALOGUE = ROOT / "docs" / "dags.md"

HEAD = """# DAG catalogue

Generated from the DAGs by `make docs`; edit their docstrings instead.
"""


def catalogue() -> str:
    """The catalogue as the DAGs are now; raises RuntimeError where one does not load."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(ROOT / "dags"))
    if bag.import_errors:
        raise RuntimeError(f"the DAGs do not load: {bag.import_errors}")
    parts = [HEAD]
    for dag_id, dag in sorted(bag.dags.items()):
        facts = {
            "schedule": _schedule(dag.timetable),
            "at once": f"{dag.max_active_runs} runs",
            "tags": ", ".join(sorted(dag.tags)),
            "tasks": " → ".join(f"`{task.task_id}`" for task in dag.topological_sort()),
        }
        table = "\n".join(f"| {name} | {fact} |" for name, fact in facts.items())
        text = (dag.doc_md or "").strip().removeprefix(f"### {dag_id}").strip()
        parts.append(f"## {dag_id}\n\n| | |\n|-|-|\n{table}\n\n{text}\n")
    return "\n".join(parts)


def _schedule(timetable: Any) -> str:
    """A cron expression, with the assets that start runs as well."""
    if by_time := getattr(timetable, "timetable", None):
        return f"{_schedule(by_time)}, and asset {', '.join(f'`{asset.name}`' for asset in timetable.asset_condition.objects)}"
    kind = type(timetable).__name__
    return "by hand" if kind == "NullTimetable" else str(getattr(timetable, "expression", kind))


def main() -> int:
    """Exit status: 1 where `--check` found the file out of date."""
    with tempfile.TemporaryDirectory() as airflow_home:  # Airflow writes its settings there when it is first imported
        os.environ |= {"AIRFLOW_HOME": airflow_home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        new = catalogue()
    old = CATALOGUE.read_text(encoding="utf-8") if CATALOGUE.exists() else ""
    if "--check" in sys.argv:
        if new != old:
            print("docs/dags.md is out of date: run `make docs` and commit it", file=sys.stderr)
        return int(new != old)
    CATALOGUE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
