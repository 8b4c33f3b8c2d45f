"""Starts the simulator as a process of its own and talks to its control routes: what tests, the demo and the benchmarks use."""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from sandbox.stripe_simulator.clock import milliseconds, rfc3339
from sandbox.stripe_simulator.faults import Fault, FaultKind, SeededFaults

_DEFAULT_API_KEYS = ("sk_test_sandbox",)
#: Replaying a journal of a million events takes several seconds.
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_CALL_SECONDS = 30.0
_SOURCE_ROOT = Path(__file__).resolve().parents[2]


class SimulatorFailed(RuntimeError):
    """The simulator did not start, has died, or refused a control request; the message holds what it said."""


class StripeSimulator:
    """A running simulator. Use `start`, then `stop`; or `with StripeSimulator.start(…) as simulator:`."""

    def __init__(self, child: subprocess.Popen[bytes], output: IO[bytes], base_url: str, api_keys: tuple[str, ...]) -> None:
        self._child = child
        self._output = output
        self._owner_pid = os.getpid()
        self.base_url = base_url
        self.api_keys = api_keys
        atexit.register(self._stop_at_exit)

    @classmethod
    def start(
        cls,
        state_dir: Path | None = None,
        port: int = 0,
        clock: Literal["real"] | datetime = "real",
        api_keys: Sequence[str] = _DEFAULT_API_KEYS,
        record: Path | None = None,
    ) -> Self:
        """Start a simulator and wait until it answers.

        `state_dir`: where it keeps its state across restarts (without one, in memory only); a clock kept there has precedence.
        `port`: 0 takes any free one. `clock`: "real", or an aware datetime to stand still at. `record`: a file to which every exchange
        is appended as a JSON line. Raises SimulatorFailed with the child's output.
        """
        command = [sys.executable, "-m", "sandbox.stripe_simulator", "--port", str(port), "--end-with-stdin"]
        command += ["--clock", clock if isinstance(clock, str) else rfc3339(milliseconds(clock))]
        command += [argument for key in api_keys for argument in ("--api-key", key)]
        if state_dir is not None:
            command += ["--state-dir", str(state_dir)]
        if record is not None:
            command += ["--record", str(record)]
        output = tempfile.TemporaryFile(prefix="stripe-simulator-")  # noqa: SIM115 - closed by stop()
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=_child_environment())
        deadline = time.monotonic() + _START_SECONDS
        while (base_url := _ready_url(output)) is None:
            if child.poll() is not None:
                raise SimulatorFailed(f"the Stripe simulator did not start (exit {child.returncode}): {_said(output)}")
            if time.monotonic() > deadline:
                child.kill()
                child.wait()
                raise SimulatorFailed(f"the Stripe simulator was not ready after {_START_SECONDS:.0f} s: {_said(output)}")
            time.sleep(0.01)
        return cls(child, output, base_url, tuple(api_keys))

    @property
    def api_key(self) -> str:
        """The first of the accepted secret keys."""
        return self.api_keys[0]

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    def is_alive(self) -> bool:
        return self._child.poll() is None

    def stop(self) -> None:
        """End the process and wait for it; harmless when it has ended already."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._output.close()
        atexit.unregister(self._stop_at_exit)

    def kill(self) -> None:
        """End the process at once with SIGKILL, as a crash would."""
        self._child.kill()
        self._child.wait()
        self.stop()

    def now(self) -> datetime:
        """The simulator's time, UTC."""
        return datetime.fromisoformat(self._call("GET", "/simulator/clock")["now"])

    def set_clock(self, instant: datetime) -> None:
        """Freeze the clock at an instant that is not before its present time. Raises SimulatorFailed when it is."""
        self._call("POST", "/simulator/clock", {"now": rfc3339(milliseconds(instant))})

    def reset(self, clock: Literal["real"] | datetime | None = None) -> None:
        """Forget everything, settings included; the clock begins anew as given here, or as it was at the start of the process."""
        body = {} if clock is None else {"clock": clock if isinstance(clock, str) else rfc3339(milliseconds(clock))}
        self._call("POST", "/simulator/reset", body)

    def settings(
        self,
        *,
        summary_delay_seconds: float | None = None,
        latency_seconds: float | None = None,
        invoice_grace_seconds: float | None = None,
        events_delay_seconds: float | None = None,
        left_price_seconds: float | None = None,
    ) -> dict[str, float]:
        """Change the settings given here; returns all of them.

        `summary_delay_seconds`: by the simulator's clock, how long after receipt an event shows in summaries (at first 90).
        `latency_seconds`: by the system's clock, how long every answer waits before it is worked out (at first 0).
        `invoice_grace_seconds`: by the simulator's clock, how long invoices made from now on stay drafts (at first 3600).
        `events_delay_seconds`: by the simulator's clock, how long after it happened an event shows in the list (at first 0).
        `left_price_seconds`: by the simulator's clock, how long after an item's price changed or went, usage dated before is still taken
        for it (at first a year, which means until the invoice is final).
        """
        changed = {
            "summary_delay_seconds": summary_delay_seconds,
            "latency_seconds": latency_seconds,
            "invoice_grace_seconds": invoice_grace_seconds,
            "events_delay_seconds": events_delay_seconds,
            "left_price_seconds": left_price_seconds,
        }
        result = self._call("POST", "/simulator/settings", {name: value for name, value in changed.items() if value is not None})
        return {name: float(value) for name, value in result.items()}

    def meter_events(self) -> list[dict[str, Any]]:
        """Every event received since the last reset, in that order.

        Each has: number, identifier, event_name, meter, customer, value (as sent), timestamp and received_at (seconds since 1970),
        status (accepted | rejected | cancelled), error_code (why it is rejected).
        """
        return list(self.iterate_meter_events())

    def iterate_meter_events(self) -> Iterator[dict[str, Any]]:
        """The same, page by page, for when there are very many."""
        after: int | None = 0
        while after is not None:
            page = self._call("GET", f"/simulator/meter_events?after={after}")
            yield from page["data"]
            after = page["next_after"]

    def usage_records(self) -> list[dict[str, Any]]:
        """Every usage record as Stripe would answer it, in the order in which they were first made, with `customer`, and the
        `idempotency_key` of the request that set it last."""
        return list(self._call("GET", "/simulator/usage_records")["data"])

    def script_faults(self, faults: Sequence[Fault | FaultKind]) -> None:
        """Let the next meter events meet these, in order; a `Fault` says more than a kind, above all which other requests it is for.

        Replaces the script of before; `"pass"` lets a request by. Raises SimulatorFailed for a fault that does not exist.
        """
        described = [dataclasses.asdict(fault) if isinstance(fault, Fault) else fault for fault in faults]
        self._call("POST", "/simulator/faults/script", {"faults": described})

    def seed_faults(
        self,
        seed: int,
        probabilities: Mapping[FaultKind, float],
        *,
        method: str = "POST",
        path: str = "/v1/billing/meter_events",
        retry_after_seconds: int = 1,
        deliver_after_seconds: float | None = None,
    ) -> None:
        """Let every later request of this method and beginning of a path meet a fault by chance: the same for the same seed and order."""
        seeded = SeededFaults(
            seed,
            dict(probabilities),
            method=method,
            path=path,
            retry_after_seconds=retry_after_seconds,
            deliver_after_seconds=deliver_after_seconds,
        )
        self._call("POST", "/simulator/faults/seed", dataclasses.asdict(seeded))

    def clear_faults(self) -> None:
        """From now on all goes well. Requests on their way stay there until they are released or due."""
        self._call("POST", "/simulator/faults/clear", {})

    def faults(self) -> dict[str, Any]:
        """`{"script": left of it, "seeded", "met": [{"kind", "method", "path", "idempotency_key"}], "delayed": count on their way}`"""
        return self._call("GET", "/simulator/faults")

    def release_delayed(self) -> list[int]:
        """Let the requests that are on their way take effect, in order of sending; the statuses that nobody will hear."""
        return [int(status) for status in self._call("POST", "/simulator/faults/release", {})["statuses"]]

    def disown(self, identifiers: Sequence[str], error_code: str = "meter_event_customer_not_found") -> list[str]:
        """Let events that were answered 200 not count after all; the ids of the thin events that report it, one for each meter.

        Each identifier stands for the event received last under it. Raises SimulatorFailed when there is none.
        """
        body = {"identifiers": list(identifiers), "error_code": error_code}
        return [str(event_id) for event_id in self._call("POST", "/simulator/meter_events/disown", body)["events"]]

    def lose_event(self, identifier: str) -> None:
        """Let an accepted event not count after all, and tell nobody; it is listed as rejected, "lost_in_silence"."""
        self._plant("lose_event", identifier=identifier)

    def double_event(self, identifier: str) -> str:
        """Count the same customer, time and value once more, received now; returns the second event's identifier."""
        return str(self._plant("double_event", identifier=identifier)["identifier"])

    def change_event(self, identifier: str, *, value: int | None = None, at: datetime | None = None) -> None:
        """Let an accepted event count another value, or at another time."""
        timestamp = None if at is None else milliseconds(at) // 1000
        self._plant("change_event", identifier=identifier, value=value, timestamp=timestamp)

    def edit_price(
        self, price: str, *, unit_amount_decimal: str | None = None, tiers: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Other amounts under the same id, as in a new price: `[{"up_to": 10, "unit_amount_decimal": "0.5"}, {"up_to": "inf", …}]`."""
        return self._plant("edit_price", price=price, unit_amount_decimal=unit_amount_decimal, tiers=tiers)

    def shift_period(self, invoice: str, seconds: int, line: str | None = None) -> dict[str, Any]:
        """Let a line, or every metered one, of an invoice be of a time so much later; returns the invoice, as all of these do."""
        return self._plant("shift_period", invoice=invoice, seconds=seconds, line=line)

    def change_line(
        self, invoice: str, line: str | None = None, *, quantity: int | None = None, amount: int | None = None, price: str | None = None
    ) -> dict[str, Any]:
        """Change just these of a line, or of the metered line of most units."""
        return self._plant("change_line", invoice=invoice, line=line, quantity=quantity, amount=amount, price=price)

    def change_currency(self, invoice: str, currency: str) -> dict[str, Any]:
        """The same numbers in another currency."""
        return self._plant("change_currency", invoice=invoice, currency=currency)

    def drop_line(self, invoice: str, line: str | None = None) -> dict[str, Any]:
        """Take a line, or the metered line of most units, off an invoice."""
        return self._plant("drop_line", invoice=invoice, line=line)

    def add_line(self, invoice: str, amount: int, description: str = "Added by hand") -> dict[str, Any]:
        """Add an invoice item by hand, also to an invoice that is final."""
        return self._plant("add_line", invoice=invoice, amount=amount, description=description)

    def double_usage(self, invoice: str, line: str | None = None) -> dict[str, Any]:
        """Bill the usage of a line's item, or of the metered line of most units, twice on one invoice."""
        return self._plant("double_usage", invoice=invoice, line=line)

    def _plant(self, what: str, **given: Any) -> dict[str, Any]:
        body = {name: value for name, value in given.items() if value is not None}
        return self._call("POST", f"/simulator/plant/{what}", body)

    def complete_checkout(self, session_id: str) -> dict[str, Any]:
        """Let the customer pay; returns the completed session. Raises SimulatorFailed when it is not open."""
        return self._call("POST", "/simulator/checkout/complete", {"session": session_id})

    def add_webhook(self, url: str, enabled_events: Sequence[str] = ("*",)) -> tuple[str, str]:
        """An endpoint as Stripe's dashboard would make it, thin events included where they are named; its id and its secret."""
        made = self._call("POST", "/simulator/webhooks/endpoints", {"url": url, "enabled_events": list(enabled_events)})
        return made["id"], made["secret"]

    def roll_webhook_secret(self, endpoint_id: str, *, keep_old: bool = True) -> str:
        """A new secret, beside the old one until it is rolled again."""
        return str(self._call("POST", "/simulator/webhooks/roll_secret", {"endpoint": endpoint_id, "keep_old": keep_old})["secret"])

    def webhook_settings(self, **changed: float | str) -> dict[str, Any]:
        """Change how events are delivered from now on, as in `webhook_courier.WebhookSettings`: copies, drop_share, shuffle_seconds, seed,
        attempts, retry_seconds, timeout_seconds, signature_clock ("system" | "simulator"); returns all of them."""
        return self._call("POST", "/simulator/webhooks/settings", changed)

    def flush_webhooks(self) -> dict[str, int]:
        """Wait until everything due has been delivered or given up; how many deliveries ended how since the last reset:
        pending (0), delivered, failed, dropped, undeliverable."""
        return {status: int(count) for status, count in self._call("POST", "/simulator/webhooks/flush", {}).items()}

    def webhook_deliveries(self) -> list[dict[str, Any]]:
        """In order of the events: `{"event", "type", "endpoint", "status", "attempts": [{"at", "status": of the answer, or None}]}`"""
        return list(self._call("GET", "/simulator/webhooks")["deliveries"])

    def health(self) -> dict[str, Any]:
        """`{"status": "ok", "api_version", "pid", "meter_events": count}`"""
        return self._call("GET", "/simulator/health")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(
            self.base_url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": "application/json"},
        )
        # Never through a proxy: the simulator is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_CALL_SECONDS) as response:
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except urllib.error.HTTPError as error:
            raise SimulatorFailed(f"{method} {path}: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            if not self.is_alive():
                raise SimulatorFailed(f"the Stripe simulator has died (exit {self._child.returncode}): {_said(self._output)}") from error
            raise SimulatorFailed(f"{method} {path}: {error}") from error

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._owner_pid:  # a forked copy of this process does not own the child
            self.stop()


def _child_environment() -> dict[str, str]:
    """Ours without any STRIPE_* variable, and with the folder that holds `sandbox` on the path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STRIPE_")}
    paths = [str(_SOURCE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def _said(output: IO[bytes]) -> str:
    if output.closed:
        return "(it was stopped)"
    return os.pread(output.fileno(), 1 << 20, 0).decode(errors="replace").strip()[-4000:] or "(nothing)"


def _ready_url(output: IO[bytes]) -> str | None:
    found = re.search(r"ready on (http://\S+) .*\n", os.pread(output.fileno(), 1 << 20, 0).decode(errors="replace"))
    return found.group(1) if found else None
