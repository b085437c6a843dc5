"""Which columns of a table hold points, from what the user wrote for `--point-columns`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from voxelprobe.errors import InputError
from voxelprobe.points.plain_values import Dynamic, plain_type

AXES = ("x", "y", "z")


@dataclass(frozen=True, slots=True)
class PointColumns:
    """The columns that hold one point of every row.

    Attributes
    ----------
    prefix
        What the result's columns of this point begin with (`pre_pt` gives `pre_pt_root_id`); None for a table with one
        point a row.
    sources
        Three columns of numbers in the order x, y, z, or one column of lists or structs.
    """

    prefix: str | None
    sources: tuple[str, ...]


def parse_point_columns(text: str, schema: pa.Schema, where: str, notes: Mapping[str, str] | None = None,
                        ) -> tuple[PointColumns, ...]:
    """Return the columns that hold the points.

    Three names that are all columns of numbers are the x, y and z of one point a row. Otherwise each name is a prefix:
    the point `pre_pt` is the first there is of the list or struct column `pre_pt_position`, the list or struct column
    `pre_pt`, the columns `pre_pt_position_x`, `_y` and `_z`, the columns `pre_pt_x`, `_y` and `_z`.

    Parameters
    ----------
    text
        `x,y,z`, or prefixes as in `pre_pt,post_pt`.
    schema
        The table's schema.
    where
        The table's name, for messages.
    notes
        Why a column is text, by column, for messages (`PointsTable.type_notes`).

    Raises
    ------
    InputError
        If a point isn't found (the message lists what was looked for and what there is), or isn't numbers.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"point columns {text!r}: expected different column names as in x,y,z or prefixes as in "
                         "pre_pt,post_pt")
    finder = _Finder(schema, f"point columns {text!r} of {where}", notes or {})
    if len(names) == 3 and all(name in schema.names and _is_number(schema.field(name).type) for name in names):
        return (PointColumns(None, tuple(names)),)
    found = [finder.find_point(name) for name in names]
    if len(names) == 3 and not any(found):
        raise finder.complain_of_triple(names)
    points = []
    for name, sources in zip(names, found, strict=True):
        if sources is None:
            raise finder.complain_of_prefix(name)
        points.append(PointColumns(name, sources))
    return tuple(points)


def is_list(dtype: pa.DataType) -> bool:
    """Tell whether a type is one of the three kinds of lists that a point may be."""
    return bool(pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype))


class _Finder:
    """Looks for points in a schema; complaints say what was looked for and what there is."""

    def __init__(self, schema: pa.Schema, where: str, notes: Mapping[str, str]) -> None:
        self.schema = schema
        self.where = where
        self.notes = notes

    def find_point(self, prefix: str) -> tuple[str, ...] | None:
        """Return the source columns of a point, or None if there are none."""
        for name in (f"{prefix}_position", prefix):
            if name in self.schema.names:
                dtype = plain_type(self.schema.field(name).type)
                if is_list(dtype) or pa.types.is_struct(dtype):
                    self._check_nested(name, dtype)
                    return (name,)
        for triple in _triples(prefix):
            if all(name in self.schema.names for name in triple):
                for name in triple:
                    self._check_number(name)
                return triple
        return None

    def complain_of_triple(self, names: Sequence[str]) -> InputError:
        """Return the error for three names that are neither numbers nor prefixes."""
        for name in names:
            if name in self.schema.names:
                self._check_number(name)
        missing = [name for name in names if name not in self.schema.names]
        return InputError(f"{self.where}: expected three columns of numbers, or prefixes of points as in "
                          f"pre_pt,post_pt; found no column {', '.join(map(repr, missing))}{self._hint(missing)}; "
                          f"{self._listing()}")

    def complain_of_prefix(self, prefix: str) -> InputError:
        """Return the error for a point that isn't there."""
        triples = [",".join(triple) for triple in _triples(prefix)]
        scalars = "".join(
            f"; {name} is {self._describe(name)}, not a list or struct"
            for name in (f"{prefix}_position", prefix) if name in self.schema.names
        )
        wanted = [f"{prefix}_position", prefix, *_triples(prefix)[0], *_triples(prefix)[1]]
        missing = [name for name in wanted if name not in self.schema.names]
        return InputError(f"{self.where}: expected a list or struct column {prefix}_position or {prefix}, or three "
                          f"columns {triples[0]} or {triples[1]}; found none of them{scalars}{self._hint(missing)}; "
                          f"{self._listing()}")

    def _check_number(self, name: str) -> None:
        if not _is_number(self.schema.field(name).type):
            raise InputError(f"{self.where}: expected numbers in column {name}, found {self._describe(name)}")

    def _check_nested(self, name: str, dtype: Dynamic) -> None:
        if pa.types.is_struct(dtype):
            good = all(dtype.get_field_index(axis) >= 0 and _is_number(dtype.field(axis).type) for axis in AXES)
        else:
            good = _is_number(dtype.value_type) and (not pa.types.is_fixed_size_list(dtype) or dtype.list_size == 3)
        if not good:
            raise InputError(f"{self.where}: expected a list of three numbers or a struct with x, y and z in column "
                             f"{name}, found {dtype}")

    def _describe(self, name: str) -> str:
        note = self.notes.get(name)
        return f"{self.schema.field(name).type}" + (f" (because of {note})" if note else "")

    def _hint(self, missing: Sequence[str]) -> str:
        by_lower = {name.strip().lower(): name for name in reversed(self.schema.names)}
        for name in missing:
            close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.75)
            if close:
                return f" (did you mean {by_lower[close[0]]!r}?)"
        return ""

    def _listing(self, limit: int = 60) -> str:
        names = [f"{field.name} {field.type}" for field in self.schema]
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        return f"its columns are {', '.join(names[:limit])}{more}"


def _triples(prefix: str) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    """Return the two sets of column names a prefix may stand for; axes always belong to one prefix, in x y z order."""
    return ((f"{prefix}_position_x", f"{prefix}_position_y", f"{prefix}_position_z"),
            (f"{prefix}_x", f"{prefix}_y", f"{prefix}_z"))


def _is_number(dtype: pa.DataType) -> bool:
    dtype = plain_type(dtype)
    # A column of nothing but nulls has the type null: its points are all invalid, which is not the file's fault.
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype)
                or pa.types.is_null(dtype))
