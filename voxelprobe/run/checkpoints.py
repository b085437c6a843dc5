"""The batches of roots that were answered, kept while a group is under way."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import UInt64

_SUM_BYTES = 4


class Checkpoints:
    """The answered batches of a group under way: a file each, on this machine, until the group's file is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0

    def read(self, earlier: tuple[UInt64, UInt64]) -> tuple[UInt64, UInt64]:
        """Return the ids that were answered, `earlier` too, and their roots; files that a crash damaged don't count."""
        ids, roots = [earlier[0]], [earlier[1]]
        for path in sorted(self._folder.glob("*.npy")):
            self._next = max(self._next, int(path.stem) + 1)
            pairs = _read_pairs(path)
            if pairs is not None:
                ids.append(pairs[0])
                roots.append(pairs[1])
        # An id that was answered twice, in a group that was resolved in part before, counts once.
        all_ids, first = np.unique(np.concatenate(ids), return_index=True)
        return all_ids, np.concatenate(roots)[first]

    def write(self, ids: UInt64, roots: UInt64) -> None:
        """Keep a batch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".tmp-{self._next}"
        content = io.BytesIO()
        np.save(content, np.stack([ids, roots]), allow_pickle=False)
        with open(temporary, "wb") as file:
            file.write(content.getbuffer())
            file.write(_checksum(content.getbuffer()))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._folder / f"{self._next:06d}.npy")
        self._next += 1

    def remove(self) -> None:
        """Delete the batches: the group's file has them."""
        import shutil

        shutil.rmtree(self._folder, ignore_errors=True)


def _read_pairs(path: Path) -> npt.NDArray[np.uint64] | None:
    """Return a batch's ids and roots, shape (2, n), or None if it isn't what was written."""
    try:
        content = memoryview(path.read_bytes())
        if content[-_SUM_BYTES:] != _checksum(content[:-_SUM_BYTES]):
            return None
        pairs: npt.NDArray[Any] = np.load(io.BytesIO(content[:-_SUM_BYTES]), allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return None
    return pairs if pairs.dtype == np.uint64 and pairs.ndim == 2 and pairs.shape[0] == 2 else None


def _checksum(content: memoryview) -> bytes:
    """Return what stands after a batch: a power cut may leave zeros, which would pass for points without a root."""
    return int(google_crc32c.value(bytes(content))).to_bytes(_SUM_BYTES, "little")
