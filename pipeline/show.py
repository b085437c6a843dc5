"""Print the first rows of a result table: `python -m pipeline.show TABLE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from voxelprobe.errors import VoxelProbeError, printable
from voxelprobe.points import open_points


def format_rows(path: Path, rows: int) -> str:
    """Return the first rows of a table as aligned text."""
    table = open_points(path, batch_rows=rows)
    batch = next(table.batches(), None)
    names = [_text(name) for name in table.schema.names]
    cells = [[_text(value) for value in row.values()] for row in (batch.to_pylist() if batch else [])]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(names)]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in [names, *cells]]
    return "\n".join([*lines, f"… {table.num_rows:,} rows in {path}"])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else printable(str(value)).replace("\n", "\\n")


def main() -> int:
    """Print the tables that the command line names."""
    try:
        for name in sys.argv[1:]:
            print(format_rows(Path(name), 10))  # noqa: T201 (the command's own output)
    except VoxelProbeError as error:
        print(error, file=sys.stderr)  # noqa: T201 (the command's own output)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
