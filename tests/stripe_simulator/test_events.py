"""Snapshot events: what happened, when, and how the object was shown then; by requests and by time alone."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest

from sandbox.stripe_simulator.process import StripeSimulator
from stripe_description import assert_response_valid

MONTH = timedelta(days=31)


@pytest.fixture
def happened(raw):
    """The events of a type (or of all), oldest first."""

    def listed(event_type: str = "*") -> list[dict]:
        params: dict = {"limit": 100, **({} if event_type == "*" else {"type": event_type})}
        data: list[dict] = raw.get("/v1/events", params).body["data"]
        for event in data:
            shown = event["data"]["object"]
            path = {"subscription": "subscriptions", "checkout.session": "checkout/sessions"}.get(shown["object"], shown["object"] + "s")
            assert_response_valid("GET", f"/v1/{path}/{shown['id']}", 200, shown)
        return data[::-1]

    return listed


@pytest.fixture
def types(happened):
    return lambda: [event["type"] for event in happened()]


@pytest.fixture
def subscription(billing, meter, customer):
    """Metered by the token at $0.00002, for a month from now."""
    return billing.subscription(customer, billing.metered_price(meter))


def test_requests_make_events_in_order(raw, billing, types, happened, subscription, customer):
    """With the request that made them, and the object as it was answered."""
    assert types() == [
        "customer.created",
        "product.created",
        "price.created",
        "customer.updated",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    renamed = raw.post(f"/v1/customers/{customer}", {"name": "Ada", "metadata[a]": "b"}, key="my-key")
    event = happened()[-1]
    assert (event["object"], event["livemode"], event["api_version"]) == ("event", False, "2026-10-28.endive")
    assert event["data"] == {"object": renamed.body, "previous_attributes": {"name": None, "metadata": {"a": None}}}
    assert event["request"] == {"id": renamed.headers["request-id"], "idempotency_key": "my-key"}
    assert raw.get(f"/v1/events/{event['id']}").body == event
    raw.delete(f"/v1/customers/{customer}")
    assert types()[-2:] == ["customer.subscription.deleted", "customer.deleted"]
    assert happened()[-1]["data"]["object"]["name"] == "Ada"


def test_a_refused_request_and_a_change_of_nothing_make_no_event(raw, types, subscription):
    """Nor does a replayed answer."""
    path = f"/v1/subscriptions/{subscription['id']}"
    raw.post(path, {"description": "VIP"}, key="k")
    before = types()
    assert raw.post(path, {"description": "VIP"}, key="k").headers["idempotent-replayed"] == "true"
    raw.post(path, {"description": "VIP"})
    assert raw.post(path, {"cancel_at": 1}).status == 400
    assert types() == before


@pytest.mark.parametrize(
    "changes, previous",
    [
        ({"description": "VIP"}, {"description": None}),
        ({"metadata[tenant]": "t1"}, {"metadata": {"tenant": None}}),
        ({"pause_collection[behavior]": "void"}, {"pause_collection": None}),
        (
            {"cancel_at_period_end": "true"},
            {"cancel_at": None, "cancel_at_period_end": False, "canceled_at": None, "cancellation_details": {"reason": None}},
        ),
    ],
)
def test_every_update_of_a_subscription_tells_what_it_was_before(raw, happened, subscription, changes, previous):
    """Also of its metadata alone."""
    after = raw.post(f"/v1/subscriptions/{subscription['id']}", changes).body
    event = happened("customer.subscription.updated")[-1]
    assert event["data"] == {"object": after, "previous_attributes": previous}


def test_items_changed_by_themselves_update_their_subscription(raw, billing, happened, subscription):
    """Added, changed, removed: each is one event, which shows all items before and after."""
    added = raw.post("/v1/subscription_items", {"subscription": subscription["id"], "price": billing.price()}).body["id"]
    raw.post(f"/v1/subscription_items/{added}", {"quantity": 3})
    raw.delete(f"/v1/subscription_items/{added}")
    events = happened("customer.subscription.updated")
    counts = [
        (len(event["data"]["previous_attributes"]["items"]["data"]), len(event["data"]["object"]["items"]["data"])) for event in events
    ]
    assert counts == [(1, 2), (2, 2), (2, 1)]


def test_a_roll_over_happens_at_its_instant_though_nobody_looked(raw, billing, happened, customer, subscription, now, pass_time):
    """The draft as it was then, the subscription's new period beside the old one, and an hour later the final invoice."""
    billing.send(customer, 100_000, now)
    pass_time(days=40)
    end = int((now + MONTH).timestamp())
    events = happened()  # the first ones are older than 30 days
    assert [(event["type"], event["created"] - end) for event in events] == [
        ("invoice.created", 0),
        ("customer.subscription.updated", 0),
        ("invoice.finalized", 3600),
        ("invoice.paid", 3600),
        ("invoice.payment_succeeded", 3600),
    ]
    created, updated, finalized, *_ = (event["data"] for event in events)
    assert all(event["request"] == {"id": None, "idempotency_key": None} for event in events)
    assert (created["object"]["status"], finalized["object"]["status"], finalized["object"]["total"]) == ("draft", "open", 200)
    [item], [item_before] = updated["object"]["items"]["data"], updated["previous_attributes"]["items"]["data"]
    assert item_before["current_period_end"] == item["current_period_start"] == end
    assert updated["object"]["latest_invoice"] == created["object"]["id"] != updated["previous_attributes"]["latest_invoice"]
    assert raw.get(f"/v1/subscriptions/{subscription['id']}").body == updated["object"]


