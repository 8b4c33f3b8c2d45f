"""`/billing/statements/`: what comparisons of invoices found, for whoever may see the DAG that makes them."""

import html
import logging
from typing import Annotated

import psycopg
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from billing_airflow.connections import billing_db
from token_billing.adapters.statements import StatementHead
from token_billing.errors import BillingError, NoSuchStatement
from token_billing.stages.statements import newest_statements, statement

log = logging.getLogger(__name__)

#: Whose runs one may see, whose statements one may read.
DAG_ID = "reconcile_invoices"

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1a2129; background: #fff; margin: 2rem auto; max-width: 60rem; padding: 0 1.5rem }
h1 { font-size: 1.5rem } table { border-collapse: collapse } th { color: #4a5662; background: #f6f8fa }
th, td { padding: .4rem 1rem; border-bottom: 1px solid #e3e8ee; text-align: left }
.bad { color: #b3261e } .good { color: #0b6b3a }
"""


def may_read(user: GetUserDep) -> None:
    """Refuses whoever is not logged in (401), or may not see the DAG (403)."""
    if not get_auth_manager().is_authorized_dag(method="GET", details=DagDetails(id=DAG_ID), user=user):
        raise HTTPException(403, f"you may not see the runs of {DAG_ID}, and so not its statements")


Reader = Annotated[None, Depends(may_read)]


def statement_app() -> FastAPI:
    """The application, to be mounted at `/billing/statements`."""
    app = FastAPI(title="Billing statements", openapi_url=None)

    @app.get("/", response_class=HTMLResponse)
    def listing(_: Reader) -> str:
        return _listing(newest_statements(billing_db))

    @app.get("/{statement_id}.html", response_class=HTMLResponse)
    def page(statement_id: int, _: Reader) -> str:
        return statement(billing_db, statement_id, "html")

    @app.get("/{statement_id}.csv")
    def table(statement_id: int, _: Reader) -> Response:
        headers = {"content-disposition": f'attachment; filename="billing-statement-{statement_id}.csv"'}
        return Response(statement(billing_db, statement_id, "csv"), media_type="text/csv; charset=utf-8", headers=headers)

    @app.exception_handler(NoSuchStatement)
    def unknown(_: Request, unknown: NoSuchStatement) -> JSONResponse:
        return JSONResponse({"error": str(unknown)}, 404)

    @app.exception_handler(BillingError)
    @app.exception_handler(psycopg.Error)
    def trouble(_: Request, trouble: Exception) -> JSONResponse:
        log.error("statements cannot be shown: %s: %.1000s", type(trouble).__name__, trouble)
        return JSONResponse({"error": "Statements cannot be shown now; the log of Airflow's API server says why."}, 503)

    return app


def _listing(found: list[StatementHead]) -> str:
    rows = "\n".join(
        f'<tr><td><a href="{one.id}.html">{html.escape(one.title)}</a></td>'
        f'<td class="{"bad" if one.discrepancy_count else "good"}">{one.discrepancy_count or "none"}</td>'
        f'<td><a href="{one.id}.csv">CSV</a></td></tr>'
        for one in found
    )
    table = f"<table><thead><tr><th>statement</th><th>differences</th><th></th></tr></thead><tbody>{rows}</tbody></table>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Billing statements</title>'
        f"<style>{_STYLE}</style></head><body><h1>Billing statements</h1>"
        f"{table if found else f'<p>There is none yet: DAG {DAG_ID} makes one whenever invoices have become final.</p>'}</body></html>"
    )


app = statement_app()
