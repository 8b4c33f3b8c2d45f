"""A comparison of invoices as frames, and the statement that people read: CSV and HTML. Integers stay integers, missing values included."""

import html
from collections.abc import Sequence
from datetime import datetime
from numbers import Integral
from typing import Any

import pandas as pd

from token_billing.invoice_reconciliation import Compared
from token_billing.quarantine import ValuedUsage
from token_billing.rating import money
from token_billing.reconciliation import Difference, Statement

#: Nullable types throughout: a float would lose tokens beyond 2**53, and has no other way to say "not known".
COLUMNS = {
    "tenant": "string",
    "customer": "string",
    "invoice": "string",
    "status": "string",
    "item": "string",
    "price": "string",
    "period_start": "datetime64[us, UTC]",
    "period_end": "datetime64[us, UTC]",
    "our_tokens": "Int64",
    "stripe_tokens": "Int64",
    "token_difference": "Int64",
    "currency": "string",
    "our_cents": "Int64",
    "stripe_cents": "Int64",
    "cent_difference": "Int64",
    "rounding_tie": "boolean",
    "cause": "string",
    "note": "string",
}


def compared_frame(compared: Sequence[Compared]) -> pd.DataFrame:
    """One row a charge or line by hand; tokens and the currency's minor unit, Stripe's less ours where they differ."""
    rows = [
        {
            "tenant": ", ".join(one.tenants) or None,
            "customer": one.invoice.customer_id,
            "invoice": one.invoice.id,
            "status": one.invoice.status,
            "item": one.usage_item_id,
            "price": one.price_id,
            "period_start": one.period.start,
            "period_end": one.period.end,
            "our_tokens": one.our_tokens,
            "stripe_tokens": one.stripe_tokens,
            "currency": one.currency,
            "our_cents": one.our_cents,
            "stripe_cents": one.stripe_cents,
            "rounding_tie": one.is_tie,
            "cause": one.cause,
            "note": one.note,
        }
        for one in compared
    ]
    frame = pd.DataFrame({name: pd.array([row.get(name) for row in rows], dtype=kind) for name, kind in COLUMNS.items()})
    frame["token_difference"] = frame["stripe_tokens"] - frame["our_tokens"]
    frame["cent_difference"] = frame["stripe_cents"] - frame["our_cents"]
    return frame


def totals(frame: pd.DataFrame) -> pd.DataFrame:
    """By currency: charges, tokens and money on both sides, of what could be compared, and how many differ or lie on a tie."""
    comparable = frame[frame["our_tokens"].notna() | frame["our_cents"].notna()]
    by_currency = comparable.assign(differing=comparable["cause"] != "", charges=1).groupby("currency")
    counted = by_currency[["charges", "our_tokens", "stripe_tokens", "our_cents", "stripe_cents"]].sum(min_count=1)
    flagged = by_currency[["differing", "rounding_tie"]].sum().astype("Int64")
    return counted.join(flagged).reset_index()


def statement(frame: pd.DataFrame, found: Sequence[Difference], quarantined: Sequence[ValuedUsage], made_at: datetime) -> Statement:
    """The statement of one comparison. Usage that is quarantined, for want of a link for instance, belongs to it: it is on no invoice."""
    title = f"Invoices compared at {made_at:%Y-%m-%d %H:%M} UTC"
    aside = _quarantined_frame(quarantined)
    return Statement(made_at, title, len(found), _csv(frame, aside), _page(title, frame, totals(frame), found, aside))


def _quarantined_frame(quarantined: Sequence[ValuedUsage]) -> pd.DataFrame:
    rows = [
        {
            "tenant": one.usage.tenant_id,
            "item": one.usage.usage_item_id,
            "price": one.usage.price and one.usage.price.id,
            "period_start": one.usage.period.start,
            "period_end": one.usage.period.end,
            "our_tokens": one.usage.token_count,
            "currency": one.usage.price and one.usage.price.currency,
            "our_cents": one.amount_cents,
            "note": f"quarantined: {one.usage.reason}",
        }
        for one in quarantined
    ]
    return pd.DataFrame({name: pd.array([row.get(name) for row in rows], dtype=kind) for name, kind in COLUMNS.items()})


def _csv(frame: pd.DataFrame, aside: pd.DataFrame) -> str:
    """For programs: times in ISO 8601, amounts in the currency's minor unit."""
    whole = pd.concat([frame, aside], ignore_index=True) if len(aside) else frame
    text: str = whole.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%SZ", lineterminator="\n")
    return text


