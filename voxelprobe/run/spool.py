"""Located points on their way into groups: in memory while they are few, else appended to a file a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64
from voxelprobe.errors import TransportError

RECORD = np.dtype([("chunk", "<i8"), ("point", "<i8"), ("place", "<u4")])
MEMORY_POINTS = 16 << 20


class GroupSpool:
    """Points by group. The folder is created when it is needed; who made the spool deletes it."""

    def __init__(self, folder: Path, groups: int, *, memory_points: int = MEMORY_POINTS) -> None:
        self._folder = folder
        self._memory_points = memory_points
        self._held: list[list[npt.NDArray[Any]]] = [[] for _ in range(groups)]
        self._count = 0

    def add(self, points: Int64, chunks: Int64, places: Int64, groups: Int64) -> None:
        """Take points, all shape (n,), with their group each."""
        # 16-bit numbers are sorted by radix; there are at most 256 groups.
        order = np.argsort(groups.astype(np.uint16), kind="stable")
        records = np.empty(len(points), RECORD)
        records["chunk"], records["point"], records["place"] = chunks[order], points[order], places[order]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=len(self._held)))])
        for group in np.flatnonzero(np.diff(bounds)).tolist():
            self._held[group].append(records[bounds[group] : bounds[group + 1]])
        self._count += len(points)
        if self._count > self._memory_points:
            self._flush()

    def take(self, group: int) -> tuple[Int64, Int64, Int64]:
        """Return and forget a group's points, chunks and places, each shape (n,), in the order they were added."""
        parts = self._held[group]
        path = self._path(group)
        if path.exists():
            parts = [np.fromfile(path, RECORD), *parts]
            path.unlink()
        self._held[group] = []
        records = np.concatenate(parts) if parts else np.empty(0, RECORD)
        return records["point"].copy(), records["chunk"].copy(), records["place"].astype(np.int64)

    def _flush(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for group, parts in enumerate(self._held):
                if parts:
                    with open(self._path(group), "ab") as file:
                        for part in parts:
                            file.write(part.tobytes())
                    self._held[group] = []
        except OSError as error:
            raise TransportError(f"{self._folder}: can't be written: {error.strerror or error}") from error
        self._count = 0

    def _path(self, group: int) -> Path:
        return self._folder / f"group-{group:03d}.points"
