"""Delivers events to the webhook endpoints on this machine: signed as Stripe signs them, tried again, and troubled on demand.

Each endpoint has one delivery on its way at a time, in order of the events, unless they are to be shuffled. Attempts wait in the
system's time, since receivers live in it. What is pending survives a restart of the simulator, settings and retries do not.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from sandbox.stripe_simulator.clock import rfc3339
from sandbox.stripe_simulator.resources import core_events, events
from sandbox.stripe_simulator.resources.webhook_endpoints import is_on_this_machine
from sandbox.stripe_simulator.state import JsonObject, State

_SignatureClock = Literal["system", "simulator"]

#: Like Stripe's own: indented, and not a byte of it may change on the way.
_encode = json.JSONEncoder(indent=2, ensure_ascii=False).encode


class BadWebhookSettings(ValueError):
    """The settings of webhooks cannot be understood; the message says why."""


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """What the control route can set."""

    #: every event is posted so often, each copy with a signature of its own
    copies: int = 1
    #: the share of deliveries that never happen, 0 to 1: Stripe believes them delivered by nobody, and gives up
    drop_share: float = 0.0
    #: deliveries are held so long and then go out in an order drawn from the seed; 0 keeps their order
    shuffle_seconds: float = 0.0
    #: for what is dropped and how is shuffled
    seed: int = 0
    #: how often a post is tried until it is answered 2xx
    attempts: int = 4
    #: before the second attempt; doubled for each one after it
    retry_seconds: float = 0.1
    #: no answer for so long is none
    timeout_seconds: float = 5.0
    #: whose time the signature's `t` is: the receiver's tolerance is about its own clock
    signature_clock: _SignatureClock = "system"


def changed_settings(settings: WebhookSettings, given: dict[str, Any]) -> WebhookSettings:
    """Raises BadWebhookSettings."""
    known = asdict(settings)
    for name, value in given.items():
        if name == "signature_clock":
            good = value in get_args(_SignatureClock)
        else:
            whole = isinstance(known.get(name), int)
            good = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and value >= 0
        if name not in known or not good:
            raise BadWebhookSettings(f"{name}: settings are {', '.join(known)}; numbers, not negative, and a clock: system or simulator")
    return replace(settings, **given)


@dataclass(slots=True, eq=False)
class _Post:
    """One copy of a delivery."""

    delivery_id: str
    attempt: int = 0


class WebhookCourier:
    """Delivers what the state has pending. `commit` makes a recorded outcome last."""

    def __init__(self, state: State, commit: Callable[[], None]) -> None:
        self._state = state
        self._commit = commit
        self._forget_everything()

    def _forget_everything(self) -> None:
        self.settings = WebhookSettings()
        self._known: set[str] = set()
        self._held: list[_Post] = []
        self._release_timer: asyncio.TimerHandle | None = None
        self._release_count = 0
        self._queues: dict[str, deque[_Post]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._retries: set[asyncio.TimerHandle] = set()
        self._open_count = 0
        self._done = asyncio.Event()

    def collect(self) -> None:
        """Begin with what has become pending. To be called after every commit; costs nothing where there is nothing."""
        noticed = self._state.take_noticed("webhook_deliveries")
        for delivery_id in noticed:
            delivery = self._state.webhook_deliveries.get(delivery_id)
            if delivery is not None and delivery["status"] == "pending" and delivery_id not in self._known:
                self._known.add(delivery_id)
                self._begin(delivery)

    async def flush(self) -> dict[str, int]:
        """Wait until nothing is pending any more; returns how many deliveries ended how, since the last reset."""
        self.collect()
        while self._open_count:
            self._release()
            self._done.clear()
            await self._done.wait()
            self.collect()
        return self.counts()

    def counts(self) -> dict[str, int]:
        counted = Counter(delivery["status"] for delivery in self._state.webhook_deliveries.newest_first())
        return {status: counted[status] for status in ("pending", "delivered", "failed", "dropped", "undeliverable")}

    def change_settings(self, given: dict[str, Any]) -> None:
        self.settings = changed_settings(self.settings, given)

    def forget(self) -> None:
        """Nothing that was on its way is tried again, and the settings are as at first."""
        for timer in (*self._retries, *filter(None, [self._release_timer])):
            timer.cancel()
        for worker in self._workers.values():
            worker.cancel()
        self._done.set()
        self._forget_everything()

    # --- From pending to posted -------------------------------------------------------------------------------------------------

    def _begin(self, delivery: JsonObject) -> None:
        settings = self.settings
        if random.Random(f"{settings.seed}:{delivery['id']}").random() < settings.drop_share:
            self._record(delivery, "dropped")
            return
        posts = [_Post(delivery["id"]) for _ in range(max(settings.copies, 1))]
        self._open_count += len(posts)
        if settings.shuffle_seconds > 0:
            self._held += posts
            if self._release_timer is None:
                self._release_timer = asyncio.get_running_loop().call_later(settings.shuffle_seconds, self._release)
        else:
            for post in posts:
                self._queue(post)

    def _release(self) -> None:
        """Send what was held, shuffled."""
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None
        held, self._held = self._held, []
        if held:
            self._release_count += 1
            random.Random(f"{self.settings.seed}:{self._release_count}").shuffle(held)
        for post in held:
            self._queue(post)

    def _queue(self, post: _Post) -> None:
        endpoint_id = self._delivery(post)["endpoint"]
        self._queues.setdefault(endpoint_id, deque()).append(post)
        if endpoint_id not in self._workers:
            self._workers[endpoint_id] = asyncio.get_running_loop().create_task(self._work(endpoint_id))

    async def _work(self, endpoint_id: str) -> None:
        queue = self._queues[endpoint_id]
        while queue:
            await self._attempt(queue.popleft())
        del self._workers[endpoint_id]

    async def _attempt(self, post: _Post) -> None:
        post.attempt += 1
        delivery = self._delivery(post)
        endpoint = self._state.webhook_endpoints.get(delivery["endpoint"])
        if endpoint is None or "deleted" in endpoint:
            self._end(post, "failed")
            return
        if not is_on_this_machine(endpoint["url"]):  # it was moved away since
            self._end(post, "undeliverable")
            return
        body = self._body(delivery)
        answered = await _posted(endpoint["url"], body, self._signature(endpoint, body), self.settings.timeout_seconds)
        attempts = [*self._delivery(post)["attempts"], {"at": rfc3339(time.time_ns() // 1_000_000), "status": answered}]
        delivery = {**self._delivery(post), "attempts": attempts}
        if answered is not None and 200 <= answered < 300:
            self._end(post, "delivered", delivery)
        elif post.attempt >= self.settings.attempts:
            self._end(post, "failed", delivery)
        else:
            self._record(delivery, delivery["status"])
            self._try_again(post, self.settings.retry_seconds * 2 ** (post.attempt - 1))

    def _try_again(self, post: _Post, after_seconds: float) -> None:
        def again() -> None:
            self._retries.discard(timer)
            self._queue(post)

        timer = asyncio.get_running_loop().call_later(after_seconds, again)
        self._retries.add(timer)

    def _end(self, post: _Post, status: str, delivery: JsonObject | None = None) -> None:
        """A delivery of which any copy has arrived is delivered."""
        delivery = delivery or self._delivery(post)
        self._record(delivery, "delivered" if delivery["status"] == "delivered" else status)
        self._open_count -= 1
        if self._open_count == 0:
            self._done.set()

    def _record(self, delivery: JsonObject, status: str) -> None:
        self._state.put("webhook_deliveries", {**delivery, "status": status})
        self._commit()

    # --- What is posted ---------------------------------------------------------------------------------------------------------

    def _delivery(self, post: _Post) -> JsonObject:
        delivery = self._state.webhook_deliveries.get(post.delivery_id)
        assert delivery is not None, "deliveries are forgotten only by a reset, which forgets the posts too"
        return delivery

    def _body(self, delivery: JsonObject) -> bytes:
        event = self._state.events.get(delivery["event"])
        if event is not None:
            return _encode(events.rendered(self._state, event)).encode()
        thin = self._state.core_events.get(delivery["event"])
        assert thin is not None, "events are never forgotten"
        return _encode(core_events.thin(thin)).encode()

    def _signature(self, endpoint: JsonObject, body: bytes) -> str:
        """Stripe's scheme: https://docs.stripe.com/webhooks#verify-manually; one `v1` for each secret that is good."""
        in_system_time = self.settings.signature_clock == "system"
        instant = int(time.time()) if in_system_time else self._state.clock.now_seconds()
        signed = f"{instant}.".encode() + body
        signatures = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in reversed(endpoint["secrets"])]
        return ",".join([f"t={instant}", *(f"v1={signature}" for signature in signatures)])


async def _posted(url: str, body: bytes, signature: str, timeout_seconds: float) -> int | None:
    """The status that a post was answered with, or None where there was no answer. The URL must be one of this machine."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    headers = {
        "Host": parts.netloc.rpartition("@")[2],
        "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        "Accept": "*/*; q=0.5, application/xml",
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Stripe-Signature": signature,
        "Connection": "close",
    }
    head = "".join(f"{line}\r\n" for line in (f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())))
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(host, parts.port or 80)
            writer.write(head.encode("latin-1") + b"\r\n" + body)
            status_line = await reader.readline()
            await reader.read()
        return int(status_line.split()[1])
    except (OSError, TimeoutError, ValueError, IndexError, UnicodeEncodeError):
        return None
    finally:
        if writer is not None:
            writer.close()
