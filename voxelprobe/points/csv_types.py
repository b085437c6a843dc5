"""The type of a CSV column, found from all of its values.

An identifier must come out as it went in: 64-bit ids never pass through float, and `007` stays text. So the type
depends on every value and on nothing else, in particular not on where the file was cut into blocks:

- no values at all (nothing but empty fields): float64, all null;
- every value is an integer as Python would write it, and all fit: int64, else uint64;
- every value is a number, and no integer among them would be changed by float64 (more than 2^53, or leading zeros,
  also when written with `.0`): float64, where `nan` and `inf` are values;
- else text, where an empty field is an empty text.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from voxelprobe.points.plain_values import Dynamic

# Every integer up to here is a float64 of its own.
_EXACT_IN_FLOAT = 2**53
# Integers in text that float64 may change: leading zeros, or 16 digits and more.
_SUSPECT_INTEGER = r"^[+-]?(0[0-9]+|[0-9]{16,})(\.0*)?$"


@dataclass(slots=True)
class ColumnEvidence:
    """Which types the values seen so far allow.

    Attributes
    ----------
    note
        For a column that became text: the first value that made it so, in words.
    """

    has_values: bool = False
    int64: bool = True
    uint64: bool = True
    float64: bool = True
    note: str | None = None

    def add(self, values: Dynamic, first_row: int) -> None:
        """Take the next values into account.

        Parameters
        ----------
        values
            The fields as text, null where empty.
        first_row
            Row number of the first of them, for the note.
        """
        if not (self.int64 or self.uint64 or self.float64) or values.null_count == len(values):
            return
        self.has_values = True
        # A type that was ruled out is not tried again; the rules below come to the same result in any order of values.
        if self.int64 and (integers := _canonical_integers(values, pa.int64())) is not None:
            self._add_integers(integers)
        elif self.uint64 and (integers := _canonical_integers(values, pa.uint64())) is not None:
            self.int64 = False
            self._add_integers(integers)
        else:
            self.int64 = self.uint64 = False
            if self.float64 and (problem := _find_inexact(values)) is not None:
                self.float64 = False
                self.note = f"{values[problem].as_py()!r} in row {first_row + problem}"
        if not (self.int64 or self.uint64 or self.float64) and self.note is None:
            self.note = "integers beyond 2^53 together with fractions or negative numbers"

    def _add_integers(self, integers: Dynamic) -> None:
        import pyarrow.compute as pc

        extremes: Dynamic = pc.min_max(integers).as_py()
        self.uint64 &= extremes["min"] >= 0
        self.float64 &= extremes["min"] >= -_EXACT_IN_FLOAT and extremes["max"] <= _EXACT_IN_FLOAT

    @property
    def arrow_type(self) -> pa.DataType:
        """The type that all values allow."""
        if not self.has_values:
            return pa.float64()
        if self.int64:
            return pa.int64()
        if self.uint64:
            return pa.uint64()
        return pa.float64() if self.float64 else pa.string()


def _canonical_integers(values: Dynamic, dtype: pa.DataType) -> Dynamic | None:
    """Return the integers, or None unless each is written as Python would write it and fits `dtype`."""
    integers = _cast(values, dtype)
    # Arrow also takes 007 and 0x10.
    return integers if integers is not None and integers.cast(pa.string()).equals(values) else None


def _cast(values: Dynamic, dtype: pa.DataType) -> Dynamic | None:
    """Return the values as numbers, or None if one isn't."""
    try:
        # Arrow looks at all values even after the first failure, and makes a message for each: a few first are cheaper.
        values.slice(0, 64).cast(dtype)
        return values.cast(dtype)
    except pa.ArrowInvalid:
        return None


def _find_inexact(values: Dynamic) -> int | None:
    """Return the index of the first value that float64 can't stand for, or None."""
    import pyarrow.compute as pc

    if _cast(values, pa.float64()) is None:
        return _find_uncastable(values)
    matches: Dynamic = pc.match_substring_regex(values, _SUSPECT_INTEGER)
    suspects: Dynamic = pc.indices_nonzero(matches)
    for index in suspects.to_pylist():
        digits = values[index].as_py().partition(".")[0].lstrip("+-")
        if digits.startswith("0") or int(digits) > _EXACT_IN_FLOAT:
            return int(index)
    return None


def _find_uncastable(values: Dynamic) -> int:
    """Return the index of the first value that is no number, given that there is one."""
    low, high = 0, len(values)  # the first one is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        if _cast(values.slice(low, middle - low), pa.float64()) is None:
            high = middle
        else:
            low = middle
    return low
