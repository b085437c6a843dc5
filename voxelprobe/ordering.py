"""Points brought into the order of their chunks: sorted in runs that fit a cache, and the runs merged.

A point's chunk is given by its region's number and by its cell, which tells the chunks of a region apart (`Regions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64, UInt64, from_arrow, to_arrow

Integers = npt.NDArray[Any]

# Arrow counts numbers of a range of up to 4,096 instead of comparing them.
_DIGIT_BITS = 12
# Below, sorting costs less than loading Arrow's functions.
_FEW = 4_096
# Points that are gathered at once: what they take fits a second-level cache.
_GATHERED = 1 << 16


@dataclass(frozen=True, slots=True)
class PointRun:
    """Points of neighbouring rows, sorted by region and then by cell; in the table's order within a cell.

    Attributes
    ----------
    first
        The number of a point is `first` and the upper half of its word.
    regions, cells, counts
        Shape (m,), each chunk once: its region and cell, and its points.
    words
        Shape (n,), uint64: the lower half is the point's place in its chunk.
    """

    first: int
    regions: Integers
    cells: Integers
    counts: Integers
    words: UInt64


@dataclass(frozen=True, slots=True)
class MergedPoints:
    """The points of several runs in one order: by region, cell and run.

    Attributes
    ----------
    regions, cells
        Shape (m,), each chunk once.
    first
        Shape (m + 1,): the points of chunk i are [first[i], first[i + 1]).
    points, places
        Shape (n,): the points' numbers, and their places in a chunk.
    """

    regions: Integers
    cells: Integers
    first: Int64
    points: Int64
    places: npt.NDArray[np.uint32]


def sort_run(first: int, numbers: Int64 | None, regions: Integers, cells: Integers, places: Integers) -> PointRun:
    """Return points in the order of their chunks.

    Parameters
    ----------
    numbers
        Shape (n,), 0 to 2^32 - 1, ascending: what is added to `first`. By default 0, 1, 2, ….
    regions, cells, places
        Shape (n,), places below 2^32.
    """
    codes = _pack(cells, regions)
    if _are_neighbours(codes):
        # Few pieces are moved, not every point.
        begins = find_runs(*codes)
        moved = stable_order(*(code[begins] for code in codes))
        order = expand(begins[moved], np.diff(begins, append=len(cells))[moved])
    else:
        order = stable_order(*codes)
    starts = find_runs(*(code[order] for code in codes))
    chosen = order[starts]
    words = places[order].astype(np.uint64)
    words |= (order if numbers is None else numbers[order]).view(np.uint64) << np.uint64(32)
    counts = np.diff(starts, append=len(order)).astype(np.uint32)
    return PointRun(first, regions[chosen], cells[chosen], counts, words)


def merge_runs(runs: Sequence[PointRun]) -> MergedPoints:
    """Return the points of runs, of which there is one at least, as one."""
    words = runs[0].words if len(runs) == 1 else np.concatenate([run.words for run in runs])
    regions = np.concatenate([run.regions for run in runs])
    cells = np.concatenate([run.cells for run in runs])
    counts = np.concatenate([run.counts for run in runs]).astype(np.int64)
    firsts = np.repeat(np.array([run.first for run in runs], np.int64), [len(run.cells) for run in runs])
    begins = np.cumsum(counts) - counts
    if len(runs) > 1:
        order = stable_order(*_pack(cells, regions))
        regions, cells, counts, firsts, begins = (a[order] for a in (regions, cells, counts, firsts, begins))
    ends = np.cumsum(counts)
    points, places = np.empty(len(words), np.int64), np.empty(len(words), np.uint32)
    done = 0
    cuts = np.unique(np.searchsorted(ends, np.arange(0, len(words), _GATHERED), "right"))
    for begin, end in pairwise([*cuts.tolist(), len(counts)]):
        gathered = words[expand(begins[begin:end], counts[begin:end])]
        block = slice(done, done + len(gathered))
        places[block] = gathered.astype(np.uint32)  # the lower half
        points[block] = gathered >> np.uint64(32)
        points[block] += np.repeat(firsts[begin:end], counts[begin:end])
        done += len(gathered)
    starts = find_runs(regions, cells)
    first = np.append((ends - counts)[starts], len(words))
    return MergedPoints(regions[starts], cells[starts], first, points, places)


def stable_order(*keys: Integers) -> Int64:
    """Return the order (n,) that sorts by the last key, then by the one before it, …; equals stay as they are.

    Digit by digit from the lowest, each by counting: a tenth of the cost of comparing, and the same everywhere.
    """
    count = len(keys[0])
    if count < _FEW:
        return np.lexsort(keys)
    import pyarrow.compute as pc

    order: Int64 | None = None
    for key in keys:
        low = key.min()
        bits = (int(key.max()) - int(low)).bit_length()
        passes = -(-bits // _DIGIT_BITS)
        width = -(-bits // max(passes, 1))
        if passes:
            digits = (key - low).view(f"u{key.itemsize}")  # a difference beyond int64 wraps to what it is
        for step in range(passes):
            digit = digits if passes == 1 else digits >> (step * width) & (2**width - 1)
            digit = digit.astype(np.uint16)
            indices = pc.array_sort_indices(to_arrow(digit if order is None else digit[order]))
            found = from_arrow(indices).view(np.int64)
            order = found if order is None else order[found]
    return np.arange(count) if order is None else order


def _pack(low: Integers, high: Integers) -> tuple[Integers, ...]:
    """Return one key that sorts as two do, or those two if 64 bits don't hold both."""
    if not len(low):
        return low, high
    least = low.min(), high.min()
    low_bits, high_bits = (int(int(key.max()) - int(base)).bit_length() for key, base in zip((low, high), least,
                                                                                            strict=True))
    if low_bits + high_bits > 64:
        return low, high
    dtype = np.uint32 if low_bits + high_bits <= 32 else np.uint64
    packed = (high - least[1]).astype(dtype)
    packed <<= dtype(low_bits)
    packed |= (low - least[0]).astype(dtype)
    return (packed,)


def _are_neighbours(codes: Sequence[Integers]) -> bool:
    """Tell from some pairs whether points mostly have the chunk of the point before them."""
    return all(4 * np.count_nonzero(code[1::8] == code[:-1:8]) > 3 * (len(code) // 8) for code in codes)


def find_runs(*keys: Integers) -> Int64:
    """Return where runs of equal keys, shape (n,) each, begin."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    changed = np.empty(len(keys[0]), np.bool_)
    changed[0] = True
    np.not_equal(keys[0][1:], keys[0][:-1], out=changed[1:])
    for key in keys[1:]:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)


def expand(begins: Int64, counts: Int64) -> Int64:
    """Return begins[0], begins[0] + 1, … (counts[0] numbers), begins[1], …."""
    ends = np.cumsum(counts)
    numbers = np.repeat(begins - ends + counts, counts)
    numbers += np.arange(len(numbers))
    return numbers
