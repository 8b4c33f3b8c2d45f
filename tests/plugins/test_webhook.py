"""The webhook keeps what Stripe signed, once, and nothing else; whatever is sent to it, it answers in one sentence."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plugins.webhook_server import WebhookServer, kept_events, told, webhook_server

from signed_events import SECRET, body_of, meter_error_event, signed, subscription_event

SNAPSHOT = ("evt_1", "customer.subscription.updated", "webhook")


@pytest.fixture
def configured(billing_dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The billing database, and a signing secret, as Airflow's connections."""
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", billing_dsn.replace("postgresql://", "postgres://"))
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", json.dumps({"conn_type": "stripe", "extra": {"webhook_secret": SECRET}}))
    return billing_dsn


@pytest.fixture
def server(configured: str) -> Iterator[WebhookServer]:
    with webhook_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "billing_airflow")


def test_an_event_is_kept_as_it_came(server: WebhookServer, configured: str) -> None:
    """With what it is about; a thin one, too."""
    event = subscription_event()
    assert server.deliver(event) == 200
    assert server.deliver(meter_error_event()) == 200
    assert kept_events(configured) == [SNAPSHOT, ("evt_thin_1", "v1.billing.meter.error_report_triggered", "webhook")]
    with psycopg.connect(configured) as db:
        columns = "livemode, api_version, subscription_id, customer_id, payload, handled_at, extract(epoch FROM happened_at)::bigint"
        kept = db.execute(f"SELECT {columns} FROM billing.stripe_event WHERE event_id = 'evt_1'").fetchone()
    assert kept == (False, event["api_version"], "sub_1", "cus_1", event, None, event["created"])


def test_an_event_that_comes_again_is_kept_once(server: WebhookServer, configured: str) -> None:
    """Replayed to the byte, sent again with a new signature, and many times at once."""
    body = body_of(subscription_event())
    headers = signed(body)
    with ThreadPoolExecutor(8) as many:
        assert set(many.map(lambda _: told(server.post(body, headers)), range(32))) == {200}
    assert server.deliver(subscription_event()) == 200
    assert kept_events(configured) == [SNAPSHOT]


def test_what_nobody_wants_is_answered_and_not_kept(server: WebhookServer, configured: str) -> None:
    assert server.deliver(subscription_event(event_type="charge.succeeded")) == 200
    assert kept_events(configured) == []


def test_what_stripe_did_not_sign_is_refused(server: WebhookServer, configured: str, caplog: pytest.LogCaptureFixture) -> None:
    """Forged, altered, truncated, unsigned, stale, or from the future."""
    body = body_of(subscription_event())
    refused = [
        (body, signed(body, "whsec_forged")),
        (body.replace(b"sub_1", b"sub_2"), signed(body)),
        (body[:-5], signed(body)),
        (b"", signed(body)),
        (body, {}),
        (body, {"Stripe-Signature": ""}),
        (body, {"Stripe-Signature": "v1=00"}),
        (body, signed(body, at=time.time() - 400)),
        (body, signed(body, at=time.time() + 400)),
    ]
    for sent, headers in refused:
        assert told(server.post(sent, headers)) == 400
    assert kept_events(configured) == []
    assert len([record for record in caplog.records if "refused" in record.message]) == len(refused)


