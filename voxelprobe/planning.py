"""Which chunks a table of points needs, and who does which: integers in, integers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Bool, Int64
from voxelprobe.ordering import PointRun, expand, find_runs, merge_runs, stable_order
from voxelprobe.records import Status
from voxelprobe.volume.boxes import BLOCK, Integers, UInt32, Unsigned
from voxelprobe.volume.grid import Regions

if TYPE_CHECKING:
    from voxelprobe.points.units import UnitConversion

MAX_GROUPS = 256
"""Luigi's scheduler is quadratic in the number of tasks."""

# In chunks. A group of fewer pays more for its tasks than for its work; a run of fewer than four
# groups leaves workers idle.
_CHUNKS_A_GROUP = 512
_MIN_GROUPS = 4
_MIN_CHUNKS_TO_CUT = 16
# A point costs about this much of a chunk (benchmarks/crossovers).
_CHUNKS_A_POINT = 1 / 2000
# Batches' regions are summed up when they are so many more than the regions there are.
_TALLIED = 1 << 18


@dataclass(frozen=True, slots=True)
class LocatedPoints:
    """Where points are, all of shape (n,); regions, cells and places are meant only where status is OK.

    Attributes
    ----------
    regions, cells
        What tells the chunk, see `Regions.cells`.
    places
        Flat place in a whole chunk, x fastest.
    """

    regions: Integers
    cells: Unsigned
    places: UInt32
    status: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ChunkJobs:
    """Chunks, and the points to read in each: what is fetched and decoded together.

    Attributes
    ----------
    chunks, regions
        Shape (m,), sorted by region and then by chunk, each chunk once.
    first
        Shape (m + 1,): the points of chunk i are [first[i], first[i + 1]).
    points, places
        Shape (n,): the points' numbers, and their flat places in a whole chunk.
    """

    chunks: Int64
    regions: Int64
    first: Int64
    points: Int64
    places: Integers

    def by_region(self, max_chunks: int) -> Iterator[tuple[int, int, int]]:
        """Yield (region, begin, end) of runs of chunks in one region, at most `max_chunks` long."""
        cuts = np.flatnonzero(np.diff(self.regions)) + 1
        for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(self.chunks)], strict=True):
            for start in range(begin, end, max_chunks):
                yield int(self.regions[start]), start, min(start + max_chunks, end)

    def select(self, wanted: Bool) -> tuple[ChunkJobs, Bool]:
        """Return the jobs of some chunks, mask (m,), and the mask (n,) of their points."""
        counts = np.diff(self.first)
        of_points = np.repeat(wanted, counts)
        first = np.concatenate([[0], np.cumsum(counts[wanted])]).astype(np.int64)
        return (
            ChunkJobs(self.chunks[wanted], self.regions[wanted], first, self.points[of_points], self.places[of_points]),
            of_points,
        )


def locate_points(
    axes: Sequence[npt.NDArray[Any]], present: Bool | None, conversion: UnitConversion, regions: Regions
) -> LocatedPoints:
    """Return where points are.

    Parameters
    ----------
    axes
        x, y and z, of shape (n,) each, int64 or float64, in the points' unit.
    present
        Shape (n,), false for no coordinate; by default all are there.
    """
    grid, count = regions.grid, len(axes[0])
    status = np.full(count, Status.OK, np.uint8)
    places = np.empty(count, np.uint32)
    numbers: Integers | None = None
    cells = np.empty(0, np.uint32)
    for start in range(0, max(count, 1), BLOCK):
        block = slice(start, start + BLOCK)
        offsets = [grid.offsets(conversion.axis_to_voxels(values[block], axis), axis)
                   for axis, values in enumerate(axes)]
        inside = grid.contain(offsets)
        if present is not None:
            inside &= present[block]
        if not inside.all():
            outside = np.flatnonzero(~inside)
            status[start + outside] = _judge_outside([values[block][outside] for values in axes],
                                                     None if present is None else present[block][outside])
            for axis_offsets in offsets:
                axis_offsets[outside] = 0
        positions, places[block] = grid.split(offsets)
        block_numbers, block_cells = regions.cells(positions)
        if start == 0:
            cells = np.empty(count, block_cells.dtype)
            numbers = None if block_numbers is None else np.empty(count, block_numbers.dtype)
        cells[block] = block_cells
        if numbers is not None:
            numbers[block] = block_numbers
    return LocatedPoints(regions.numbers(cells) if numbers is None else numbers, cells, places, status)


