"""CSV that a spreadsheet opens without running anything: texts that would be formulas get an apostrophe in front.

Rule: https://owasp.org/www-community/attacks/CSV_Injection, which names the first characters, their full-width forms
among them. Numbers stay numbers, also negative ones: only texts, and the names of columns, can be formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from voxelprobe.points.plain_values import Dynamic

_FIRST = "=+\\-@\t\r\n＝＋－＠"  # noqa: RUF001 (full-width on purpose)


def guard_names(names: Sequence[str]) -> list[str]:
    """Return column names as they may stand in the header."""
    guarded: list[str] = guard_texts(pa.array(names, pa.string())).to_pylist()
    return guarded


def guard_texts(values: Dynamic) -> Any:
    """Return the texts of a column as they may stand in a cell; any other column as it is."""
    import pyarrow.compute as pc

    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return values
    return pc.replace_substring_regex(values, rf"\A([{_FIRST}])", r"'\1", max_replacements=1)
