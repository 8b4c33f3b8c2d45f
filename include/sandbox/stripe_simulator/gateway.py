"""From an HTTP request to an answer: who asks, what with, whether it was asked before, and what is remembered of it.

Everything between two awaits is one step of the event loop, so requests never see each other half done.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import traceback
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sandbox.stripe_simulator import API_VERSION, LEGACY_API_VERSION, errors, form, idempotency
from sandbox.stripe_simulator.broken_connection import BrokenConnection
from sandbox.stripe_simulator.delayed_delivery import DelayedDeliveries
from sandbox.stripe_simulator.endpoint import Endpoint
from sandbox.stripe_simulator.expansion import expand
from sandbox.stripe_simulator.faults import Fault, FaultKind, FaultPlan
from sandbox.stripe_simulator.meter_event_log import MeterEvent
from sandbox.stripe_simulator.params import parse_fields
from sandbox.stripe_simulator.recording import Recorder
from sandbox.stripe_simulator.resources import EXPANDERS
from sandbox.stripe_simulator.state import JsonObject, State, scrambled
from sandbox.stripe_simulator.timekeeping import Timekeeper

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def to_bytes(answer: JsonObject | MeterEvent) -> bytes:
    return _encode(answer.as_json() if isinstance(answer, MeterEvent) else answer).encode()


@dataclass(slots=True)
class Answer:
    """What goes back: status, body, and the headers beyond those of every answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    #: what was asked, as far as it could be decoded: for the recording
    decoded: dict[str, form.Decoded] = field(default_factory=dict)
    #: empty where nothing was executed
    request_id: str = ""


def refusal(error: errors.StripeError) -> Answer:
    return Answer(error.status, to_bytes(error.body()), dict(error.headers))


