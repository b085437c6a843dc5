"""The coordinates of one point a row, out of a record batch, without losing a bit of an integer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from voxelprobe.arrays import Bool, from_arrow
from voxelprobe.errors import InputError
from voxelprobe.points.columns import AXES, PointColumns, is_list
from voxelprobe.points.plain_values import Dynamic, plain_array

_INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Points as the user wrote them, in the user's unit.

    Attributes
    ----------
    axes
        x, y and z, of shape (n,) each: int64 where the source is integers, else float64. Anything in rows that aren't
        present. May be read-only views of the batch.
    present
        Shape (n,). False where a coordinate, the list or the struct is null; None if none is.
    """

    axes: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
    present: Bool | None

    @property
    def valid(self) -> Bool:
        """Return which points are present and finite; shape (n,)."""
        valid = np.ones(len(self.axes[0]), np.bool_) if self.present is None else self.present.copy()
        for axis in self.axes:
            if axis.dtype.kind == "f":
                valid &= np.isfinite(axis)
        return valid

    @property
    def values(self) -> npt.NDArray[Any]:
        """Return the points in one array, shape (n, 3): int64 if all axes are, else float64. 0 where not valid."""
        values = np.stack(self.axes, axis=1)
        values[~self.valid] = 0
        return values


def read_coordinates(batch: pa.RecordBatch, columns: PointColumns, first_row: int = 0) -> Coordinates:
    """Return the point of every row.

    Unsigned integers beyond int64 become the largest int64: no volume reaches there.

    Parameters
    ----------
    batch
        Rows with at least the source columns.
    columns
        Which point, from `parse_point_columns`.
    first_row
        Number of the batch's first row in its table, for messages.

    Raises
    ------
    InputError
        If a list has another length than 3; the message names the row.
    """
    arrays = [plain_array(batch.column(batch.schema.get_field_index(name))) for name in columns.sources]
    present: Bool | None = None
    if len(arrays) == 1 and is_list(arrays[0].type):
        return _read_lists(arrays[0], columns.sources[0], first_row)
    if len(arrays) == 1:
        struct = arrays[0]
        present = _mask(struct)
        arrays = [plain_array(struct.field(struct.type.get_field_index(axis))) for axis in AXES]
    (x, x_mask), (y, y_mask), (z, z_mask) = map(_numbers, arrays)
    for mask in (x_mask, y_mask, z_mask):
        present = _both(present, mask)
    return Coordinates((x, y, z), present)


def _read_lists(lists: Dynamic, name: str, first_row: int) -> Coordinates:
    import pyarrow.compute as pc

    present = _mask(lists)
    if pa.types.is_fixed_size_list(lists.type):
        # The slots of null lists are there, and hold anything.
        flat = lists.values.slice(lists.offset * 3, len(lists) * 3)
        numbers, mask = _numbers(plain_array(flat))
        return _of_triples(numbers, _both(present, _all_axes(mask)))
    lengths: Dynamic = pc.list_value_length(lists)
    differs: Dynamic = pc.not_equal(lengths, pa.scalar(3, lengths.type))
    wrong = differs.index(True).as_py()
    if wrong >= 0:
        raise InputError(f"column {name}, row {first_row + wrong}: expected a list of 3 numbers, found "
                         f"{lengths[wrong].as_py()}")
    numbers, mask = _numbers(plain_array(lists.flatten()))  # the values of the lists that aren't null
    if present is None:
        return _of_triples(numbers, _all_axes(mask))
    values = np.zeros((len(lists), 3), numbers.dtype)
    values[present] = numbers.reshape(-1, 3)
    if mask is not None:
        present[present] = _all_axes(mask)
    return _of_triples(values, present)


def _of_triples(values: npt.NDArray[Any], present: Bool | None) -> Coordinates:
    x, y, z = values.reshape(-1, 3).T
    return Coordinates((x, y, z), present)


def _numbers(array: Dynamic) -> tuple[npt.NDArray[Any], Bool | None]:
    """Return the numbers as int64 or float64, anything where null, and which of them aren't null (None: all)."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64), np.zeros(len(array), np.bool_)
    mask = _mask(array)
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    numbers = from_arrow(array)
    if numbers.dtype == np.uint64 and numbers.size and numbers.max() > _INT64_MAX:
        numbers = np.minimum(numbers, np.uint64(_INT64_MAX))
    return numbers.astype(np.int64 if numbers.dtype.kind in "iu" else np.float64, copy=False), mask


def _mask(array: Dynamic) -> Bool | None:
    """Return which entries aren't null, or None if all are there."""
    if array.null_count == 0:
        return None
    mask: Bool = np.array(array.is_valid().to_numpy(zero_copy_only=False))
    return mask


def _all_axes(mask: Bool | None) -> Bool | None:
    """Return, for a mask of all coordinates in x y z order, which points are complete."""
    if mask is None:
        return None
    axes = mask.reshape(-1, 3)
    return axes[:, 0] & axes[:, 1] & axes[:, 2]


def _both(first: Bool | None, second: Bool | None) -> Bool | None:
    if first is None or second is None:
        return first if second is None else second
    return first & second
