"""A cache that lives as long as one call: for notebooks that keep nothing on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence


class MemoryCache:
    """Chunks in a dictionary."""

    def __init__(self) -> None:
        self._payloads: dict[int, bytes] = {}

    def known(self, region: int, chunks: Sequence[int]) -> set[int]:
        """Return which of `chunks` are here."""
        return self._payloads.keys() & set(chunks)

    def read(self, region: int, chunks: Sequence[int]) -> dict[int, bytes]:
        """Return the payloads of those of `chunks` that are here."""
        return {chunk: self._payloads[chunk] for chunk in chunks if chunk in self._payloads}

    def each(self, region: int, chunks: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Yield those of `chunks` that are here and their payloads."""
        return iter(self.read(region, chunks).items())

    def write(self, region: int, payloads: Mapping[int, bytes]) -> None:
        """Keep payloads."""
        self._payloads.update(payloads)

    def discard(self, region: int, chunks: Iterable[int]) -> None:
        """Forget chunks."""
        for chunk in chunks:
            self._payloads.pop(chunk, None)
