"""What fetching and decoding need of a cache of chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

ABSENT = b""
"""What stands for a chunk that the store doesn't have; a stored chunk of zero bytes means the same."""


class ChunkCache(Protocol):
    """Stripped chunks of one scale, by region and chunk number."""

    def known(self, region: int, chunks: Sequence[int]) -> set[int]:
        """Return which of `chunks` are here, those known as `ABSENT` included."""
        ...

    def read(self, region: int, chunks: Sequence[int]) -> dict[int, bytes]:
        """Return the payloads of those of `chunks` that are here."""
        ...

    def each(self, region: int, chunks: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Yield those of `chunks` that are here and their payloads, in any order; no writing until it ends."""
        ...

    def write(self, region: int, payloads: Mapping[int, bytes]) -> None:
        """Keep payloads; when this returns they survive the process."""
        ...

    def discard(self, region: int, chunks: Iterable[int]) -> None:
        """Forget chunks, so that they will be fetched again."""
        ...