class Gateway:
    """Answers Stripe's API from the state."""

    def __init__(self, state: State, api_keys: frozenset[str], recorder: Recorder | None = None) -> None:
        self._state = state
        self._api_keys = api_keys
        self._recorder = recorder
        self._keys_in_use: set[str] = set()
        self._request_count = 0
        self.timekeeper = Timekeeper(state)
        self.faults = FaultPlan()
        self.delayed = DelayedDeliveries(state, self._deliver)

    async def answer(self, request: Request, endpoint: Endpoint | None) -> Response:
        """Answer one request, unless it meets a fault; without an endpoint, refuse its URL as Stripe does."""
        try:
            if self.faults.is_armed and endpoint is not None:
                key = request.headers.get("idempotency-key")
                fault = self.faults.next_fault(request.method, request.url.path, key)
                if fault is not None:
                    return await self._break(request, endpoint, fault)
            return self._respond(request, await self._work_out(request, endpoint))
        except ClientDisconnect:
            return Response(status_code=400)  # the caller left before it had said everything; nobody reads this

    def forget_faults(self) -> None:
        """From now on all goes well, and what was held on its way never arrives."""
        self.faults.forget()
        self.delayed.forget()

    async def _break(self, request: Request, endpoint: Endpoint, fault: Fault) -> Response:
        """Carry out a fault. What the caller does not hear is not recorded as an answer."""
        match fault.kind:
            case "reset_before_effect":
                return BrokenConnection("reset")
            case "hang_before_effect":
                return BrokenConnection("hang")
            case "delayed_delivery":
                await self.delayed.hold(request, endpoint, fault.deliver_after_seconds)
                return BrokenConnection("reset")
            case "conflict":
                key = request.headers.get("idempotency-key", "(none)")
                return self._respond(request, refusal(errors.idempotency_key_in_use(key)))
            case "rate_limit":
                return self._respond(request, refusal(errors.rate_limited()))
            case "rate_limit_with_retry_after":
                return self._respond(request, refusal(errors.rate_limited(fault.retry_after_seconds)))
            case "lock_timeout":
                return self._respond(request, refusal(errors.lock_timed_out()))
            case "error_before_effect":
                return self._respond(request, refusal(errors.unexpected()))
            case "kept_error_before_effect" | "kept_error_after_effect":
                return self._respond(request, await self._work_out(request, endpoint, fault.kind))
        answer = await self._work_out(request, endpoint)
        match fault.kind:
            case "reset_after_effect":
                return BrokenConnection("reset")
            case "close_after_effect":
                return BrokenConnection("close")
            case "hang_after_effect":
                return BrokenConnection("hang")
            case "reset_in_body":
                return BrokenConnection("reset", half_sent=self._respond(request, answer, is_heard=False))
            case "error_after_effect":
                return self._respond(request, refusal(errors.unexpected()))
        raise AssertionError(f"nothing carries out {fault.kind}")

    async def _deliver(self, request: Request, endpoint: Endpoint) -> int:
        """Let a request take effect that nobody waits for any more; returns the status it would have been answered with."""
        return (await self._work_out(request, endpoint)).status

    async def _work_out(self, request: Request, endpoint: Endpoint | None, kept_error: FaultKind | None = None) -> Answer:
        """Find the answer; all that the request changes has been changed and journalled when it is there."""
        decoded: dict[str, form.Decoded] = {}
        try:
            self._authenticate(request.headers)
            if endpoint is None:
                raise errors.unrecognized_url(request.method, request.url.path)
            pairs = await _pairs(request)
            decoded = form.decode(pairs)
            if self._state.settings.latency_seconds > 0:
                answer = await self._slowly(request, endpoint, pairs, decoded, kept_error)
            else:
                answer = self._execute(request, endpoint, pairs, decoded, kept_error)
        except errors.StripeError as error:
            answer = refusal(error)
        except ClientDisconnect:
            raise
        except Exception:
            traceback.print_exc()
            answer = refusal(errors.unexpected())
        answer.decoded = decoded
        return answer

    def _respond(self, request: Request, answer: Answer, *, is_heard: bool = True) -> Response:
        """Add the headers of every answer, and record what was asked and answered."""
        if self._recorder is not None and is_heard:
            self._recorder.record(request.method, request.url.path, answer.decoded, answer.status, answer.body)
        answer.headers["request-id"] = answer.request_id or self._next_request_id()
        answer.headers["date"] = _http_date(self._state.clock.now_seconds())
        answer.headers["stripe-version"] = API_VERSION
        if key := request.headers.get("idempotency-key"):
            answer.headers["idempotency-key"] = key
        return Response(answer.body, answer.status, answer.headers, "application/json")

    def _next_request_id(self) -> str:
        self._request_count += 1
        return "req_" + scrambled(f"{self._state.start_count}:{self._request_count}", 14)

    def _authenticate(self, headers: Headers) -> None:
        """Raise 401 unless the key is one of ours, 400 for another API version than the simulator's two."""
        key = _api_key(headers.get("authorization", ""))
        if not key:
            raise errors.no_api_key()
        if key not in self._api_keys:
            raise errors.invalid_api_key(key)
        version = headers.get("stripe-version", API_VERSION)
        if version not in (API_VERSION, LEGACY_API_VERSION):
            raise errors.unsupported_api_version(version, API_VERSION)

    async def _slowly(
        self, request: Request, endpoint: Endpoint, pairs: form.Pairs, decoded: dict[str, form.Decoded], kept_error: FaultKind | None
    ) -> Answer:
        """Execute after the latency that was asked for; a second request with the same idempotency key meanwhile is turned away (409)."""
        key = _idempotency_key(request)
        if key is None:
            await asyncio.sleep(self._state.settings.latency_seconds)
            return self._execute(request, endpoint, pairs, decoded, kept_error)
        if key in self._keys_in_use:
            raise errors.idempotency_key_in_use(key)
        self._keys_in_use.add(key)
        try:
            await asyncio.sleep(self._state.settings.latency_seconds)
            return self._execute(request, endpoint, pairs, decoded, kept_error)
        finally:
            self._keys_in_use.discard(key)

    def _execute(
        self, request: Request, endpoint: Endpoint, pairs: form.Pairs, decoded: dict[str, form.Decoded], kept_error: FaultKind | None
    ) -> Answer:
        """Answer from memory if the idempotency key has been used, else run the endpoint; what changed is journalled before returning.

        `kept_error` makes a first answer a 500 that the key remembers, without the request's effect or with it.
        """
        self.timekeeper.keep_up()
        state = self._state
        key = state.idempotency_key = _idempotency_key(request)
        state.api_version = request.headers.get("stripe-version", API_VERSION)
        request_id = state.request_id = self._next_request_id()
        asked = b""
        if key is not None:
            asked = idempotency.fingerprint(request.url.path, pairs)
            kept = state.idempotency.find(key, state.clock.now_ms())
            if kept is not None:
                if kept.fingerprint != asked:
                    raise errors.idempotency_key_reused(key)
                body = kept.answer if isinstance(kept.answer, bytes) else to_bytes(kept.answer)
                return Answer(kept.status, body, {"idempotent-replayed": "true"}, request_id=request_id)
        params = parse_fields(endpoint.fields, decoded)
        paths = params.get("expand") or []
        status, headers = 200, {}
        try:
            if kept_error == "kept_error_before_effect":
                raise errors.unexpected()
            result = endpoint.run(state, params, *request.path_params.values())
            if paths:
                result = result.as_json() if isinstance(result, MeterEvent) else result
                expand(state, result, paths, EXPANDERS)
            body = to_bytes(result)
            kept_answer = result if isinstance(result, MeterEvent) else body
            if kept_error == "kept_error_after_effect":
                status, kept_answer = 500, to_bytes(errors.unexpected().body())
                body = kept_answer
        except errors.StripeError as error:
            state.rollback()
            if not error.is_kept:
                raise
            status, headers, body = error.status, error.headers, to_bytes(error.body())
            kept_answer = body
        except Exception:
            traceback.print_exc()
            state.rollback()
            status, body = 500, to_bytes(errors.unexpected().body())
            kept_answer = body
        if key is not None:
            state.keep_answer(key, asked, status, kept_answer)
        self.timekeeper.commit()
        self.timekeeper.keep_up()
        return Answer(status, body, headers, request_id=request_id)


async def _pairs(request: Request) -> form.Pairs:
    """The parameters of the query, then those of the body, which Stripe takes as a form only."""
    query = request.scope["query_string"].decode("latin-1")
    pairs = form.split_pairs(query)
    if request.method == "GET":
        return pairs
    body = await request.body()
    if not body:
        return pairs
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise errors.malformed_request()
    try:
        return pairs + form.split_pairs(body.decode())
    except UnicodeDecodeError as error:
        raise errors.malformed_request() from error


def _idempotency_key(request: Request) -> str | None:
    """Only POST takes one; Stripe ignores it elsewhere. Raises when it is too long."""
    key = request.headers.get("idempotency-key")
    if not key or request.method != "POST":
        return None
    if len(key) > idempotency.KEY_LENGTH:
        raise errors.idempotency_key_too_long(len(key))
    return key


def _api_key(authorization: str) -> str:
    """The key of a Bearer header, or the user name of a Basic one; empty when there is none."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


@lru_cache(maxsize=4)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