NO_EVENTS = [
    b"",
    b"\x00",
    b"not JSON",
    b"[]",
    b"null",
    b'"event"',
    b"NaN",
    b"{" * 100_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"object": "event", "created": ' + b"9" * 5000 + b"}",
    body_of(subscription_event())[:-1],
    body_of(subscription_event(created="1e400")),
    body_of(subscription_event(created=1e400)),
    body_of(subscription_event(created=float("nan"))),
    body_of(subscription_event(created=-(10**18))),
    body_of(subscription_event(created=None)),
    body_of(subscription_event(object="payment_intent")),
    body_of(subscription_event(object=[])),
    body_of(subscription_event(id="")),
    body_of(subscription_event(id=["evt_1"])),
    body_of(subscription_event(id="evt_" + "1" * 300_000)),
    body_of(subscription_event(id="evt_\0")),
    body_of(subscription_event(id="evt_\ud800")),
    body_of(subscription_event(note="\0")),
    body_of(subscription_event(note="\ud800")),
    body_of(subscription_event(note=0)).replace(b'"note": 0', b'"note": 1e400'),
    body_of(subscription_event(note=0)).replace(b'"note": 0', b'"note": ' + b"[" * 100 + b"]" * 100),
    body_of(subscription_event(livemode="false")),
    body_of(subscription_event(data=[])),
    body_of(subscription_event(data={"object": [1]})),
    body_of(subscription_event(api_version="2025-02-24.acacia")),
    body_of(subscription_event(api_version="2999-01-01.zinnia")),
    body_of(subscription_event(api_version="latest")),
    body_of({**meter_error_event(), "created": "2026-09-21T14:13:20"}),
]


def test_what_is_no_event_is_refused_even_when_signed(server: WebhookServer, configured: str) -> None:
    """Not JSON, of no event's shape, of a version this code does not read, or nothing that a database holds."""
    for body in NO_EVENTS:
        assert told(server.post(body, signed(body))) == 400, body[:300]
    assert kept_events(configured) == []
    assert server.deliver(subscription_event()) == 200


def test_a_body_without_end_is_cut_off(server: WebhookServer, configured: str) -> None:
    """Whether it says its length or not; signed or not."""
    large = body_of(subscription_event(note="x" * 2**20))
    assert told(server.post(large, signed(large))) == 413
    assert told(server.post(iter([large[at : at + 10_000] for at in range(0, len(large), 10_000)]), signed(large))) == 413
    almost = body_of(subscription_event(note="x" * (500 * 1024)))
    assert told(server.post(almost, signed(almost))) == 200
    assert kept_events(configured) == [SNAPSHOT]


def test_a_body_that_is_announced_as_too_large_is_not_read(server: WebhookServer) -> None:
    """The answer comes while the sender has sent nothing of it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {2**20}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_sender_that_stops_in_the_middle_leaves_nothing(server: WebhookServer, configured: str) -> None:
    body = body_of(subscription_event())
    head = (
        f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nStripe-Signature: {signed(body)['Stripe-Signature']}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body[:-1])
    assert server.deliver(subscription_event("evt_next")) == 200
    assert [event_id for event_id, *_ in kept_events(configured)] == ["evt_next"]


def test_events_of_the_other_mode_are_refused(server: WebhookServer, configured: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once the ledger is pinned to one; until then both may come."""
    assert server.deliver(subscription_event("evt_before", livemode=True)) == 200
    with psycopg.connect(configured) as db:
        db.execute("UPDATE billing.ledger SET stripe_account_id = 'acct_1', stripe_livemode = false, pinned_at = now()")
    assert server.deliver(subscription_event("evt_live", livemode=True)) == 400
    assert "live mode" in caplog.text
    assert server.deliver(subscription_event("evt_test")) == 200
    assert [event_id for event_id, *_ in kept_events(configured)] == ["evt_before", "evt_test"]


def test_only_post_and_only_the_webhook_are_served(server: WebhookServer) -> None:
    """No documentation, no schema."""
    for path in ("/", "/docs", "/openapi.json", "/redoc", "/webhook/"):
        assert server._client.get(path).status_code == 404, path
    assert server._client.get("/webhook").status_code == 405


# --- where it cannot be kept ------------------------------------------------------------------------------------------