def test_trials_pauses_and_cancellations_end_by_themselves(raw, billing, happened, now, pass_time):
    """A trial's end and a pause's end are updates; what falls due to end is deleted, canceled at that instant."""
    price = billing.price()
    trial = billing.subscription(billing.customer(), price, trial_period_days=3)["id"]
    paused = billing.subscription(billing.customer(), price)["id"]
    resumes_at = int((now + timedelta(days=2)).timestamp())
    raw.post(f"/v1/subscriptions/{paused}", {"pause_collection[behavior]": "void", "pause_collection[resumes_at]": resumes_at})
    ending = billing.subscription(billing.customer(), price, cancel_at=int((now + timedelta(days=1)).timestamp()))["id"]
    begun = len(happened())
    pass_time(days=10)
    events = [event for event in happened()[begun:] if event["type"].startswith("customer.subscription")]
    day = 86_400
    assert [(event["data"]["object"]["id"], event["type"], event["created"] - int(now.timestamp())) for event in events] == [
        (ending, "customer.subscription.deleted", day),
        (paused, "customer.subscription.updated", 2 * day),
        (trial, "customer.subscription.updated", 3 * day),
    ]
    ended, resumed, activated = (event["data"] for event in events)
    assert (ended["object"]["status"], ended["object"]["ended_at"]) == ("canceled", events[0]["created"])
    assert resumed["previous_attributes"] == {"pause_collection": {"behavior": "void", "resumes_at": resumes_at}}
    assert (activated["previous_attributes"]["status"], activated["object"]["status"]) == ("trialing", "active")


def test_a_cancellation_at_period_end_is_told_with_its_last_invoice(raw, billing, happened, subscription, pass_time):
    """The usage of the last period, and no new one."""
    raw.post(f"/v1/subscriptions/{subscription['id']}", {"cancel_at_period_end": "true"})
    pass_time(days=33)
    pass_time(days=15)
    assert [event["type"] for event in happened()] == [
        "invoice.created",
        "customer.subscription.deleted",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]


def test_time_told_late_is_told_in_order(billing, happened, pass_time):
    """Of many subscriptions over months, passed at once or step by step."""
    weekly = billing.price(**{"recurring[interval]": "week"})
    for _ in range(3):
        billing.subscription(billing.customer(), weekly)
        pass_time(days=1)
    pass_time(hours=1)
    pass_time(days=22)
    created = [event["created"] for event in happened("invoice.created")]
    assert len(created) == 3 * 4
    assert all(earlier <= later for earlier, later in pairwise(created))


def history(raw, billing, pass_by, now) -> list[dict]:
    """Subscriptions that renew, change, pause and end, with usage between; `pass_by` takes the clock to an instant. All the events."""
    meters = [billing.meter(name) for name in ("tokens", "pure")]
    weekly = {"recurring[interval]": "week"}
    old, new = (billing.metered_price(meter, **weekly) for meter in meters)
    subscriptions = [billing.subscription(billing.customer(), old, **terms) for terms in ({}, {}, {"trial_period_days": 9}, {})]
    changed, paused, _, ended = (f"/v1/subscriptions/{one['id']}" for one in subscriptions)
    pass_by(now + timedelta(days=3))
    for one in subscriptions:
        billing.send(one["customer"], 50_000, now + timedelta(days=1))
    raw.post(changed, {"items[0][id]": subscriptions[0]["items"]["data"][0]["id"], "items[0][price]": new})
    raw.post(paused, {"pause_collection[behavior]": "void", "pause_collection[resumes_at]": int((now + timedelta(days=8)).timestamp())})
    pass_by(now + timedelta(days=7, minutes=30))
    for one in subscriptions:
        billing.send(one["customer"], 7_000_000, now + timedelta(days=2), event_name="tokens")
    raw.delete(ended, {"invoice_now": "true"})
    pass_by(now + timedelta(days=29))
    listed = raw.get("/v1/events", {"limit": 100}).body
    assert not listed["has_more"]
    return [{**event, "request": None} for event in listed["data"]]  # requests are numbered on across a reset


