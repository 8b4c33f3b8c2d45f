"""What all commands have in common: how hours are written, and how a refusal ends."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from token_billing.errors import BillingError

#: UTC instants, as typer reads them.
HOURS = ["%Y-%m-%dT%H:%MZ", "%Y-%m-%dT%H:%M:%SZ"]


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """A refusal ends the command with its message."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        yield
    except BillingError as refusal:
        typer.secho(f"{what}: {refusal}", fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None
