"""Columns of text, as a terminal shows them."""

from collections.abc import Collection, Iterable, Sequence


def columns(names: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str]) -> list[str]:
    """One line for the names and one for each row; the columns named `left` begin on one line, the others end on one."""
    table = [names, *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(names))]
    return [
        "  ".join(
            text.ljust(width) if name in left else text.rjust(width) for name, text, width in zip(names, row, widths, strict=True)
        ).rstrip()
        for row in table
    ]
