"""Lines of text in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_columns(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as lines, the first column to the left and the others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) if place == 0 else cell.rjust(width)
                               for place, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in cells)
