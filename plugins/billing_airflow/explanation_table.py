"""An explanation as people and programs read it."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from billing_airflow.text_table import columns
from token_billing.explanation import ExplainedCharge, ExplainedReport, Explanation
from token_billing.rating import money

_REPORTS = ("report", "tenant", "hour or side", "state", "tokens", "rows", "row ids", "identifier")
_TEXTS = ("tenant", "hour or side", "state", "row ids", "identifier")


def as_text(explanation: Explanation, *, with_row_ids: bool = False) -> str:
    """From what was asked for to what it leads to, what differs on the way, and where the way ends early, why."""
    parts = [*_row(explanation), *_report(explanation, with_row_ids)]
    for charge in explanation.charges:
        parts.append("\n".join(_charge(charge, explanation, with_row_ids)))
    if explanation.next_step:
        parts.append(f"on no invoice: {explanation.next_step}")
    parts.append("\n".join(f"DIFFERS: {one}" for one in explanation.differences) or "everything adds up")
    return "\n\n".join(parts)


def as_record(explanation: Explanation) -> dict[str, Any]:
    """The same for programs: whole integers, amounts in the currency's minor unit, times in ISO 8601."""
    row, report = explanation.row, explanation.report
    return {
        "name": explanation.name,
        "row": row and {name: _plain(value) for name, value in vars(row).items()},
        "report": report
        and {
            **_report_record(report),
            "attempts": [{name: _plain(value) for name, value in one._asdict().items()} for one in explanation.attempts],
            "taken_back": [{name: _plain(value) for name, value in one._asdict().items()} for one in explanation.taken_back],
        },
        "charges": [_charge_record(charge, with_reports=report is None) for charge in explanation.charges],
        "differences": explanation.differences,
        "next_step": explanation.next_step,
    }


def _row(explanation: Explanation) -> Iterator[str]:
    if row := explanation.row:
        yield (
            f"row {row.id}: tenant {row.tenant_id!r}, {row.created_at.isoformat()}, {row.input_tokens:,} input and {row.output_tokens:,} "
            f"output tokens of {row.model}, {'billed' if row.billed else 'not billed'}"
            + (f"; first seen by revision {row.revision} of its hour, frozen {_time(row.frozen_at)}" if row.frozen_at else "")
        )


def _report(explanation: Explanation, with_row_ids: bool) -> Iterator[str]:
    report = explanation.report
    if report is None:
        return
    told = {
        "frozen": report.frozen_at,
        "accepted": report.accepted_at,
        "confirmed": report.confirmed_at,
        "billed": report.billed_at,
        "quarantined": report.quarantined_at,
    }
    yield "\n".join(
        [
            *columns(_REPORTS, [_report_columns(report)], left=_TEXTS),
            f"revision {report.revision}, generation {report.generation}; "
            + ", ".join(f"{what} {_time(when)}" for what, when in told.items() if when)
            + (f" as {report.quarantine_reason}" if report.quarantine_reason else ""),
            *(
                f"attempt {one.number} {_time(one.noted_at)}: {one.outcome or 'no known answer'}"
                + (f", HTTP {one.http_status}" if one.http_status else "")
                + (f", {one.message}" if one.message else "")
                for one in explanation.attempts
            ),
            *(
                f"generation {one.generation} was taken back {_time(one.revoked_at)} by {one.revoked_by}: {one.cause}, {one.evidence}"
                for one in explanation.taken_back
            ),
            *_row_ids([report], with_row_ids),
        ]
    )


