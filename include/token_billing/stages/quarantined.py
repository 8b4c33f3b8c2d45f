"""quarantined: what is kept aside, in tokens and money."""

import logging
from collections.abc import Iterable, Iterator
from datetime import datetime

from token_billing.adapters import ledger, quarantined
from token_billing.adapters.database import Connect, Connection, session
from token_billing.catalog import PURE
from token_billing.model import Shard
from token_billing.quarantine import QuarantinedUsage, ValuedUsage, totals, valued
from token_billing.rating import money
from token_billing.windows import Window

log = logging.getLogger(__name__)


def quarantined_usage(connect: Connect) -> list[ValuedUsage]:
    """All quarantined and rejected usage, by reason and tenant, most tokens first, with what it would add to its period's bill."""
    with session(connect) as db:
        ledger.identity(db)
        found = quarantined.quarantined_usage(db)
    return sorted(_valued(found), key=lambda one: (one.usage.reason, -one.usage.token_count, one.usage.tenant_id))


def tell_of_quarantined(db: Connection, window: Window, shard: Shard, since: datetime) -> None:
    """Warns of what was quarantined in a window's shard since a time, by reason, in tokens and money."""
    by_reason: dict[str, list[ValuedUsage]] = {}
    for one in _valued(quarantined.newly_quarantined_usage(db, window, shard, since)):
        by_reason.setdefault(one.usage.reason, []).append(one)
    for reason, usages in sorted(by_reason.items()):
        log.warning("window %s: quarantined as %s: %s, of %s", window, reason, worth(usages), _tenants(usages))


def _valued(found: Iterable[QuarantinedUsage]) -> Iterator[ValuedUsage]:
    """In money; what leads to no subscription item, by the list price of tokens without a base."""
    return valued(one.or_at(PURE.terms) for one in found)


def worth(usages: list[ValuedUsage]) -> str:
    """Tokens and money in words: `1,200 tokens worth 0.01 USD`."""
    tokens, cents, unknown = totals(usages)
    told = [money(amount, currency) for currency, amount in sorted(cents.items())]
    if unknown:
        told.append(f"an unknown amount for {unknown:,} of them" if cents else "an unknown amount")
    return f"{tokens:,} tokens" + (f" worth {' and '.join(told)}" if told else "")


def _tenants(usages: list[ValuedUsage]) -> str:
    names = sorted({one.usage.tenant_id for one in usages})
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
