"""Where the webhook's signing secret comes from, and how soon a rolled one counts."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.plugins.conftest import PrivateAirflow

from billing_airflow import webhook_secrets
from billing_airflow.webhook_secrets import KeptSecrets, find_webhook_secrets


@pytest.mark.parametrize(
    ("configured", "found"),
    [
        ("whsec_1", ("whsec_1",)),
        (" whsec_1, whsec_2\twhsec_3\n", ("whsec_1", "whsec_2", "whsec_3")),
        (["whsec_1", "whsec_2"], ("whsec_1", "whsec_2")),
    ],
)
def test_the_connection_holds_one_secret_or_several(monkeypatch: pytest.MonkeyPatch, configured: object, found: tuple[str, ...]) -> None:
    """And wins over the setting."""
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_of_the_setting")
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", json.dumps({"conn_type": "stripe", "extra": {"webhook_secret": configured}}))
    assert find_webhook_secrets() == found


@pytest.mark.parametrize("connection", [None, {"conn_type": "generic"}, {"conn_type": "stripe", "extra": {"webhook_secret": ""}}])
def test_without_one_in_the_connection_the_setting_counts(monkeypatch: pytest.MonkeyPatch, connection: object) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_1 whsec_2")
    if connection is None:
        monkeypatch.delenv("AIRFLOW_CONN_STRIPE_DEFAULT")
    else:
        monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", json.dumps(connection))
    assert find_webhook_secrets() == ("whsec_1", "whsec_2")


def test_at_last_what_set_up_has_left_counts(private_airflow: PrivateAirflow) -> None:
    """None at all is told as none."""
    code = """
from airflow.models.variable import Variable
from billing_airflow.variables import AirflowVariables
print("BEFORE", find_webhook_secrets())
AirflowVariables().write(WEBHOOK_SECRET_VARIABLE, "whsec_1")
print("AFTER", find_webhook_secrets())
Variable.delete(WEBHOOK_SECRET_VARIABLE)
"""
    printed = _printed(private_airflow, code)
    assert "BEFORE ()" in printed and "AFTER ('whsec_1',)" in printed


def test_a_secrets_backend_is_asked_as_for_every_connection(private_airflow: PrivateAirflow, tmp_path: Path) -> None:
    """One of Airflow's own, which reads a file."""
    connections = {"stripe_default": {"conn_type": "stripe", "password": "sk_test_1", "extra": {"webhook_secret": "whsec_in_the_file"}}}
    (tmp_path / "connections.json").write_text(json.dumps(connections))
    kept_there = private_airflow.with_settings(
        AIRFLOW__SECRETS__BACKEND="airflow.secrets.local_filesystem.LocalFilesystemBackend",
        AIRFLOW__SECRETS__BACKEND_KWARGS=json.dumps({"connections_file_path": str(tmp_path / "connections.json")}),
    )
    assert "FOUND ('whsec_in_the_file',)" in _printed(kept_there, 'print("FOUND", find_webhook_secrets())')


def _printed(airflow: PrivateAirflow, code: str) -> str:
    """By a process of that Airflow's, which has no connections in its environment."""
    clean = {name: text for name, text in airflow.environ.items() if not name.startswith("AIRFLOW_CONN_")}
    code = f"from billing_airflow.webhook_secrets import WEBHOOK_SECRET_VARIABLE, find_webhook_secrets\n{code}"
    ended = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


class Place:
    """Where a secret is looked up, and how often somebody did."""

    def __init__(self, *secrets: str) -> None:
        self.secrets, self.lookups = secrets, 0
        self.trouble: Callable[[], None] = lambda: None

    def find(self) -> tuple[str, ...]:
        self.lookups += 1
        self.trouble()
        return self.secrets


def test_a_webhook_costs_no_lookup_and_forgeries_few() -> None:
    async def many() -> None:
        place = Place("whsec_1")
        kept = KeptSecrets(place.find)
        assert set(await asyncio.gather(*(kept.known() for _ in range(50)))) == {("whsec_1",)}
        await asyncio.gather(*(kept.newest() for _ in range(50)))
        assert place.lookups == 1

    asyncio.run(many())


def test_a_rolled_secret_counts_with_the_first_webhook_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for all of those that come at once."""
    monkeypatch.setattr(webhook_secrets, "AGAIN_SECONDS", 0.2)

    async def roll() -> None:
        place = Place("whsec_old")
        kept = KeptSecrets(place.find)
        await kept.known()
        place.secrets = ("whsec_new",)
        await asyncio.sleep(0.25)
        assert await kept.known() == ("whsec_old",)
        assert set(await asyncio.gather(*(kept.newest() for _ in range(20)))) == {("whsec_new",)}
        assert place.lookups == 2

    asyncio.run(roll())


def test_while_secrets_cannot_be_looked_up_the_known_ones_count(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A secrets backend that fails, or that hangs."""
    monkeypatch.setattr(webhook_secrets, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(webhook_secrets, "LOOKUP_SECONDS", 0.1)

    async def fail() -> None:
        place = Place("whsec_1")
        kept = KeptSecrets(place.find)
        assert await kept.known() == ("whsec_1",)
        place.trouble = lambda: (_ for _ in ()).throw(ConnectionError("the vault is sealed"))
        assert await kept.newest() == ("whsec_1",)
        place.trouble = lambda: time.sleep(0.5)
        assert await kept.newest() == ("whsec_1",)

    asyncio.run(fail())
    assert "the vault is sealed" in caplog.text and "TimeoutError" in caplog.text
