"""The documents are true: what they name exists, and what exists is named."""

import re

import pytest

from sandbox.environment import ROOT
from token_billing.model import QuarantineReason, ReportState

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: object) -> None:
    """Files, and headings inside them."""
    text = document.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        path, _, heading = target.partition("#")
        found = (document.parent / path).resolve()  # type: ignore[attr-defined]
        assert found.exists(), target
        if heading:
            headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in found.read_text().splitlines()}
            assert heading in headings, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_that_is_named_exists(document: object) -> None:
    """In the README and everywhere else."""
    text = document.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= TARGETS


def test_the_readme_opens_with_what_the_user_sees() -> None:
    """And names the two commands of a first visit."""
    readme = text_of("README.md")
    assert readme.index("tokens billed in") < readme.index("make demo      #") < readme.index("make test      #")
    assert "@@" not in readme


def test_every_state_is_explained_and_drawn() -> None:
    """docs/states.md has the table and the diagram."""
    states = text_of("docs/states.md")
    for state in ReportState:
        assert re.search(rf"^\| {state} \|", states, re.MULTILINE), state
        assert re.search(rf"(--> {state}\b|^    {state} -->)", states, re.MULTILINE), state


def test_the_diagram_draws_exactly_the_steps_that_the_database_lets_a_report_take() -> None:
    """Neither has a step more; a report that stays in its state takes none."""
    drawn = re.findall(r"^    (\w+) --> (\w+):", text_of("docs/states.md"), re.MULTILINE)
    allowed = re.findall(r"'(\w+) --> (\w+)'", text_of("include/token_billing/sql/migrations/0001_ledger.sql"))
    assert {(before, after) for before, after in drawn if before != after} == set(allowed)


def test_every_quarantine_reason_is_explained_and_known_to_the_database() -> None:
    """The runbook tells the operator, the CHECK the database."""
    runbook, ledger = text_of("docs/runbook.md"), text_of("include/token_billing/sql/migrations/0001_ledger.sql")
    for reason in QuarantineReason:
        assert f"| `{reason}` |" in runbook
        assert f"'{reason}'" in ledger


def test_the_glossary_has_the_words_of_the_code() -> None:
    """Every name in its last column that looks like code is one."""
    code = "\n".join(path.read_text() for path in (ROOT / "include").rglob("*") if path.suffix in (".py", ".sql"))
    for name in re.findall(r"\| `([A-Za-z_]+)…?` \|", text_of("docs/glossary.md")):
        assert name in code, name


def test_every_reference_to_the_runbook_is_a_heading() -> None:
    """Error messages name chapters of it."""
    headings = re.findall(r"^## (.+)$", text_of("docs/runbook.md"), re.MULTILINE)
    code = "\n".join(path.read_text() for folder in ("include/token_billing", "plugins") for path in (ROOT / folder).rglob("*.py"))
    named = re.findall(r'runbook[^"\\]*\\?"([A-Z][a-z ]+)\\?"', code)
    assert named and set(named) <= set(headings), set(named) - set(headings)