def _charge(charge: ExplainedCharge, explanation: Explanation, with_row_ids: bool) -> Iterator[str]:
    final = f", final since {_time(charge.invoice.finalized_at)}" if charge.invoice.finalized_at else ""
    yield f"invoice {charge.invoice.id} of {charge.invoice.customer_id}: {charge.invoice.status}{final}"
    first = charge.lines[0]
    yield (
        f"{first.kind} of item {first.usage_item_id or '–'} at price {first.price_id or '–'}, {_time(first.period.start)} to "
        f"{_time(first.period.end)}"
    )
    if decided := charge.decided:
        yield f"made by proposal {decided.proposal_id}: {decided.decision} by {decided.decided_by}, {decided.token_count:,} tokens"
    rated = charge.rated if len(charge.rated) == len(charge.lines) else [None] * len(charge.lines)
    rows = [
        (
            line.id + (" *" if line.id == explanation.name else ""),
            f"{line.quantity:,}",
            money(line.amount_cents, line.currency),
            "–" if ours is None else money(ours.amount_cents, line.currency) + (" (tie)" if ours.is_tie else ""),
            line.description,
        )
        for line, ours in zip(charge.lines, rated, strict=True)
    ]
    yield from columns(("line", "quantity", "amount", "rated", "description"), rows, left=("line", "description"))
    if explanation.report is not None:
        yield f"{len(charge.reports):,} reports make up this charge, {sum(one.token_count for one in charge.reports):,} tokens"
    elif charge.reports:
        yield ""
        yield from columns(_REPORTS, map(_report_columns, charge.reports), left=_TEXTS)
        rows_held = sum(one.held.row_count for one in charge.reports if one.held)
        yield f"{len(charge.reports):,} reports, {sum(one.token_count for one in charge.reports):,} tokens of {rows_held:,} rows"
        yield from _row_ids(charge.reports, with_row_ids)
    elif charge.is_metered or charge.decided:
        yield "no report"
    else:
        yield "no usage is in this line"


def _row_ids(reports: Sequence[ExplainedReport], with_row_ids: bool) -> Iterator[str]:
    for report in reports if with_row_ids else ():
        yield f"rows of report {report.id}: " + " ".join(map(str, (report.held and report.held.ids) or ()))


def _report_columns(report: ExplainedReport) -> tuple[str, ...]:
    held = report.held
    return (
        str(report.id),
        report.tenant_id,
        f"{_time(report.side.start)}" if report.side == report.window.whole else f"{_time(report.side.start)} to {_time(report.side.end)}",
        report.state,
        f"{report.token_count:,}",
        f"{report.row_count:,}",
        f"{held.first_id} … {held.last_id}" if held and held.row_count else "–",
        report.identifier,
    )


def _charge_record(charge: ExplainedCharge, *, with_reports: bool) -> dict[str, Any]:
    return {
        "invoice_id": charge.invoice.id,
        "customer_id": charge.invoice.customer_id,
        "invoice_status": charge.invoice.status,
        "finalized_at": _plain(charge.invoice.finalized_at),
        "kind": charge.lines[0].kind,
        "usage_item_id": charge.lines[0].usage_item_id,
        "price_id": charge.lines[0].price_id,
        "period_start": charge.lines[0].period.start.isoformat(),
        "period_end": charge.lines[0].period.end.isoformat(),
        "lines": [
            {
                "line_id": line.id,
                "quantity": line.quantity,
                "amount_cents": line.amount_cents,
                "currency": line.currency,
                "description": line.description,
            }
            for line in charge.lines
        ],
        "rated_lines": [{"quantity": one.quantity, "amount_cents": one.amount_cents, "is_tie": one.is_tie} for one in charge.rated],
        "proposal": charge.decided and {name: _plain(value) for name, value in charge.decided._asdict().items() if name != "report_ids"},
        "report_count": len(charge.reports),
        "token_count": sum(one.token_count for one in charge.reports),
        "reports": [_report_record(one) for one in charge.reports] if with_reports else None,
    }


def _report_record(report: ExplainedReport) -> dict[str, Any]:
    held = report.held
    return {
        **{name: _plain(value) for name, value in vars(report).items() if name not in ("window", "side", "held")},
        "window_start": report.window.start.isoformat(),
        "side_start": report.side.start.isoformat(),
        "side_end": report.side.end.isoformat(),
        "rows": held and {name: _plain(value) for name, value in held._asdict().items()},
    }


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else list(value) if isinstance(value, tuple) else value


def _time(time: datetime | None) -> str:
    return "–" if time is None else f"{time:%Y-%m-%dT%H:%M}" + (f":{time:%S}" if time.second else "") + "Z"
