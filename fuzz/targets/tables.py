"""The types of CSV columns, against the rules of `csv_types` said value by value in plain Python."""

from __future__ import annotations

import math
import re

import pyarrow as pa

from fuzz.target import Target
from voxelprobe.points.csv_types import ColumnEvidence


def _split(data: bytes) -> list[str | None]:
    """Return the fields of a column: parts between newlines, null where empty."""
    return [part.decode("latin-1") or None for part in data[:400].split(b"\n")]


def _add(evidence: ColumnEvidence, fields: list[str | None], first: int) -> None:
    evidence.add(pa.array(fields, pa.string()), first)


def _check(data: bytes) -> bool:
    fields = _split(data)
    whole, cut = ColumnEvidence(), ColumnEvidence()
    _add(whole, fields, 0)
    middle = len(data) % (len(fields) + 1)
    _add(cut, fields[:middle], 0)
    _add(cut, fields[middle:], middle)
    assert whole.arrow_type == cut.arrow_type, (fields, middle, whole.arrow_type, cut.arrow_type)
    found, values = whole.arrow_type, [field for field in fields if field is not None]
    if not values:
        assert found == pa.float64()
        return False
    if pa.types.is_string(found):
        return False
    read = pa.array(fields, pa.string()).cast(found).to_pylist()
    assert [value for value in read if value is None] == [None] * (len(fields) - len(values))
    numbers = [value for value in read if value is not None]
    if pa.types.is_integer(found):
        # As Python would write it: text -> number -> text loses nothing.
        assert [str(number) for number in numbers] == values
        return True
    for text, number in zip(values, numbers, strict=True):
        plain = re.fullmatch(r"[+-]?(\d+)(\.0*)?", text, re.ASCII)
        if plain and len(plain[1]) < 4000:
            assert not (plain[1].startswith("0") and len(plain[1]) > 1), text
            assert abs(int(plain[1])) == abs(number) <= 2**53, text
        else:
            said = float(text)
            assert said == number or (math.isnan(said) and math.isnan(number)), text
    return True


_SEEDS = (
    "1\n2\n-3", "9007199254740993\n1", "18446744073709551615\n0", "1.5\n2\n", "nan\ninf\n-inf\n1", "007\n1", "\n\n",
    "abc\n1", "9007199254740993.0\n1.5", "1e5\n0x10\n+3", " 1\n1_000", "-0\n0\n0.0", "9223372036854775808\n-1",
    "1" * 30, "1e400\n1e-400",
)
TARGETS = {"csv_types": Target(lambda: [text.encode() for text in _SEEDS], _check, most_bytes=200)}
