"""How many meter events a second the Stripe simulator takes from a raw aiohttp client, and how fast it comes back afterwards.

    PYTHONPATH=include .venv/bin/python benchmarks/bench_simulator.py --events 50000 --persist

Server and client run on a core each where the machine has two. Prints rates; asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

import aiohttp

from sandbox.stripe_simulator.process import StripeSimulator

#: Enough different customers that no index holds only one of them.
_CUSTOMER_COUNT = 100


async def send_events(base_url: str, api_key: str, event_count: int, in_flight: int) -> float:
    """Create a meter and customers, then send events, each with an identifier and the same idempotency key; returns seconds taken."""
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/x-www-form-urlencoded"}
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(base_url, headers=headers, connector=connector) as session:

        async def post(path: str, body: str, idempotency_key: str | None = None) -> dict[str, object]:
            extra = None if idempotency_key is None else {"Idempotency-Key": idempotency_key}
            async with session.post(path, data=body, headers=extra) as response:
                answer: dict[str, object] = await response.json()
                assert response.status == 200, answer
                return answer

        meter = "display_name=Tokens&event_name=tokens&default_aggregation[formula]=sum"
        await post("/v1/billing/meters", meter)
        customers = [str((await post("/v1/customers", f"name=c{number}"))["id"]) for number in range(_CUSTOMER_COUNT)]
        numbers = iter(range(event_count))
        now = int(time.time())

        async def send_until_done() -> None:
            for number in numbers:
                identifier = f"bench-{number:012d}"
                body = urlencode(
                    {
                        "event_name": "tokens",
                        "identifier": identifier,
                        "payload[stripe_customer_id]": customers[number % _CUSTOMER_COUNT],
                        "payload[value]": number,
                        "timestamp": now - number % 3600,
                    }
                )
                await post("/v1/billing/meter_events", body, identifier)

        started = time.perf_counter()
        await asyncio.gather(*(send_until_done() for _ in range(in_flight)))
        return time.perf_counter() - started


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far: what the rate would be if nobody else used its core."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--persist", action="store_true", help="with a journal, as the sandbox runs it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        state_dir = Path(folder) / "state" if options.persist else None
        simulator = StripeSimulator.start(state_dir=state_dir)
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            os.sched_setaffinity(simulator.pid, {cores[0]})
            os.sched_setaffinity(0, {cores[1]})
        server_before = cpu_seconds(simulator.pid)
        seconds = asyncio.run(send_events(simulator.base_url, simulator.api_key, options.events, options.in_flight))
        server_seconds = cpu_seconds(simulator.pid) - server_before
        print(
            f"{options.events} meter events in {seconds:.1f} s: {options.events / seconds:,.0f}/s, "
            f"{options.events / server_seconds:,.0f} a second of the server's CPU time (journal: {options.persist})"
        )
        if state_dir is None:
            simulator.stop()
            return
        simulator.kill()
        size_mb = sum(path.stat().st_size for path in state_dir.iterdir()) / 1e6
        started = time.perf_counter()
        with StripeSimulator.start(state_dir=state_dir) as simulator:
            counted = simulator.health()["meter_events"]
        print(f"restart with {counted} events ({size_mb:.0f} MB journal) after kill -9: {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
