"""Sorted runs of points on their way into groups: in memory while they are few, else in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64
from voxelprobe.errors import TransportError
from voxelprobe.ordering import PointRun

MEMORY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class _Stored:
    """An array of shape (n,) in the file."""

    offset: int
    dtype: np.dtype[Any]
    count: int


_Column = npt.NDArray[Any] | _Stored


class RunSpool:
    """Runs of points, of which a group is a slice each. Who made the spool deletes its folder, made when needed.

    Any number of threads may `take`, after everything was added and cut.
    """

    def __init__(self, folder: Path, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._path = folder / "points.runs"
        self._memory_bytes = memory_bytes
        self._firsts: list[int] = []
        # regions, cells, counts and words of each run
        self._runs: list[tuple[_Column, ...]] = []
        self._held = 0
        self._written = 0
        self._file: int | None = None
        # For each run, where each group begins among its chunks and among its points.
        self._bounds: list[tuple[list[int], list[int]]] = []

    def add(self, run: PointRun) -> None:
        """Take a run; runs are added in the table's order."""
        columns = (run.regions, run.cells, run.counts, run.words)
        self._firsts.append(run.first)
        self._runs.append(columns)
        self._held += sum(column.nbytes for column in columns)
        if self._held > self._memory_bytes:
            self._flush()

    def cut(self, begins: Int64) -> None:
        """Cut the runs into groups: group i begins with region `begins[i]`, ascending."""
        self._bounds = []
        for regions, _, counts, _ in self._runs:
            at = np.searchsorted(self._read(regions), begins)
            at[0] = 0
            points = np.append(0, np.cumsum(self._read(counts), dtype=np.int64))
            self._bounds.append(([*at.tolist(), len(points) - 1], [*points[at].tolist(), int(points[-1])]))

    def count(self, group: int) -> int:
        """Return how many points a group has."""
        return sum(points[group + 1] - points[group] for _, points in self._bounds)

    def take(self, group: int) -> Iterator[PointRun]:
        """Yield a group's part of each run that has one."""
        for first, columns, (chunks, points) in zip(self._firsts, self._runs, self._bounds, strict=True):
            of_chunks = slice(chunks[group], chunks[group + 1])
            if of_chunks.start < of_chunks.stop:
                regions, cells, counts = (self._read(column, of_chunks) for column in columns[:3])
                words = self._read(columns[3], slice(points[group], points[group + 1]))
                yield PointRun(first, regions, cells, counts, words)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self, column: _Column, part: slice = slice(None)) -> npt.NDArray[Any]:
        if isinstance(column, np.ndarray):
            return column[part]
        begin, end, _ = part.indices(column.count)
        values = np.empty(end - begin, column.dtype)
        assert self._file is not None
        content = values.view(np.uint8).data
        offset = column.offset + begin * column.dtype.itemsize
        while content:
            if not (count := os.preadv(self._file, [content], offset)):
                raise TransportError(f"{self._path}: expected {len(content)} bytes at {offset}, found its end")
            content, offset = content[count:], offset + count
        return values

    def _flush(self) -> None:
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            self._runs = [tuple(self._write(column) for column in columns) for columns in self._runs]
        except OSError as error:
            raise TransportError(f"{self._path.parent}: can't be written: {error.strerror or error}") from error
        self._held = 0

    def _write(self, column: _Column) -> _Column:
        if isinstance(column, _Stored):
            return column
        assert self._file is not None
        stored = _Stored(self._written, column.dtype, len(column))
        content = np.ascontiguousarray(column).view(np.uint8).data
        while content:
            count = os.pwrite(self._file, content, self._written)
            content, self._written = content[count:], self._written + count
        return stored
