"""Which chunks a table of points needs, and who does which: integers in, integers out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Bool, Int64, Voxels
from voxelprobe.records import Status
from voxelprobe.volume.grid import ChunkGrid, Regions

MAX_GROUPS = 256
"""Luigi's scheduler is quadratic in the number of tasks."""

# In chunks. A group of fewer pays more for its tasks than for its work; a run of fewer than four
# groups leaves workers idle.
_CHUNKS_A_GROUP = 512
_MIN_GROUPS = 4
_MIN_CHUNKS_TO_CUT = 16
# A point costs about this much of a chunk (benchmarks/crossovers.py).
_CHUNKS_A_POINT = 1 / 2000


@dataclass(frozen=True, slots=True)
class LocatedPoints:
    """Where points are: chunk number and place in it, both shape (n,), meant only where status is OK."""

    chunks: Int64
    places: Int64
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
    places: Int64

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


def locate_points(voxels: Voxels, valid: Bool, grid: ChunkGrid) -> LocatedPoints:
    """Return the chunk and status of each voxel, shape (n, 3); `valid`, shape (n,), is false for no coordinate."""
    status = np.full(len(voxels), Status.OK, np.uint8)
    inside = grid.contains(voxels)
    status[~inside] = Status.OUT_OF_BOUNDS
    status[~valid] = Status.INVALID_COORDINATE
    placed = status == Status.OK
    if placed.all():
        chunks, places = grid.locate(voxels)
    else:
        chunks = np.full(len(voxels), -1, np.int64)
        places = np.zeros(len(voxels), np.int64)
        chunks[placed], places[placed] = grid.locate(voxels[placed])
    return LocatedPoints(chunks, places, status)


def order_by_chunk(points: Int64, chunks: Int64, places: Int64, regions: Regions) -> ChunkJobs:
    """Return jobs for points, all shape (n,), that lie in `chunks`."""
    order = np.argsort(chunks, kind="stable")
    ordered = chunks[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    needed = ordered[starts]
    numbers = regions.numbers(needed)
    first = np.concatenate([starts, [len(ordered)]])
    if (np.diff(numbers) < 0).any():
        # Few chunks are moved, then their points with them in runs.
        by_region = np.argsort(numbers, kind="stable")
        counts = np.diff(first)[by_region]
        begins = np.concatenate([[0], np.cumsum(counts)])
        moved = np.arange(len(ordered)) + np.repeat(starts[by_region] - begins[:-1], counts)
        order, needed, numbers, first = order[moved], needed[by_region], numbers[by_region], begins
    return ChunkJobs(needed, numbers, first.astype(np.int64), points[order], places[order])


class RegionTally:
    """How many points and chunks each region has, counted batch by batch."""

    def __init__(self, regions: Regions) -> None:
        self._regions = regions
        self.numbers: Int64 = np.zeros(0, np.int64)
        self.points: Int64 = np.zeros(0, np.int64)
        # An upper bound over several batches: a chunk counts once a batch.
        self.chunks: Int64 = np.zeros(0, np.int64)

    def add(self, chunks: Int64) -> None:
        """Count points that lie in `chunks`, shape (n,)."""
        needed, points = np.unique(chunks, return_counts=True)
        numbers, where = np.unique(self._regions.numbers(needed), return_inverse=True)
        merged = np.union1d(self.numbers, numbers)
        totals = np.zeros((2, len(merged)), np.int64)
        at = np.searchsorted(merged, self.numbers)
        totals[0, at], totals[1, at] = self.points, self.chunks
        at = np.searchsorted(merged, numbers)
        totals[0, at] += np.bincount(where, points, len(numbers)).astype(np.int64)
        totals[1, at] += np.bincount(where, minlength=len(numbers))
        self.numbers, self.points, self.chunks = merged, totals[0], totals[1]

    def cut_groups(self) -> Int64:
        """Return each region's group, shape (regions,): runs of regions of about equal cost, 0, 1, 2, …."""
        costs = self.chunks + self.points * _CHUNKS_A_POINT
        total = float(costs.sum())
        wanted = int(np.ceil(total / _CHUNKS_A_GROUP))
        if total >= _MIN_CHUNKS_TO_CUT:
            wanted = max(wanted, _MIN_GROUPS)
        wanted = max(min(wanted, MAX_GROUPS, len(costs)), 1)
        middles = np.cumsum(costs) - costs / 2
        groups = np.minimum(middles * (wanted / max(total, 1e-9)), wanted - 1).astype(np.int64)
        # A region that outweighs a group leaves empty numbers behind it.
        return np.unique(groups, return_inverse=True)[1].astype(np.int64)