_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1a2129; background: #fff; margin: 2rem auto; max-width: 110rem; padding: 0 1.5rem }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
p { margin: .25rem 0; color: #4a5662 } .scroll { overflow-x: auto }
table { border-collapse: collapse; white-space: nowrap } th, td { padding: .3rem .7rem; border-bottom: 1px solid #e3e8ee; text-align: left }
th { color: #4a5662; font-weight: 600; background: #f6f8fa } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; max-width: 14rem }
td.wide { white-space: normal; min-width: 24rem } tr.differs td { background: #fdf0ef } .good { color: #0b6b3a } .bad { color: #b3261e }
"""


def _page(title: str, frame: pd.DataFrame, sums: pd.DataFrame, found: Sequence[Difference], aside: pd.DataFrame) -> str:
    verdict = (
        f'<p class="bad">{len(found)} differences, each named below.</p>'
        if found
        else '<p class="good">Every line is what our rows come to, to the token and to the cent.</p>'
    )
    parts = [
        f"<h1>{_text(title)}</h1>{verdict}",
        "<h2>Totals</h2>",
        _table(
            ["currency", "charges", "our tokens", "Stripe's tokens", "our amount", "Stripe's amount", "differing", "on a tie"],
            [
                [row.currency.upper(), row.charges, row.our_tokens, row.stripe_tokens, *_amounts(row), row.differing, row.rounding_tie]
                for row in sums.itertuples()
            ],
        ),
    ]
    if found:
        parts += ["<h2>Differences</h2>", _differences(found)]
    parts += ["<h2>Charges</h2>", _charges(frame)]
    if len(aside):
        parts += ["<h2>Quarantined, on no invoice</h2>", _charges(aside)]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style></head>'
        f"<body>\n{body}\n</body></html>\n"
    )


def _differences(found: Sequence[Difference]) -> str:
    rows = [
        [
            one.cause,
            one.tenant_id,
            one.window_start and f"{one.window_start:%Y-%m-%d %H:%M}",
            one.expected_tokens,
            one.found_tokens,
            _money(one.expected_cents, one.currency),
            _money(one.found_cents, one.currency),
            one.details,
        ]
        for one in found
    ]
    head = ["cause", "tenant", "hour", "expected tokens", "found tokens", "expected amount", "found amount", "what differs"]
    return _table(head, rows)


def _charges(frame: pd.DataFrame) -> str:
    rows = [
        [
            row.tenant,
            row.customer,
            row.invoice,
            row.item,
            row.price,
            f"{row.period_start:%Y-%m-%d %H:%M} – {row.period_end:%Y-%m-%d %H:%M}",
            row.our_tokens,
            row.stripe_tokens,
            *_amounts(row),
            row.cause,
            "; ".join(
                filter(
                    None,
                    [row.note if pd.notna(row.note) else "", "rounding tie" if pd.notna(row.rounding_tie) and row.rounding_tie else ""],
                )
            ),
        ]
        for row in frame.itertuples()
    ]
    head = [
        "tenant",
        "customer",
        "invoice",
        "item",
        "price",
        "period (UTC)",
        "our tokens",
        "Stripe's tokens",
        "our amount",
        "Stripe's amount",
    ]
    return _table([*head, "cause", "note"], rows, differs="cause")


def _noted(row: Any) -> str:
    """The note, and that a line lies on a tie."""
    on_tie = ["rounding tie"] if pd.notna(row.rounding_tie) and row.rounding_tie else []
    return "; ".join([*([row.note] if pd.notna(row.note) and row.note else []), *on_tie])


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], differs: str = "") -> str:
    """Numbers to the right; a row with anything in the column that `differs` names stands out."""
    numbers = [name for name in head if "tokens" in name or "amount" in name or name in ("charges", "differing", "on a tie")]
    kinds = [' class="number"' if name in numbers else ' class="wide"' if name == "what differs" else "" for name in head]
    titles = "".join(f"<th{kind}>{_text(name)}</th>" for name, kind in zip(head, kinds, strict=True))
    body = ""
    for row in rows:
        marked = ' class="differs"' if differs and _text(row[head.index(differs)]) else ""
        cells = "".join(f"<td{kind}>{_text(value)}</td>" for value, kind in zip(row, kinds, strict=True))
        body += f"<tr{marked}>{cells}</tr>\n"
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _text(value: Any) -> str:
    """As it may stand in a page, whoever wrote it."""
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    return html.escape(f"{value:,}" if isinstance(value, Integral) and not isinstance(value, bool) else str(value))


def _amounts(row: Any) -> tuple[str, str]:
    return _money(row.our_cents, row.currency), _money(row.stripe_cents, row.currency)


def _money(cents: Any, currency: Any) -> str:
    return "" if cents is None or pd.isna(cents) or currency is None or pd.isna(currency) else money(int(cents), str(currency))
