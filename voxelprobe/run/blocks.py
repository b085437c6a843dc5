"""Files of a group's values, cut by block of point numbers: merge reads all groups' values of one block at a time.

Rows are in the order of the group's chunks inside a block, and blocks ascend; a Parquet row group is the part of a
block that is in the group. After them come row groups with the group's different values, each once and ascending, in
the column they are of; there, `point` is -1 and other columns mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64, sort_unique
from voxelprobe.records import POINT, STATUS, read_columns, write_pieces

BLOCK_POINTS = 1 << 23
"""The largest block: memory for it is little, and so is the cost of opening the files of all groups for each block."""
# Nothing is written before the first block is there, so a smaller table has smaller ones.
_BLOCKS = 8
_LEAST_POINTS = 1 << 18

# Different values read at once of each group, so that those of 256 groups fit.
_DIFFERENT_ROWS = 1 << 15
# Once values repeat about that often, writing them through a dictionary is as fast and smaller.
_FEW_SHARE = 1 / 8


def block_size(points: int) -> int:
    """Return how many points a block has in a run of so many."""
    return min(BLOCK_POINTS, max(_LEAST_POINTS, 1 << (points // _BLOCKS).bit_length()))


def order_by_block(points: Int64, size: int) -> tuple[Any, list[int], list[int]]:
    """Return what brings points, shape (n,), into the order of their blocks, the blocks' numbers, and their sizes."""
    if not len(points):
        return slice(None), [], []
    low, high = int(points.min()) // size, int(points.max()) // size
    if low == high:
        return slice(None), [low], [len(points)]
    blocks = points // size - low
    # Numbers of 16 bits are sorted by radix.
    order = np.argsort(blocks.astype(np.uint16) if high - low < 1 << 16 else blocks, kind="stable")
    counts = np.bincount(blocks)
    numbers = np.flatnonzero(counts)
    return order, (numbers + low).tolist(), counts[numbers].tolist()


def write_blocks(
    path: Path, points: Int64, columns: Mapping[str, npt.NDArray[Any]], different_of: str, values: npt.NDArray[Any],
    *, size: int,
) -> dict[str, Any]:
    """Write a group's columns, shape (n,), and the different ones of `values`; return the facts for its marker.

    Parameters
    ----------
    points
        Shape (n,), in any order: readers get theirs back.
    different_of
        The column that the different values are of.
    values
        Any shape, of that column's dtype.
    size
        Points of a block, see `block_size`.
    """
    order, blocks, sizes = order_by_block(points, size)
    ordered = {POINT: points[order]} | {name: column[order] for name, column in columns.items()}
    pieces, start = [], 0
    for count in sizes:
        pieces.append({name: column[start : start + count] for name, column in ordered.items()})
        start += count
    different = sort_different(values)
    for start in range(0, len(different), _DIFFERENT_ROWS):
        part = different[start : start + _DIFFERENT_ROWS]
        piece = {name: np.zeros(len(part), column.dtype) for name, column in columns.items()}
        pieces.append({POINT: np.full(len(part), -1, np.int64)} | piece | {different_of: part})
    few = [name for name in columns if name == STATUS or len(different) <= len(points) * _FEW_SHARE]
    write_pieces(path, pieces or [ordered], few=few)
    return {"blocks": blocks, "block_size": size, "different": len(different)}


@dataclass(frozen=True, slots=True)
class BlockFile:
    """A file of `write_blocks`, with the facts of its marker.

    Attributes
    ----------
    path
        Where it is on this machine.
    blocks
        The numbers of its blocks, in order.
    size
        Points of a block.
    different
        How many different values it has.
    """

    path: Path
    blocks: Sequence[int]
    size: int
    different: int

    @classmethod
    def of_facts(cls, path: Path, facts: Mapping[str, Any]) -> BlockFile:
        """Return the file that a marker's facts describe."""
        return cls(path, facts["blocks"], facts["block_size"], facts["different"])

    def read_block(self, block: int, *names: str) -> list[npt.NDArray[Any]]:
        """Return a block's part of columns, in the order of the file."""
        return read_columns(self.path, *names, pieces=[self.blocks.index(block)])

    def read_points(self, points: Int64, *names: str) -> list[npt.NDArray[Any]]:
        """Return whole columns, shape (n,), in the order of the points that the file was written from."""
        columns = read_columns(self.path, *names, pieces=range(len(self.blocks)))
        order = order_by_block(points, self.size)[0]
        if isinstance(order, slice):
            return columns
        found = [np.empty_like(column) for column in columns]
        for column, values in zip(found, columns, strict=True):
            column[order] = values
        return found

    def read_different(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """Yield the different values of a column as arrays of shape (n,), ascending as `count_different` takes them."""
        for piece in range(-(-self.different // _DIFFERENT_ROWS)):
            (values,) = read_columns(self.path, name, pieces=[len(self.blocks) + piece])
            yield _as_bits(values)


def sort_different(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return each different value once, ascending; of floats ascending as bits, with one zero and one NaN."""
    if values.dtype.kind == "f":
        values = values.copy()
        values[values == 0] = 0  # -0.0 too
        values[np.isnan(values)] = np.nan
    return sort_unique(_as_bits(values)).view(values.dtype)


def count_different(groups: Iterable[Iterator[npt.NDArray[Any]]]) -> int:
    """Return how many values there are in all groups together, each a run of ascending arrays, shape (n,).

    Two of a group's arrays are held at a time.
    """
    streams = list(groups)
    held = [next(stream, None) for stream in streams]
    ahead = [next(stream, None) for stream in streams]
    count = 0
    while any(values is not None for values in held):
        # Up to here all values are in hand; a group that has no more doesn't hold others up.
        pairs = zip(held, ahead, strict=True)
        limit = min((values[-1] for values, more in pairs if values is not None and more is not None), default=None)
        ready = []
        for index, values in enumerate(held):
            if values is None:
                continue
            stop = len(values) if limit is None else int(np.searchsorted(values, limit, side="right"))
            ready.append(values[:stop])
            held[index] = values[stop:]
            if stop == len(values):
                held[index], ahead[index] = ahead[index], next(streams[index], None)
        # Sorted by merging: they are runs already.
        together = np.sort(np.concatenate(ready), kind="stable")
        count += bool(len(together)) + int(np.count_nonzero(together[1:] != together[:-1]))
    return count


def _as_bits(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if values.dtype.kind != "f":
        return values
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
