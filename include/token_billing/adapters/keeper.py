"""The ledger's mark, kept outside its database: a copy that lies behind it has forgotten attempts."""

import json
from typing import Protocol

from token_billing.model import LedgerMark


class Keeper(Protocol):
    """Keeps short texts by name, somewhere that is not restored together with the billing database."""

    def read(self, name: str) -> str | None:
        """The text last written; None where there is none."""

    def write(self, name: str, text: str) -> None:
        """Keeps the text, whatever was kept before."""


def read_mark(keeper: Keeper, ledger_id: str) -> LedgerMark | None:
    """The mark kept for the ledger; None where none was kept yet."""
    text = keeper.read(_name(ledger_id))
    return LedgerMark(**json.loads(text)) if text else None


def write_mark(keeper: Keeper, ledger_id: str, mark: LedgerMark) -> None:
    """Keeps the mark."""
    keeper.write(_name(ledger_id), json.dumps({"epoch": mark.epoch, "noted_attempts": mark.noted_attempts}))


def _name(ledger_id: str) -> str:
    return f"billing_ledger_{ledger_id}"