def _judge_outside(axes: Sequence[npt.NDArray[Any]], present: Bool | None) -> npt.NDArray[np.uint8]:
    somewhere = np.isfinite(axes[0]) & np.isfinite(axes[1]) & np.isfinite(axes[2])
    if present is not None:
        somewhere &= present
    return np.where(somewhere, Status.OUT_OF_BOUNDS, Status.INVALID_COORDINATE).astype(np.uint8)


def order_by_chunk(points: Int64, chunks: Int64, places: Integers, regions: Regions) -> ChunkJobs:
    """Return jobs for points, all shape (n,), that lie in `chunks`."""
    order = stable_order(chunks)
    ordered = chunks[order]
    starts = find_runs(ordered)
    needed = ordered[starts].astype(np.int64)
    numbers = regions.numbers(needed)
    first = np.append(starts, len(ordered))
    if (np.diff(numbers) < 0).any():
        # Few chunks are moved, then their points with them in runs.
        by_region = np.argsort(numbers, kind="stable")
        counts = np.diff(first)[by_region]
        order = order[expand(starts[by_region], counts)]
        needed, numbers, first = needed[by_region], numbers[by_region], np.append(0, np.cumsum(counts))
    return ChunkJobs(needed, numbers, first, points[order], places[order].astype(np.int64))


def merge_jobs(runs: Sequence[PointRun], regions: Regions) -> ChunkJobs:
    """Return the jobs of a group's runs, of which there is one at least; places are uint32."""
    merged = merge_runs(runs)
    chunks = regions.chunks(merged.regions, merged.cells)
    return ChunkJobs(chunks, merged.regions.astype(np.int64), merged.first, merged.points, merged.places)


class RegionTally:
    """How many points and chunks each region has, counted batch by batch."""

    def __init__(self, regions: Regions) -> None:
        self._capacity = regions.capacity()
        self._added: list[tuple[Int64, Int64, Int64]] = [(np.zeros(0, np.int64),) * 3]
        self._size = 0

    def add(self, regions: Integers, counts: Integers) -> None:
        """Count chunks, shape (m,), sorted by region: the region of each, and its points."""
        begins = find_runs(regions)
        if not len(begins):
            return
        points = np.add.reduceat(counts, begins, dtype=np.int64)
        self._added.append((regions[begins].astype(np.int64), points, np.diff(begins, append=len(regions))))
        self._size += len(begins)
        if self._size > 2 * len(self._added[0][0]) + _TALLIED:
            self._sum_up()

    @property
    def numbers(self) -> Int64:
        """Return the regions that have points, ascending."""
        return self._sum_up()[0]

    @property
    def points(self) -> Int64:
        """Return the points of each of `numbers`."""
        return self._sum_up()[1]

    @property
    def chunks(self) -> Int64:
        """Return about the chunks of each of `numbers`: one counts once a batch, up to what a region holds."""
        return np.minimum(self._sum_up()[2], self._capacity)

    def _sum_up(self) -> tuple[Int64, Int64, Int64]:
        if len(self._added) > 1:
            regions, points, chunks = (np.concatenate(parts) for parts in zip(*self._added, strict=True))
            order = stable_order(regions)
            begins = find_runs(regions[order])
            self._added = [(regions[order][begins], np.add.reduceat(points[order], begins),
                            np.add.reduceat(chunks[order], begins))]
            self._size = 0
        return self._added[0]

    def cut_groups(self) -> Int64:
        """Return the group of each of `numbers`."""
        return cut_groups(self.chunks, self.points)


def cut_groups(chunks: Int64, points: Int64) -> Int64:
    """Return each region's group, shape (regions,): runs of regions of about equal cost, 0, 1, 2, …."""
    costs = chunks + points * _CHUNKS_A_POINT
    total = float(costs.sum())
    wanted = int(np.ceil(total / _CHUNKS_A_GROUP))
    if total >= _MIN_CHUNKS_TO_CUT:
        wanted = max(wanted, _MIN_GROUPS)
    wanted = max(min(wanted, MAX_GROUPS, len(costs)), 1)
    middles = np.cumsum(costs) - costs / 2
    groups = np.minimum(middles * (wanted / max(total, 1e-9)), wanted - 1).astype(np.int64)
    # A region that outweighs a group leaves empty numbers behind it.
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)
