"""Objects on a local disk, as cloud-files lays them: `NAME`, or `NAME.gz` and the like when compressed."""

from __future__ import annotations

import os
from pathlib import Path

from voxelprobe.errors import AuthorizationError, TransportError
from voxelprobe.transport.protocol import RetryableError, StoredObject
from voxelprobe.transport.threads import ThreadTransfers
from voxelprobe.transport.wrappers import LOCAL_SUFFIXES


class LocalSource:
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        self.url = f"file://{folder}"
        self._folder = folder

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return a file's bytes, or a range of them; None if there is neither `path` nor a suffixed one."""
        base = os.path.join(self._folder, path)
        # Always in this order. Where `NAME` and `NAME.gz` both lie, from a volume written twice, trying first what
        # served last, as cloud-files does, makes the label depend on which thread came first.
        for suffix, encoding in LOCAL_SUFFIXES:
            try:
                content, size = _read(base + suffix, start, end)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                raise AuthorizationError(f"{base}{suffix}: no permission to read") from error
            except IsADirectoryError as error:
                raise TransportError(f"{base}{suffix}: expected a file, found a folder") from error
            except OSError as error:
                raise RetryableError(f"{base}{suffix}: {error.strerror or error}") from error
            return StoredObject(content, encoding, size)
        return None

    def open_transfers(self, *, limit: int) -> ThreadTransfers:
        """Return what reads up to `limit` files at once, a thread each."""
        return ThreadTransfers(self.fetch, limit=limit)

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _read(name: str, start: int | None, end: int | None) -> tuple[bytes, int | None]:
    with open(name, "rb", buffering=0) as file:
        if start is None and end is None:
            return file.read(), None
        # Within the file: a place that a damaged index made up can't be sought, and its length not allocated.
        size = os.fstat(file.fileno()).st_size
        begin, stop, _ = slice(start, end).indices(size)
        file.seek(begin)
        return file.read(max(stop - begin, 0)), size
