"""The webhook and the connection form in Airflow's own API server, with connections and variables from where the UI puts them.

Slow: starts Airflow's API server.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
from playwright.sync_api import expect, sync_playwright
from tests.plugins.conftest import PrivateAirflow
from tests.plugins.test_alerts_of_runs import api_server
from tests.plugins.webhook_server import kept_events

from sandbox.airflow_api import AirflowApi
from sandbox.stripe_simulator.process import StripeSimulator
from signed_events import SECRET, body_of, signed, subscription_event

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Server:
    """A running API server."""

    url: str
    log: Path

    @property
    def api(self) -> AirflowApi:
        return AirflowApi(self.url)

    def forget_everything(self) -> None:
        """Connections and variables."""
        for kind, name in (("connections", "connection_id"), ("variables", "key")):
            for one in self.api.call("GET", f"/{kind}")[kind]:
                httpx.delete(f"{self.url}/api/v2/{kind}/{one[name]}", trust_env=False).raise_for_status()

    def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        return httpx.post(f"{self.url}/api/billing/webhook", content=body, headers=dict(headers), trust_env=False, timeout=20).status_code


@pytest.fixture(scope="module")
def server(private_airflow: PrivateAirflow) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    airflow = private_airflow.with_settings(
        API_PORT=str(port),
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__CORE__TEST_CONNECTION="Enabled",
        BILLING_SANDBOX="1",
    )
    for name in ("AIRFLOW_CONN_BILLING_DB", "AIRFLOW_CONN_STRIPE_DEFAULT"):
        airflow.environ.pop(name, None)
    with api_server(airflow) as url:
        running = Server(url, airflow.home / "api-server.log")
        yield running
        running.forget_everything()  # the metadata database is the session's


def test_stripe_reaches_the_inbox_through_airflow(server: Server, billing_dsn: str) -> None:
    """Without a login; with the database, and later the secret, as somebody enters them while the server runs."""
    body, faults = body_of(subscription_event()), server.log.read_text().count("Traceback")
    assert server.post(body, signed(body)) == 503
    assert "no webhook signing secret is configured" in server.log.read_text()

    info = psycopg.conninfo.conninfo_to_dict(billing_dsn)
    address = {"host": info["host"], "port": int(info["port"]), "login": info["user"], "schema": info["dbname"]}
    server.api.call("POST", "/connections", {"connection_id": "billing_db", "conn_type": "postgres", **address})
    server.api.call("POST", "/variables", {"key": "billing_stripe_webhook_secret", "value": SECRET})
    _until(lambda: server.post(body, signed(body)) == 200)
    assert kept_events(billing_dsn) == [("evt_1", "customer.subscription.updated", "webhook")]

    stripe = {"connection_id": "stripe_default", "conn_type": "stripe", "extra": json.dumps({"webhook_secret": "whsec_new whsec_old"})}
    server.api.call("POST", "/connections", stripe)
    other = body_of(subscription_event("evt_2"))
    _until(lambda: server.post(other, signed(other, "whsec_new")) == 200)
    assert server.post(other, signed(other, "whsec_old")) == 200
    assert server.post(other, signed(other)) == 400, "the connection's secrets win over the variable"
    assert [event_id for event_id, *_ in kept_events(billing_dsn)] == ["evt_1", "evt_2"]
    log = server.log.read_text()
    assert log.count("Traceback") == faults and SECRET not in log and "whsec_new" not in log


def test_statements_are_found_in_the_menu(server: Server, billing_dsn: str) -> None:
    """A page of the menu lists them, and leads to each as a page and as CSV."""
    info = psycopg.conninfo.conninfo_to_dict(billing_dsn)
    address = {"host": info["host"], "port": int(info["port"]), "login": info["user"], "schema": info["dbname"]}
    server.forget_everything()
    server.api.call("POST", "/connections", {"connection_id": "billing_db", "conn_type": "postgres", **address})
    pages = f"{server.url}/billing/statements"
    with psycopg.connect(billing_dsn) as db:
        db.execute(
            "INSERT INTO billing.statement (made_at, title, discrepancy_count, csv, html) "
            "VALUES (now(), 'Of <March>', 2, 'a,b', '<p>all</p>')"
        )
    with httpx.Client(trust_env=False, timeout=30) as reader:  # everybody is its administrator
        listing = reader.get(f"{pages}/")
        assert listing.status_code == 200 and "Of &lt;March&gt;" in listing.text and 'href="1.csv"' in listing.text
        assert reader.get(f"{pages}/1.html").text == "<p>all</p>"
        table = reader.get(f"{pages}/1.csv")
        assert (table.text, table.headers["content-type"]) == ("a,b", "text/csv; charset=utf-8")
        assert reader.get(f"{pages}/2.html").status_code == 404
    [view] = [one for plugin in server.api.call("GET", "/plugins")["plugins"] for one in plugin["external_views"]]
    assert (view["name"], view["href"]) == ("Billing statements", "/billing/statements/")


def test_a_connection_can_be_tested_from_its_form(server: Server, simulator: StripeSimulator, tmp_path: Path) -> None:
    """The form has fields of its own, and its button tells whose key it is."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine (Debian: apt-get install chromium), and CHROMIUM names none")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1300, "height": 1300})
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.goto(f"{server.url}/connections")
        page.get_by_role("button", name="Add Connection").click()
        form = page.get_by_role("dialog")
        form.locator("input[name=connection_id]").fill("stripe_tested")
        form.get_by_role("combobox").click()
        form.get_by_role("combobox").fill("Stripe")
        page.keyboard.press("Enter")
        form.get_by_text("API base").wait_for()
        form.locator("input[name=host]").fill(simulator.base_url)
        form.locator("input[name=password]").fill(simulator.api_key)
        form.get_by_role("button", name="Extra Fields", exact=True).click()
        form.get_by_text("Webhook signing secret").wait_for()
        form.locator("input[name=element_webhook_secret]").fill("whsec_new whsec_old")
        page.screenshot(path=tmp_path / "form.png")
        form.get_by_role("button", name="Save").click()

        row = page.get_by_role("row", name="stripe_tested")
        row.get_by_role("button", name="Test Connection").click()
        expect(page.get_by_text("The key bills acct_")).to_be_visible()
        page.screenshot(path=tmp_path / "tested.png")
        browser.close()
    print(f"screenshots: {tmp_path}")
    stored = server.api.call("GET", "/connections/stripe_tested")
    assert json.loads(stored["extra"]) == {"webhook_secret": "***"}, "Airflow hides it"


def _until(done: object, seconds: float = 20.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < give_up_at
        time.sleep(0.5)
