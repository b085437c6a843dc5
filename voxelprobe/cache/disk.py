"""The cache on disk: a folder a scale, a file a region, a budget for all."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from voxelprobe.cache.region_file import DamagedRegionError, RegionFile
from voxelprobe.errors import TransportError
from voxelprobe.transport.protocol import StoredObject

# Part of the folder's name. Raise it when regions are cut or rows are written in another way. Folders of earlier
# layouts are used by nobody, and so are the first to be evicted.
LAYOUT = 3
# How much is written, on average and by all processes, before the folder is measured again: a share of the budget.
_MEASURE_SHARE = 0.02

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class DiskCache:
    """A folder of region files that all scales of all volumes share, and its budget of bytes."""

    def __init__(self, root: Path, *, budget_bytes: int) -> None:
        self._root = root
        self._budget_bytes = budget_bytes

    def of_scale(self, volume_url: str, fingerprint: str) -> ScaleCache:
        """Return the part of one scale of one volume.

        The name holds the volume's place and all that decides how its chunks are read, so that two
        scales, or a volume and its remade successor, never share a file.
        """
        import hashlib

        digest = hashlib.blake2b(f"{LAYOUT} {volume_url} {fingerprint}".encode(), digest_size=8).hexdigest()
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", volume_url.rsplit("/", 1)[-1])[:40]
        folder = self._root / f"{slug}-{digest}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TransportError(f"chunk cache {folder}: {error.strerror or error}") from error
        return ScaleCache(folder, self._note_written)

    def evict(self) -> int:
        """Delete the least recently used region files until the budget holds; return the bytes freed."""
        sizes = self._measure()
        excess = sum(sizes.values()) - self._budget_bytes
        if excess <= 0:
            return 0
        freed = 0
        for path in sorted(sizes, key=_last_use):
            if freed >= excess:
                break
            try:
                if RegionFile(Path(path)).remove():
                    freed += sizes[path]
            except OSError as error:  # another user's
                logger.debug("can't evict %s: %s", path, error)
        logger.debug("evicted %d bytes from the chunk cache", freed)
        return freed

    def _measure(self) -> dict[str, int]:
        """Return the size of each region's file with what SQLite keeps beside it, by the file's path."""
        sizes: dict[str, int] = {}
        for folder in _entries(self._root):
            for entry in _entries(folder) if folder.is_dir() else ():
                name, mark, _ = entry.name.partition(".sqlite")
                if mark and name.startswith("r"):
                    with contextlib.suppress(OSError):  # another process was faster
                        path = f"{folder.path}/{name}.sqlite"
                        sizes[path] = sizes.get(path, 0) + entry.stat().st_size
        return sizes

    def _note_written(self, count: int) -> None:
        # A process is a task and may write little, so nobody can count to the share: each has its part of the chance.
        if random.random() * self._budget_bytes * _MEASURE_SHARE < count:  # noqa: S311 (no secret)
            self.evict()


class ScaleCache:
    """The cached chunks of one scale."""

    def __init__(self, folder: Path, note_written: Callable[[int], None]) -> None:
        self._folder = folder
        self._note_written = note_written

    def known(self, region: int, chunks: Sequence[int]) -> set[int]:
        """Return which of `chunks` are here, those known as absent included."""
        return self._guarded(region, lambda file: file.known(chunks)) or set()

    def read(self, region: int, chunks: Sequence[int]) -> dict[int, StoredObject]:
        """Return those of `chunks` that are here."""
        return self._guarded(region, lambda file: file.read(chunks)) or {}

    def write(self, region: int, objects: Mapping[int, StoredObject]) -> None:
        """Keep chunks; when this returns they survive the process."""
        written = self._guarded(region, lambda file: file.write(objects))
        if written is None:  # the file was damaged, and is gone
            written = self._guarded(region, lambda file: file.write(objects))
        if written is None:
            raise TransportError(f"chunk cache {self._folder}/r{region:08d}: damaged again as soon as it was made anew")
        self._note_written(written)

    def discard(self, region: int, chunks: Iterable[int]) -> None:
        """Forget chunks, so that they will be fetched again."""
        self._guarded(region, lambda file: file.discard(chunks))

    def _file(self, region: int) -> RegionFile:
        return RegionFile(self._folder / f"r{region:08d}.sqlite")

    def _guarded(self, region: int, work: Callable[[RegionFile], _Result]) -> _Result | None:
        """Do `work` on a region's file; a damaged file is deleted, and fetched anew by who needs it."""
        try:
            return work(self._file(region))
        except DamagedRegionError as error:
            logger.warning("chunk cache %s/r%08d is damaged (%s); its chunks are fetched again",
                           self._folder, region, error)
            self._file(region).remove(wait=True)
            return None
        except TransportError:
            raise
        except OSError as error:
            raise TransportError(f"chunk cache {self._folder}: {error.strerror or error}") from error


def _entries(folder: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # another process was faster
        return


def _last_use(path: str) -> float:
    try:
        return os.stat(path.removesuffix(".sqlite") + ".lock").st_mtime
    except OSError:
        return 0.0