def test_without_a_secret_everything_is_refused(configured: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """And the log says why; Stripe sends again until there is one."""
    monkeypatch.setenv("AIRFLOW_CONN_STRIPE_DEFAULT", json.dumps({"conn_type": "stripe", "extra": {"webhook_secret": " "}}))
    monkeypatch.setattr("billing_airflow.webhook_secrets.AGAIN_SECONDS", 0.0)
    with webhook_server() as server:
        body = body_of(subscription_event())
        for headers in ({}, signed(body), signed(body, "")):
            assert told(server.post(body, headers)) == 503
        assert "no webhook signing secret is configured" in caplog.text
        assert kept_events(configured) == []
        monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", SECRET)
        assert server.deliver(subscription_event()) == 200


def test_while_the_database_is_away_stripe_is_asked_to_send_again(
    configured: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Unreachable, without a ledger, or not configured at all."""
    monkeypatch.setattr("billing_airflow.webhook.STORE_SECONDS", 1.5)
    for dsn in ("postgres://nobody@127.0.0.1:9/none", configured.replace("/billing", "/postgres"), None):
        if dsn is None:
            monkeypatch.delenv("AIRFLOW_CONN_BILLING_DB")
        else:
            monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", dsn)
        with webhook_server() as server:
            assert server.deliver(subscription_event()) == 503
    assert "has no ledger" in caplog.text
    monkeypatch.setenv("AIRFLOW_CONN_BILLING_DB", configured)
    with webhook_server() as server:
        assert server.deliver(subscription_event()) == 200


def test_connections_that_the_database_dropped_cost_no_event(server: WebhookServer, configured: str, postgres: object) -> None:
    assert server.deliver(subscription_event("evt_1")) == 200
    with psycopg.connect(configured, autocommit=True) as db:
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'billing' AND pid <> pg_backend_pid()")
    assert server.deliver(subscription_event("evt_2")) == 200


def test_a_database_that_hangs_is_not_waited_for(configured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is not kept after the sender was told to send it again."""
    monkeypatch.setattr("billing_airflow.webhook.STORE_SECONDS", 1.5)
    with webhook_server() as server:
        assert server.deliver(subscription_event("evt_warm")) == 200
        with psycopg.connect(configured) as other:
            other.execute("LOCK TABLE billing.stripe_event IN ACCESS EXCLUSIVE MODE")
            began = time.monotonic()
            assert server.deliver(subscription_event()) == 503
            assert time.monotonic() - began < 8
        assert [event_id for event_id, *_ in kept_events(configured)] == ["evt_warm"]
        assert server.deliver(subscription_event()) == 200


# --- anything at all --------------------------------------------------------------------------------------------------

_WORDS = st.text(max_size=20) | st.sampled_from(["event", "v2.core.event", "evt_1", "sub_1"])
_NAMES = st.text(max_size=10) | st.sampled_from(["object", "id", "data"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=5),
    max_leaves=12,
)
_FIELDS = st.sampled_from(["id", "object", "api_version", "created", "data", "livemode", "type"])
#: What HTTP lets a header be; the server itself refuses the rest.
_HEADERS = st.dictionaries(
    st.sampled_from([b"Stripe-Signature", b"Content-Type", b"Content-Encoding"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f")).map(lambda said: said.strip().encode("latin-1")),
)


def test_whatever_is_sent_unsigned_is_refused(server: WebhookServer, configured: str) -> None:
    """Any body under any header."""

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=300) | _JSON.map(body_of), _HEADERS)
    def sent(body: bytes, headers: dict[bytes, bytes]) -> None:
        assert told(server.post(body, headers)) == 400

    sent()
    assert kept_events(configured) == []


def test_whatever_is_signed_is_kept_or_refused(server: WebhookServer, configured: str, caplog: pytest.LogCaptureFixture) -> None:
    """Never a fault of ours; what is answered with 200 and wanted is there, and nothing else."""
    caplog.set_level(logging.CRITICAL)
    taken: set[str] = set()

    @settings(max_examples=400, deadline=None)
    @given(_JSON | st.dictionaries(_FIELDS, _JSON).map(lambda some: {**subscription_event(), **some}))
    def sent(event: object) -> None:
        status = server.deliver(event)
        assert status in (200, 400)
        if status == 200:
            assert isinstance(event, dict)
            taken.add(event["id"])

    sent()
    assert {event_id for event_id, *_ in kept_events(configured)} <= taken
