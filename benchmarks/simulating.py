"""How many meter events a second the simulator takes: what stands in for Stripe must not be what is measured."""

import asyncio

from benchmarks.bench_simulator import send_events
from benchmarks.comparison import Comparison, Say, rate
from sandbox.stripe_simulator.process import StripeSimulator

SIMULATOR_RATE = 3_000
IN_FLIGHT = 32


def rate_simulator(simulator: StripeSimulator, event_count: int, repeats: int, say: Say) -> Comparison:
    """Forgets whatever the simulator held."""
    seconds = []
    for number in range(repeats):
        simulator.reset()
        seconds.append(asyncio.run(send_events(simulator.base_url, simulator.api_key, event_count, IN_FLIGHT)))
        say(f"simulator, round {number + 1} of {repeats}: {event_count / seconds[-1]:,.0f} meter events/s")
    return rate("simulator", "meter events, raw aiohttp client to simulator", event_count, seconds, SIMULATOR_RATE)
