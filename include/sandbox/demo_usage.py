"""Tenants and usage that look like the real thing, the same for the same seed.

A few tenants hold most of the usage, days have a rhythm, token counts are log-normal, small tenants are silent for hours, and some names
are as awkward as real ones. What billing gets wrong at the edges is in it too: calls on the exact hour and in its last microsecond,
calls without tokens, calls that equal each other in every column.

Usage is drawn hour by hour, each from the seed and the hour alone: however an interval is cut, its parts together are the whole, and what
``fresh_usage`` lets trickle in during an hour is what ``demo_usage`` would have put there. Deterministic for one version of numpy
(https://numpy.org/neps/nep-0019-rng-policy.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from sandbox.usage_csv import EPOCH, HOUR_MICROSECONDS, MICROSECOND, TIME_TYPE, UsageRows

#: Calls per tenant and hour, averaged over tenants and the day: forty tenants make some 70,000 calls a day.
MEAN_CALLS = 73.0
#: Calls go down with a tenant's rank as rank^-1.1: of forty tenants the largest has about a quarter, as in traces of real services.
RANK_EXPONENT = 1.1
#: The share by which the busiest hour of a tenant's day exceeds its mean, and the quietest falls short of it.
DAILY_SWING = 0.75
#: Of the hours in which a tenant would make fewer than about this many calls, most are silent: small users come in sessions.
SESSION_CALLS = 6.0

#: Model, share of calls, median input and output tokens. Embeddings have no output.
MODELS: tuple[tuple[str, float, float, float], ...] = (
    ("claude-sonnet-4-5", 0.34, 1_100.0, 260.0),
    ("gpt-5-mini", 0.31, 600.0, 180.0),
    ("llama-4-maverick", 0.16, 700.0, 210.0),
    ("mistral-small-3.2", 0.12, 420.0, 150.0),
    ("text-embedding-3-large", 0.07, 350.0, 0.0),
)
INPUT_SIGMA, OUTPUT_SIGMA, TENANT_SIGMA = 1.1, 0.9, 0.4
#: Context windows end there.
MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS = 200_000, 32_000

#: Shares of calls: refused before the first token, cut off before any output, sent twice by a client within the same microsecond.
FAILED_SHARE, CUT_OFF_SHARE, TWIN_SHARE = 0.001, 0.004, 0.002
#: Shares of calls that a timer makes on the exact hour, and that end up in its last microsecond; at least one each in a busy hour.
ON_THE_HOUR_SHARE, LAST_MICROSECOND_SHARE = 0.002, 0.001
BUSY_HOUR_CALLS = 20

FIRST_WORDS = (
    "amber", "arctic", "atlas", "blue", "bright", "cedar", "clear", "copper", "coral", "delta", "ember", "fern", "granite", "harbor",
    "indigo", "iron", "juniper", "lumen", "maple", "meridian", "north", "nova", "oak", "opal", "orchid", "pine", "polar", "quartz",
    "river", "silver", "summit", "tidal", "umber", "velvet", "willow", "zephyr",
)  # fmt: skip
SECOND_WORDS = (
    "ai", "analytics", "apps", "bank", "bio", "books", "care", "cloud", "commerce", "data", "desk", "energy", "foods", "games",
    "health", "insure", "labs", "legal", "logistics", "media", "mobility", "payments", "pharma", "robotics", "schools", "security",
    "soft", "studio", "systems", "travel",
)  # fmt: skip

#: Every fifth tenant has one of these: whatever quotes, sorts, splits, escapes or truncates identifiers meets them.
AWKWARD_TENANTS: tuple[tuple[str, str], ...] = (
    ("O'Neill & Sons", "O'Neill & Sons"),
    ("café zürich", "Café Zürich"),
    ('the "quoted" company, inc.', 'The "Quoted" Company, Inc.'),
    ("株式会社データ", "株式会社データ"),
    ("subsidiary-of-" * 8 + "somebody", "The Subsidiary with the Long Name"),  # 120 characters
    ("100%_organic\\farms", "100%_Organic\\Farms"),
    ("a/b?test=1#frag;drop table", "A/B; Drop Table"),
    ("Ωmega-🚀", "Ωmega 🚀"),
)


@dataclass(frozen=True)
class DemoTenant:
    """A tenant of the demo, before checkout links it to Stripe."""

    id: str
    name: str


def demo_tenants(tenant_count: int, seed: int) -> tuple[DemoTenant, ...]:
    """That many tenants with distinct ids; fewer tenants of the same seed are the first of more."""
    order = np.random.default_rng([seed, 0]).permutation(len(FIRST_WORDS) * len(SECOND_WORDS))
    tenants = []
    for position in range(tenant_count):
        if position % 5 == 2 and position // 5 < len(AWKWARD_TENANTS):
            tenants.append(DemoTenant(*AWKWARD_TENANTS[position // 5]))
            continue
        again, place = divmod(position, len(order))
        first, second = divmod(int(order[place]), len(SECOND_WORDS))
        words = [FIRST_WORDS[first], SECOND_WORDS[second]] + ([str(again + 1)] if again else [])
        tenants.append(DemoTenant("-".join(words), " ".join(words).title()))
    return tuple(tenants)


def demo_usage(first_window: datetime, hours: int, tenant_count: int, seed: int) -> UsageRows:
    """The usage of ``hours`` whole UTC hours from ``first_window`` on, in order of time; ValueError if that is no full hour after 1970."""
    if first_window.tzinfo is None or (first_window - EPOCH) % timedelta(hours=1):
        raise ValueError(f"the first window ({first_window}) must be a full UTC hour, with its offset")
    return fresh_usage(first_window, first_window + timedelta(hours=hours), tenant_count, seed)


def fresh_usage(begin: datetime, end: datetime, tenant_count: int, seed: int) -> UsageRows:
    """The usage of ``[begin, end)``, however short or long, in order of time: what a running sandbox inserts at ``end``.

    Intervals that touch neither share nor miss a row. ValueError for times without an offset or before 1970.
    """
    if begin.tzinfo is None or end.tzinfo is None or begin < EPOCH:
        raise ValueError(f"an interval of usage ({begin} to {end}) lies after 1970 and says its offset")
    first, last = (begin - EPOCH) // MICROSECOND, (end - EPOCH) // MICROSECOND
    ids = tuple(tenant.id for tenant in demo_tenants(tenant_count, seed))
    town = _Town(tenant_count, seed)
    columns = [np.zeros((5, 0), np.int64), *(town.hour(hour) for hour in range(first // HOUR_MICROSECONDS, -(-last // HOUR_MICROSECONDS)))]
    created_at, tenants, models, input_tokens, output_tokens = np.concatenate(columns, axis=1)
    rows = UsageRows(
        created_at=created_at.view(TIME_TYPE),
        tenant_ids=ids,
        tenant_codes=tenants.astype(np.int32),
        models=tuple(model for model, *_ in MODELS),
        model_codes=models.astype(np.int32),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    return rows.select((created_at >= first) & (created_at < last))


class _Town:
    """What stays the same about the tenants: how much they use, when, of which models, and how long their prompts are."""

    def __init__(self, tenant_count: int, seed: int) -> None:
        random = np.random.default_rng([seed, 1, tenant_count])
        weights = random.permutation(np.arange(1, tenant_count + 1, dtype=float)) ** -RANK_EXPONENT
        self.seed = seed
        self.mean_calls = MEAN_CALLS * tenant_count * weights / max(weights.sum(), 1e-9)
        self.busiest_hour = random.normal(14.0, 3.0, tenant_count)  # most work in Europe, some elsewhere
        taste = random.dirichlet([4.0 * share for _, share, *_ in MODELS], tenant_count)
        self.taste = 0.5 * taste + 0.5 * np.array([share for _, share, *_ in MODELS])
        self.length = np.exp(random.normal(0.0, TENANT_SIGMA, tenant_count))

    def hour(self, hour: int) -> NDArray[np.int64]:
        """One hour's calls, in order of time, as rows: microseconds from 1970, tenant, model, input and output tokens."""
        random = np.random.default_rng([self.seed, 2, hour])
        rhythm = 1.0 + DAILY_SWING * np.cos((hour % 24 - self.busiest_hour) * (2 * np.pi / 24))
        expected = self.mean_calls * rhythm
        # A session's hour holds what silence left out, so that the mean stays.
        awake = expected / (expected + SESSION_CALLS)
        calls = random.poisson(expected / np.maximum(awake, 1e-9)) * (random.random(len(expected)) < awake)

        tenant = np.repeat(np.arange(len(calls)), calls)
        count = len(tenant)
        model = np.minimum((random.random(count)[:, None] > np.cumsum(self.taste, axis=1)[tenant]).sum(axis=1), len(MODELS) - 1)
        medians = np.array([(median_input, median_output) for *_, median_input, median_output in MODELS])[model]
        input_tokens = medians[:, 0] * self.length[tenant] * np.exp(random.normal(0.0, INPUT_SIGMA, count))
        output_tokens = medians[:, 1] * np.exp(random.normal(0.0, OUTPUT_SIGMA, count))
        fate = random.random(count)
        output_tokens[fate < FAILED_SHARE + CUT_OFF_SHARE] = 0
        input_tokens[fate < FAILED_SHARE] = 0

        offset = random.integers(0, HOUR_MICROSECONDS, count)
        timing = random.random(count)
        at_least = 1.5 / count if count >= BUSY_HOUR_CALLS else 0.0
        first, last = max(ON_THE_HOUR_SHARE, at_least), max(LAST_MICROSECOND_SHARE, at_least)
        timed = np.argsort(timing, kind="stable")
        offset[timed[: round(first * count)]] = 0
        offset[timed[count - round(last * count) :]] = HOUR_MICROSECONDS - 1

        usage = np.stack(
            [
                hour * HOUR_MICROSECONDS + offset,
                tenant,
                model,
                np.minimum(input_tokens, MAX_INPUT_TOKENS).astype(np.int64),
                np.minimum(output_tokens, MAX_OUTPUT_TOKENS).astype(np.int64),
            ]
        )
        usage = np.concatenate([usage, usage[:, random.random(count) < TWIN_SHARE]], axis=1)
        return usage[:, np.argsort(usage[0], kind="stable")]
