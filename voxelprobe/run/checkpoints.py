"""The batches of roots that were answered, kept while a group is under way."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxelprobe.arrays import UInt64


class Checkpoints:
    """The answered batches of a group under way: a file each, on this machine, until the group's file is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0

    def read(self, earlier: tuple[UInt64, UInt64]) -> tuple[UInt64, UInt64]:
        """Return the ids that were answered, `earlier` too, and their roots; files cut short by a crash don't count."""
        ids, roots = [earlier[0]], [earlier[1]]
        for path in sorted(self._folder.glob("*.npy")):
            self._next = max(self._next, int(path.stem) + 1)
            try:
                pairs = np.load(path, allow_pickle=False)
            except Exception:  # noqa: S112 (whatever is wrong with it: its ids are asked for again)
                continue
            if pairs.dtype == np.uint64 and pairs.ndim == 2 and pairs.shape[0] == 2:
                ids.append(pairs[0])
                roots.append(pairs[1])
        # An id that was answered twice, in a group that was resolved in part before, counts once.
        all_ids, first = np.unique(np.concatenate(ids), return_index=True)
        return all_ids, np.concatenate(roots)[first]

    def write(self, ids: UInt64, roots: UInt64) -> None:
        """Keep a batch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".tmp-{self._next}"
        with open(temporary, "wb") as file:
            np.save(file, np.stack([ids, roots]), allow_pickle=False)
        temporary.rename(self._folder / f"{self._next:06d}.npy")
        self._next += 1

    def remove(self) -> None:
        """Delete the batches: the group's file has them."""
        import shutil

        shutil.rmtree(self._folder, ignore_errors=True)
