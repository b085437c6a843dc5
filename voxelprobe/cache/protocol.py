"""What fetching and decoding need of a cache of chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from voxelprobe.transport.protocol import StoredObject

ABSENT = StoredObject(b"", None)
"""What stands for a chunk that the store doesn't have; a stored chunk of zero bytes means the same."""


class ChunkCache(Protocol):
    """Chunks of one scale as the store has them, compression and all, by region and chunk number.

    An encoding comes back as it was written, but that "", which is none, may come back as None.
    """

    def known(self, region: int, chunks: Sequence[int]) -> set[int]:
        """Return which of `chunks` are here, those known as `ABSENT` included."""
        ...

    def read(self, region: int, chunks: Sequence[int]) -> dict[int, StoredObject]:
        """Return those of `chunks` that are here."""
        ...

    def write(self, region: int, objects: Mapping[int, StoredObject]) -> None:
        """Keep chunks; when this returns they survive the process."""
        ...

    def discard(self, region: int, chunks: Iterable[int]) -> None:
        """Forget chunks, so that they will be fetched again."""
        ...