def test_how_the_clock_is_moved_changes_nothing(raw, billing, simulator, now):
    """Passed at once or in small steps, time makes the same events at the same instants, to the last figure and id."""

    def in_steps(until) -> None:
        while simulator.now() < until:
            simulator.set_clock(min(until, simulator.now() + timedelta(hours=5, minutes=7)))

    at_once = history(raw, billing, simulator.set_clock, now)
    assert len(at_once) > 60
    simulator.reset()
    assert history(raw, billing, in_steps, now) == at_once


def test_a_kill_repeats_and_loses_no_event(raw, billing, tmp_path, now):
    """Neither those of before nor those that time still owes."""
    http, made = type(raw), type(billing)
    first = StripeSimulator.start(state_dir=tmp_path, clock=now)
    made(http(first.base_url, first.api_key)).subscription(
        made(http(first.base_url, first.api_key)).customer(), made(http(first.base_url, first.api_key)).price()
    )
    first.set_clock(now + MONTH)
    before = http(first.base_url, first.api_key).get("/v1/events").body["data"]
    assert [event["type"] for event in before] == ["customer.subscription.updated", "invoice.created"]
    first.kill()
    with StripeSimulator.start(state_dir=tmp_path, clock=now) as second:
        again = http(second.base_url, second.api_key)
        assert again.get("/v1/events").body["data"] == before
        second.set_clock(now + MONTH + timedelta(hours=1))
        after = again.get("/v1/events").body["data"]
        assert [event["type"] for event in after[:3]] == ["invoice.payment_succeeded", "invoice.paid", "invoice.finalized"]
        assert after[3:] == before


def test_the_list_is_filtered_and_paged(raw, billing, subscription, now, pass_time):
    """By type, up to twenty types, a group of types, and time; newest first."""
    pass_time(seconds=10)
    billing.customer()

    def listed(**params) -> list[str]:
        return [event["type"] for event in raw.get("/v1/events", params).body["data"]]

    assert listed(type="customer.created") == ["customer.created"] * 2
    assert listed(type="invoice.*")[-1] == "invoice.created"
    assert listed(**{"types[0]": "customer.created", "types[1]": "price.created"}) == [
        "customer.created",
        "price.created",
        "customer.created",
    ]
    assert listed(**{"created[gt]": int(now.timestamp())}) == ["customer.created"]
    assert raw.get("/v1/events", {"type": "invoice.paid", "types[]": "invoice.paid"}).status == 400
    assert raw.get("/v1/events", {f"types[{number}]": "invoice.paid" for number in range(21)}).status == 400
    page = raw.get("/v1/events", {"limit": 4}).body
    rest = raw.get("/v1/events", {"limit": 100, "starting_after": page["data"][-1]["id"]}).body
    every = [*page["data"], *rest["data"]]
    assert page["has_more"] and every == raw.get("/v1/events", {"limit": 100}).body["data"]
    back = raw.get("/v1/events", {"ending_before": rest["data"][0]["id"], "limit": 2}).body["data"]
    assert back == page["data"][-2:]


def test_the_list_may_lag_behind(raw, billing, simulator, pass_time):
    """The event itself is there at once; the list shows it so long after it happened."""
    simulator.settings(events_delay_seconds=60)
    billing.customer()
    assert raw.get("/v1/events").body["data"] == []
    pass_time(seconds=59)
    assert raw.get("/v1/events").body["data"] == []
    pass_time(seconds=1)
    [event] = raw.get("/v1/events").body["data"]
    simulator.settings(events_delay_seconds=120)
    assert raw.get(f"/v1/events/{event['id']}").status == 200


def test_events_are_kept_for_30_days(raw, billing, pass_time):
    """Then neither the list nor their id knows them."""
    billing.customer()
    [event] = raw.get("/v1/events").body["data"]
    pass_time(days=30)
    assert raw.get("/v1/events").body["data"] == []
    assert raw.get(f"/v1/events/{event['id']}").status == 404


def test_the_sdk_reads_events(client, subscription, raw):
    """Of the version that it speaks."""
    raw.post(f"/v1/subscriptions/{subscription['id']}", {"metadata[a]": "b"})
    [event] = client.v1.events.list({"types": ["customer.subscription.updated"]}).data
    assert event.data.object["metadata"]["a"] == "b"
    assert client.v1.events.retrieve(event.id).type == "customer.subscription.updated"
