"""The DAG report_late_usage through real Airflow task runs."""

from collections import Counter
from typing import Any

from sandbox.airflow_runs import AirflowRuns
from token_billing.stages.pause import pause_sending, resume_sending
from token_billing.windows import HOUR, Window
from world import World, now

#: What the fixture `airflow` runs.
DAG_ID = "report_late_usage"


def states(run: Any) -> dict[str, Counter[str]]:
    """How many instances of each task ended how."""
    found: dict[str, Counter[str]] = {}
    for instance in run.get_task_instances():
        found.setdefault(instance.task_id, Counter())[str(instance.state)] += 1
    return found


def run(airflow: AirflowRuns) -> Any:
    """A run at an instant of its own."""
    return airflow.run(now())


def test_late_rows_of_several_hours_and_hours_never_covered_are_billed(world: World, airflow: AirflowRuns) -> None:
    """Each window goes through all stages."""
    world.link("a", "b")
    world.use("a", 5)
    world.bill()
    world.use("a", 7)
    for hours in (3, 50):
        World(world.dsn, world.simulator, Window(world.window.start - hours * HOUR)).use("b", hours)
    done = run(airflow)
    assert str(done.state) == "success"
    assert {task: states(done)[task] for task in ("freeze", "push", "mark_billed", "check_conservation")} == {
        "freeze": {"success": 3},
        "push": {"success": 3},
        "mark_billed": {"success": 3},
        "check_conservation": {"success": 3},
    }
    assert world.marked() == world.at_stripe() == {"a": 12, "b": 53}


def test_with_nothing_late_the_run_succeeds_and_shows_it(world: World, airflow: AirflowRuns) -> None:
    world.link("a")
    world.use("a", 5)
    world.bill()
    done = run(airflow)
    assert (str(done.state), states(done)["push"]) == ("success", {"skipped": 1})
    assert len(world.simulator.meter_events()) == 1


def test_a_window_that_cannot_be_finished_holds_no_other_up(world: World, airflow: AirflowRuns) -> None:
    """Somebody tampered with one; the other is billed, and the run fails."""
    world.link("a", "b")
    world.use("a", 5)
    world.freeze()
    world.push()
    world.sql("ALTER TABLE token_usage DISABLE TRIGGER billing_keeps_usage")
    world.sql("UPDATE token_usage SET input_tokens = 6")
    world.use("a", 1)
    World(world.dsn, world.simulator, Window(world.window.start - HOUR)).use("b", 7)
    done = run(airflow)
    assert str(done.state) == "failed"
    assert states(done)["mark_billed"] == {"success": 1, "failed": 1}
    assert world.marked() == {"a": 1, "b": 7}


def test_while_sending_is_paused_pushes_are_skipped_and_after_it_nothing_is_left(world: World, airflow: AirflowRuns) -> None:
    world.link("a")
    world.use("a", 5)
    pause_sending(world.connect, "ada", "an incident", now)
    paused = run(airflow)
    assert (str(paused.state), states(paused)["push"], world.at_stripe()) == ("success", {"skipped": 1}, {})
    resume_sending(world.connect, "ada", now)
    world.use("a", 7)
    assert str(run(airflow).state) == "success"
    assert world.marked() == world.at_stripe() == {"a": 12}
