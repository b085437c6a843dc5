"""A cache that lives as long as one call: for notebooks that keep nothing on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from voxelprobe.transport.protocol import StoredObject


class MemoryCache:
    """Chunks in a dictionary."""

    def __init__(self) -> None:
        self._objects: dict[int, StoredObject] = {}

    def known(self, region: int, chunks: Sequence[int]) -> set[int]:
        """Return which of `chunks` are here."""
        return self._objects.keys() & set(chunks)

    def read(self, region: int, chunks: Sequence[int]) -> dict[int, StoredObject]:
        """Return those of `chunks` that are here."""
        return {chunk: self._objects[chunk] for chunk in chunks if chunk in self._objects}

    def write(self, region: int, objects: Mapping[int, StoredObject]) -> None:
        """Keep chunks."""
        self._objects.update(objects)

    def discard(self, region: int, chunks: Iterable[int]) -> None:
        """Forget chunks."""
        for chunk in chunks:
            self._objects.pop(chunk, None)
