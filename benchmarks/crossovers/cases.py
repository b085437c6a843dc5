"""A chunk in one encoding, the ways to read points of it, and what they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from voxelprobe.codecs import load_reader
from voxelprobe.codecs.protocol import ChunkLayout

Read = Callable[[bytes, ChunkLayout, np.ndarray], np.ndarray]
# Draws of points a number of them: a png is decoded up to the last row that has one.
DRAWS = 4


@dataclass(frozen=True)
class Case:
    """An encoded chunk of one channel.

    Attributes
    ----------
    decode
        The full decode by the usual package; shape (x, y, z).
    others
        Further ways to read points, by name: parts of ours, or the package's own.
    remark
        Of how the chunk is stored.
    """

    name: str
    encoding: str
    layout: ChunkLayout
    payload: bytes
    decode: Callable[[bytes], np.ndarray]
    others: dict[str, Read] = field(default_factory=dict)
    remark: str = ""

    def measure(self, number: int, seconds: float) -> dict[str, float]:
        """Return microseconds of CPU for `number` random points, by way; the last is the full decode and indexing.

        The labels of all ways are compared first.
        """
        draws = [np.random.default_rng(seed).integers(0, self.layout.shape, (number, 3)) for seed in range(DRAWS)]
        reads: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            name: partial(read, self.payload, self.layout)
            for name, read in {self.name: load_reader(self.encoding, "here").read_points, **self.others}.items()
        }
        reads["full decode"] = lambda voxels: self.decode(self.payload)[tuple(voxels.T)]
        for voxels in draws:
            first, *rest = (np.ravel(read(voxels)) for read in reads.values())
            if not all(np.array_equal(first, other) for other in rest):
                raise AssertionError(f"{self.name}: the ways give different labels")
        spent = time_by_turns([partial(_read_all, read, draws) for read in reads.values()], seconds)
        return {name: us / DRAWS for name, us in zip(reads, spent, strict=True)}


def _read_all(read: Callable[[np.ndarray], np.ndarray], draws: list[np.ndarray]) -> None:
    for voxels in draws:
        read(voxels)


def time_by_turns(functions: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Return the best of many calls of each in microseconds of CPU; three turns at least."""
    best = [np.inf] * len(functions)
    end, turns = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turns < 3:
        turns += 1
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            best[i] = min(best[i], time.process_time() - start)
    return [spent * 1e6 for spent in best]
