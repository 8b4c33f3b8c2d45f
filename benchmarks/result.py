"""What a run of the benchmarks says at its end: a table, and `bench.json` for whoever compares runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.comparison import Comparison


def show(comparisons: Sequence[Comparison], console: Console) -> None:
    """Prints the table; seconds are the best round's and the worst's."""
    table = Table(title="Best of each side's rounds", show_edge=False, padding=(0, 0, 0, 1))
    table.add_column("what")
    table.add_column("beside")
    for name in ("ours", "theirs", "figure", "target", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for one in comparisons:
        target = "" if one.target is None else f"{'≤' if one.target.bound == 'at most' else '≥'} {_figure(one.target.limit, one.unit)}"
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[one.is_met]
        figure = _figure(one.figure, one.unit)
        table.add_row(one.ours, one.beside, _range(one.ours_seconds), _range(one.beside_seconds), f"[bold]{figure}[/]", target, verdict)
    console.print(table)


def write(comparisons: Sequence[Comparison], sizes: dict[str, int], seconds: float, path: Path) -> None:
    """Writes everything that was measured, every round of it, as JSON."""
    rows = [asdict(one) | {"met": one.is_met} for one in comparisons]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sizes": sizes, "rows": rows, "seconds": round(seconds, 1)}, indent=2, ensure_ascii=False) + "\n")


def _figure(figure: float, unit: str) -> str:
    return f"{figure:.2f} ×" if unit == "×" else f"{figure:,.0f} /s"


def _range(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.2f}–{max(seconds):.2f} s" if seconds else ""
