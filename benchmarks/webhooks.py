"""`make bench-webhooks`: signed webhooks at a steady rate, and then as fast as they go, against the endpoint in a process of its own, with
a PostgreSQL that waits for the disk. Every one that was answered with 200 must be in the inbox."""

import asyncio
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Annotated

import aiohttp
import psycopg
import typer
from rich.console import Console

from sandbox.environment import HOME, SandboxServices, airflow_environment
from sandbox.postgres import PostgresServer
from sandbox.services import prepare_billing_database

SECRET = "whsec_of_the_benchmark"

#: About as long as Stripe's own: an event about a subscription with two items comes to some 4,000 bytes.
PADDING = "x" * 3_500

IN_FLIGHT = 16

#: What the endpoint is held to, on two cores that the generator and the database share with it.
TARGET_RATE, TARGET_P99_S = 300, 1.0

console = Console(highlight=False)

Deliver = Callable[[], Awaitable[float]]


def bench(
    rate: Annotated[int, typer.Option(min=1, help="Webhooks a second that are sent, whether earlier ones are answered or not.")] = 300,
    seconds: Annotated[float, typer.Option(min=1, help="How long, for each of both parts.")] = 10.0,
) -> None:
    """Measure the webhook; exits non-zero where one was lost, or a target was missed at the target's own rate."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started ends with this process
    HOME.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="bench-webhooks-", dir=HOME) as folder,
        PostgresServer(Path(folder) / "postgres", durable=True) as postgres,
    ):
        dsn = postgres.recreate_database("billing")
        prepare_billing_database(dsn)
        load = os.getloadavg()[0]
        with _endpoint(dsn, Path(folder)) as url:
            steady, flat_out = asyncio.run(_measure(url, rate, seconds))
        with psycopg.connect(dsn) as db:
            ((kept,),) = db.execute("SELECT count(*) FROM billing.stripe_event").fetchall()
    sent = 1 + len(steady) + len(flat_out)
    _say(f"steady, {rate:,}/s for {seconds:g} s", steady, len(steady) / seconds)
    _say(f"flat out, {IN_FLIGHT} in flight for {seconds:g} s", flat_out, len(flat_out) / seconds)
    console.print(f"{sent:,} answered with 200, {kept:,} in the inbox, {sent - kept:,} lost; load average before: {load:.2f}")
    met = len(steady) >= rate * seconds and (rate < TARGET_RATE or _percentile(steady, 99) <= TARGET_P99_S)
    if sent != kept or not met:
        raise typer.Exit(1)


async def _measure(url: str, rate: int, seconds: float) -> tuple[list[float], list[float]]:
    """How long each webhook took, in seconds; counted from when it was due, so that a server that falls behind cannot hide it."""
    numbers = count()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as client:

        async def deliver(due: float) -> float:
            body, headers = _signed(next(numbers))
            async with client.post(url, data=body, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
            return time.perf_counter() - due

        await deliver(time.perf_counter())  # imports, and the first connection
        began = time.perf_counter()
        under_way = []
        for number in range(int(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            under_way.append(asyncio.create_task(deliver(due)))
        steady = await asyncio.gather(*under_way)

        flat_out: list[float] = []
        give_up_at = time.perf_counter() + seconds

        async def go_on() -> None:
            while (due := time.perf_counter()) < give_up_at:
                flat_out.append(await deliver(due))

        await asyncio.gather(*(go_on() for _ in range(IN_FLIGHT)))
    return steady, flat_out


def _signed(number: int) -> tuple[bytes, dict[str, str]]:
    event = {
        "id": f"evt_bench_{number:09d}",
        "object": "event",
        "api_version": "2026-05-27.dahlia",
        "created": int(time.time()),
        "data": {"object": {"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active", "description": PADDING}},
        "livemode": False,
        "type": "customer.subscription.updated",
    }
    body, at = json.dumps(event).encode(), int(time.time())
    signature = hmac.new(SECRET.encode(), b"%d." % at + body, hashlib.sha256).hexdigest()
    return body, {"Stripe-Signature": f"t={at},v1={signature}", "Content-Type": "application/json"}


@contextmanager
def _endpoint(dsn: str, folder: Path) -> Iterator[str]:
    """The webhook's application in one uvicorn process, as Airflow's API server runs it, by its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = airflow_environment(SandboxServices(dsn, dsn, "http://127.0.0.1:9"), folder / "airflow", replayed=False)
    environment["AIRFLOW_CONN_STRIPE_DEFAULT"] = json.dumps({"conn_type": "stripe", "extra": {"webhook_secret": SECRET}})
    options = ["--port", str(port), "--no-access-log", "--log-level", "error"]
    command = [sys.executable, "-m", "uvicorn", "billing_airflow.webhook:app", *options]
    server = subprocess.Popen(command, env=environment)
    try:
        while server.poll() is None:
            with socket.socket() as caller:
                if caller.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/webhook"
    finally:
        server.terminate()
        server.wait(30)


def _say(what: str, took: list[float], rate: float) -> None:
    p50, p99 = (_percentile(took, share) * 1000 for share in (50, 99))
    console.print(f"{what}: [bold]{rate:,.0f}/s[/], p50 {p50:.0f} ms, p99 {p99:.0f} ms, slowest {max(took) * 1000:.0f} ms")


def _percentile(took: list[float], share: int) -> float:
    return sorted(took)[min(len(took) - 1, len(took) * share // 100)]


if __name__ == "__main__":
    typer.run(bench)
