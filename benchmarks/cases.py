"""What is measured: volumes, tables, whom with, and what we want of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.tables import write_in_chunks, write_random
from benchmarks.volumes import Source

OURS, COLD = "voxelprobe", "voxelprobe, cold"
TENSORSTORE, CLOUDVOLUME = "tensorstore", "cloudvolume"
# scattered_points takes 0.7 to 2 ms a point: its rate is measured on so many, anywhere in the same volume. The rate
# rises with their number while chunks are still being fetched; by 10,000 points 512 chunks are all in its cache.
CLOUDVOLUME_POINTS = 10_000
# Seeds of tables: a warm cache is asked for other points than those that filled it.
FIRST_SEED, OTHER_SEED, SUBSAMPLE_SEED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one number of a case.

    Attributes
    ----------
    number
        "tensorstore", "cloudvolume" and "cold" are how many times faster we are; "wall" seconds; "peak" bytes of the
        largest process; "rate" points a second of plan, decode and merge together; "requests" to the store.
    """

    number: Literal["tensorstore", "cloudvolume", "cold", "wall", "peak", "rate", "requests"]
    bound: float

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.number not in ("wall", "peak", "requests")

    def is_met(self, found: float) -> bool:
        """Return whether a measured number is as good as wanted."""
        return found >= self.bound if self.at_least else found <= self.bound


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured.

    Attributes
    ----------
    points
        How many, anywhere in the volume; or of each of `in_chunks` chunks.
    quick_points, quick_chunks
        The same for tests of the benchmarks.
    tensorstore
        The way in which TensorStore is asked, the fastest of those in `benchmarks.peers`; None if it is not.
    cloudvolume
        Whether CloudVolume is asked, for a subsample.
    local
        Files, not the loopback store.
    warm
        What is measured is the second run in a workspace, with other points; the first is shown as the cold one.
    repeats
        Unless the command line says otherwise.
    """

    name: str
    volume: str
    points: int
    in_chunks: int = 0
    quick_points: int = 20_000
    quick_chunks: int = 0
    tensorstore: str | None = None
    cloudvolume: bool = False
    local: bool = False
    warm: bool = False
    repeats: int = 3
    goals: tuple[Goal, ...] = ()

    def table(self, source: Source, *, seed: int = FIRST_SEED) -> Path:
        """Return the table of points, written if it is not there."""
        volume = source.volumes[self.volume]
        points, chunks = (self.quick_points, self.quick_chunks) if source.quick else (self.points, self.in_chunks)
        if self.in_chunks:
            path = source.folder / "points" / f"{self.volume}-{chunks}x{points}-{seed}.parquet"
            return write_in_chunks(path, volume, chunks, points, seed)
        return self._random(source, points, seed)

    def subsample(self, source: Source) -> Path:
        """Return the table that CloudVolume is given."""
        return self._random(source, 200 if source.quick else CLOUDVOLUME_POINTS, SUBSAMPLE_SEED)

    def _random(self, source: Source, points: int, seed: int) -> Path:
        size = source.volumes[self.volume].size
        path = source.folder / "points" / f"{'x'.join(map(str, size))}-{points}-{seed}.parquet"
        return write_random(path, size, points, seed)


_MILLION = 1_000_000
# TensorStore's ways: seconds of sampling, store 20 ms away, two cores that others used too; the best of one run (all of
# sparse, chunks, blocks-1, vindex-sorted) to five. Differences below a third are noise. Its cache pool is off: no chunk
# is asked for twice, and with 4 GB of it vindex took 2.0 s and chunks 6.5 s for dense, and 4 GB.
#                          vindex  vindex-sorted  blocks-1  blocks-16  blocks-64  blocks-256  chunks  chunks-batch
#   dense, 1M                 1.2            2.2       2.2        1.1        1.4         1.2     4.4           3.8
#   dense, 10M                2.4            3.1                  3.6        3.6
#   sparse, 3,072 chunks      4.5            5.2       4.7                   4.5         4.1    24.9
#   sparse, all, 1M           123                               93.7       65.5
#   raw, 1M                   2.6                                 2.6        2.6
#   sharded, 1M               0.9                                            1.2         0.9
#   sharded-sparse            0.8                                 0.9        0.9         1.2
# One read of all points is what its documentation shows; where all of a shard is needed it then fetches it whole.
# Batches (ts.Batch) made nothing faster: sharded 1.2 and 1.0, sharded-sparse 1.1 and 1.1, with 64 and 256 chunks a
# block; sparse, 3,072 chunks 11.1 with 64.
CASES = (
    Case("dense", "dense", _MILLION, tensorstore="blocks-16", cloudvolume=True,
         goals=(Goal("tensorstore", 1.0), Goal("cloudvolume", 300.0))),
    Case("dense-10m", "dense", 10 * _MILLION, quick_points=100_000, tensorstore="vindex",
         goals=(Goal("tensorstore", 1.5),)),
    Case("warm", "dense", _MILLION, warm=True, goals=(Goal("cold", 2.0), Goal("requests", 1.0))),
    Case("sparse", "sparse", _MILLION, tensorstore="blocks-64", repeats=1, goals=(Goal("tensorstore", 1.5),)),
    Case("one-a-chunk", "sparse", 1, in_chunks=32_768, quick_points=1, quick_chunks=512, tensorstore="blocks-64",
         repeats=1, goals=(Goal("tensorstore", 1.5),)),
    Case("sharded", "sharded", _MILLION, tensorstore="vindex", cloudvolume=True),
    Case("sharded-sparse", "sharded-sparse", 50, in_chunks=400, quick_points=50, quick_chunks=40,
         tensorstore="vindex"),
    Case("crackle", "crackle", _MILLION, cloudvolume=True, goals=(Goal("cloudvolume", 300.0),)),
    Case("compresso", "compresso", _MILLION, cloudvolume=True, goals=(Goal("cloudvolume", 300.0),)),
    Case("raw", "raw", _MILLION, tensorstore="vindex", cloudvolume=True),
    Case("start-up", "dense", 10, quick_points=10, local=True, goals=(Goal("wall", 3.0),)),
    Case("huge", "sparse", 100 * _MILLION, quick_points=200_000, local=True, repeats=1,
         goals=(Goal("peak", float(2 << 30)), Goal("rate", 1e6))),
)
