"""A Stripe connection has a form of its own, and its test tells whose key it holds."""

import asyncio
import json
import subprocess
import sys

import pytest
from tests.plugins.conftest import PrivateAirflow

from billing_airflow.empty_port import EmptyPortIsNull
from billing_airflow.stripe_hook import StripeHook
from sandbox.stripe_simulator.process import StripeSimulator


@pytest.fixture
def tested(simulator: StripeSimulator, monkeypatch: pytest.MonkeyPatch):
    """Tests a connection of these fields."""

    def test(**fields: object) -> tuple[bool, str]:
        connection = {"conn_type": "stripe", "password": simulator.api_key, "host": simulator.base_url, **fields}
        monkeypatch.setenv("AIRFLOW_CONN_STRIPE_TESTED", json.dumps(connection))
        return StripeHook("stripe_tested").test_connection()

    return test


def test_a_good_key_is_told_with_its_account_and_mode(tested) -> None:
    """Also where host, port and scheme come apart, as a URI gives them."""
    works, said = tested()
    assert works and said.startswith("The key bills acct_") and said.endswith("(test mode).")
    assert tested(conn_type="generic")[0]


@pytest.mark.parametrize(
    ("fields", "because"),
    [
        ({"password": "sk_test_wrong"}, "Stripe refuses the secret key: "),
        ({"password": ""}, "has no password"),
        ({"host": "http://127.0.0.1:9"}, "Stripe could not be reached: "),
        ({"password": "sk_live_1"}, "the sandbox refuses a live Stripe key"),
        ({"host": "https://api.stripe.com"}, "the sandbox talks to its own simulator only"),
        ({"host": "ftp://127.0.0.1"}, "write a URL such as"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(tested, fields: dict[str, str], because: str) -> None:
    works, said = tested(**fields)
    assert not works and because in said
    assert "\n" not in said and "Traceback" not in said and len(said) < 300
    assert "sk_live_1" not in said


def test_airflow_knows_the_connection_type_without_importing_anything(private_airflow: PrivateAirflow) -> None:
    """The form's fields come from a distribution that is nothing but metadata."""
    code = """
import json, sys
from airflow.providers_manager import ProvidersManager
manager = ProvidersManager()
types = {one.connection_type: one for one in manager.iter_connection_type_hook_ui_metadata()}
print("ANSWER", json.dumps({
    "names": {name: types[name].hook_name for name in ("stripe", "postgres")},
    "hidden": types["stripe"].field_behaviour["hidden_fields"],
    "fields": [name for name in manager._connection_form_widgets_from_metadata if "stripe" in name],
    "version": manager.providers["token-billing-airflow"].version,
    "heavy": sorted({"stripe", "billing_airflow.stripe_hook"} & set(sys.modules)),
    "hook": manager.hooks["stripe"].connection_id_attribute_name,
    "testable": manager.hooks["stripe"].connection_testable,
}))
"""
    ended = subprocess.run([sys.executable, "-c", code], env=private_airflow.environ, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.split("ANSWER ")[1]) == {
        "names": {"stripe": "Stripe", "postgres": "Postgres"},
        "hidden": ["login", "port", "schema"],
        "fields": ["extra__stripe__webhook_secret"],
        "version": "0.1.0",
        "heavy": [],
        "hook": "stripe_conn_id",
        "testable": True,
    }


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (b'{"host": "x", "port": 0}', {"host": "x", "port": None}),
        (b'{"host": "x", "port": 443}', {"host": "x", "port": 443}),
        (b'{"host": "x", "port": null}', {"host": "x", "port": None}),
        (b'{"host": "x"}', {"host": "x"}),
        (b"[0]", [0]),
    ],
)
def test_an_empty_port_arrives_as_none_in_connection_tests_only(sent: bytes, arrives: object) -> None:
    """In one piece or several; everything else arrives as it was sent."""
    for pieces in ([sent], [sent[:5], sent[5:], b""]):
        assert json.loads(arriving("/airflow/api/v2/connections/test", pieces)) == arrives
        assert arriving("/api/v2/connections", pieces) == sent
    assert arriving("/api/v2/connections/test", [b"no JSON"]) == b"no JSON"


def arriving(path: str, pieces: list[bytes]) -> bytes:
    """What Airflow gets of a body that is posted to it in these pieces."""
    arrived = bytearray()
    messages = [{"type": "http.request", "body": piece, "more_body": number < len(pieces)} for number, piece in enumerate(pieces, 1)]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    async def airflow(scope, receive, send) -> None:
        more = True
        while more:
            message = await receive()
            arrived.extend(message["body"])
            more = message["more_body"]

    async def send(message: object) -> None: ...

    asyncio.run(EmptyPortIsNull(airflow)({"type": "http", "method": "POST", "path": path}, receive, send))
    return bytes(arrived)
