"""A scale of a Precomputed volume: names of its chunks computed from the `info`'s text.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.audit.decoders import decode_chunk, explain_decoder
from voxelprobe.audit.places import FetchChunk, Part, Ratios, Triple, clip_chunk, find_ratios, name_box, triple
from voxelprobe.audit.shards import ShardReader
from voxelprobe.audit.stripping import strip
from voxelprobe.errors import InputError
from voxelprobe.transport.sources import RetryingSource


@dataclass(frozen=True, slots=True)
class AuditedScale:
    """What an `info` says of one scale, and how many of its voxels a unit of the points is; see `AuditableScale`.

    Attributes
    ----------
    sharding
        As in the `info`; None for a file a chunk.
    """

    key: str
    size: Triple
    voxel_offset: Triple
    chunk_size: Triple
    ratios: Ratios
    encoding: str
    data_type: str
    channels: int
    block_size: Triple | None
    sharding: Mapping[str, Any] | None

    @property
    def max_bytes(self) -> int:
        """Return the most that an encoded chunk may take: generously more than its voxels."""
        voxels = math.prod(self.chunk_size) * self.channels
        return 4 * voxels * np.dtype(self.data_type).itemsize + (1 << 20)

    def chunk_name(self, grid: Triple) -> str:
        """Return the name below the volume's folder of the chunk at a grid position."""
        return f"{self.key}/{name_box(self, grid)}"

    def explain(self) -> str:
        """Return which package decodes the chunks."""
        return explain_decoder(self)

    def open_chunks(self, source: RetryingSource) -> FetchChunk:
        """Return what fetches chunks: files, or parts of shards."""
        if self.sharding is None:
            def fetch_file(grid: Triple) -> list[Part | None]:
                answer = source.fetch(self.chunk_name(grid))
                return [None if answer is None else (answer.content, answer.encoding)]

            return fetch_file

        def fetch_range(name: str, start: int, end: int) -> bytes | None:
            answer = source.fetch(name, start, end)
            return None if answer is None else answer.content

        counts = [-(-s // c) for s, c in zip(self.size, self.chunk_size, strict=True)]
        shards = ShardReader(self.key, self.sharding, counts, fetch_range)

        def fetch_of_shard(grid: Triple) -> list[Part | None]:
            content = shards.read(grid, self.max_bytes)
            return [None if content is None else (content, None)]

        return fetch_of_shard

    def decode(self, grid: Triple, parts: Sequence[Part | None]) -> npt.NDArray[Any] | None:
        """Return a chunk's voxels; an empty file is no chunk."""
        (part,) = parts
        if part is None:
            return None
        payload = strip(*part, self.max_bytes)
        return decode_chunk(payload, self, clip_chunk(self, grid)) if payload else None


def read_scale(document: Mapping[str, Any], mip: int, coord_resolution: str | None, where: str) -> AuditedScale:
    """Return a scale of a parsed `info`.

    Parameters
    ----------
    coord_resolution
        See `find_ratios`.

    Raises
    ------
    InputError
        If the `info` has become something else since the run began.
    """
    try:
        scale = document["scales"][mip]
        block = scale.get("compressed_segmentation_block_size")
        return AuditedScale(
            scale["key"].removeprefix("./").strip("/"), triple(scale["size"]),
            triple(scale.get("voxel_offset", (0, 0, 0))), triple(scale["chunk_sizes"][0]),
            find_ratios(coord_resolution, document["scales"][0]["resolution"], scale["resolution"]),
            scale.get("encoding", "raw").lower(), document["data_type"].lower(), int(document["num_channels"]),
            None if block is None else triple(block), scale.get("sharding"),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{where}/info: expected what it was when the run began, found another: {error!r}") from error
