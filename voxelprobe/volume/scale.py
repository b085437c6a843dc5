"""What every kind of volume comes to: scales, and how their chunks lie in the store."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import InputError
from voxelprobe.sharding.boxes import BoxSharding
from voxelprobe.sharding.spec import Sharding
from voxelprobe.volume.boxes import Triple
from voxelprobe.volume.names import BoxNames, ChunkNames

ReadJson = Callable[[str], Any]
"""Gives a JSON document of a volume by its name, None where there is none."""


@dataclass(frozen=True, slots=True)
class Scale:
    """One resolution of a volume, with all that is needed to find and read a voxel.

    Attributes
    ----------
    size, voxel_offset
        Extent in voxels of this scale (x, y, z) and where it begins.
    resolution
        Voxel size in nm (x, y, z); may be fractional.
    chunk_size
        Voxels a chunk (x, y, z).
    sharding
        How chunks lie in shards: in hashed ones of Precomputed, in boxes of zarr v3, or None.
    names
        What the objects of its chunks are called; of a scale with boxes, those of its shards, by their places in the
        grid of shards. What hashed shards are called is in `sharding`.
    codecs
        Zarr and n5: what was done to the voxels of a chunk, for the encoding's point reader; see `ChunkLayout`.
    fill_value
        The value of the voxels of a chunk that the store doesn't have, where the format says so; else None, and such
        a chunk is missing.
    num_parts
        How many stored objects (or ranges of shards) make a chunk: more than 1 where channels are chunked apart.
    raw_bytes
        Bytes of a chunk before it was encoded, where that may be more than its voxels and channels take.
    """

    key: str
    size: Triple
    voxel_offset: Triple
    resolution: tuple[float, float, float]
    chunk_size: Triple
    encoding: str
    dtype: np.dtype[Any]
    num_channels: int
    block_size: Triple | None = None
    sharding: Sharding | BoxSharding | None = None
    names: ChunkNames = field(default_factory=BoxNames)
    codecs: str = ""
    fill_value: int | float | None = None
    num_parts: int = 1
    raw_bytes: int = 0

    def path(self, name: str) -> str:
        """Return the path below the volume's folder of an object of this scale."""
        return f"{self.key}/{name}" if self.key else name

    @property
    def chunk_bytes(self) -> int:
        """Return how many bytes a whole chunk has when it is decoded."""
        return max(self.raw_bytes, math.prod(self.chunk_size) * self.dtype.itemsize * self.num_channels)

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything that decides where a voxel is and how it is read."""
        facts: list[Any] = [
            self.key, self.size, self.voxel_offset, self.resolution, self.chunk_size, self.encoding, self.dtype.str,
            self.num_channels, self.block_size, repr(self.names), self.codecs, self.fill_value,
        ]
        if (spec := self.sharding) is not None:
            facts.append([getattr(spec, name) for name in spec.__slots__])
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    def chunk_layout(self, shape: Triple) -> ChunkLayout:
        """Return what a point reader needs to know of a chunk of `shape` voxels."""
        return ChunkLayout(shape, self.num_channels, self.dtype, self.block_size, self.codecs)


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """A volume's scales, finest first as the `info` lists them."""

    kind: str
    scales: tuple[Scale, ...]

    def scale_at(self, mip: str | int, where: str) -> tuple[int, Scale]:
        """Return the index and the scale named by `mip`: an index, or a resolution as in `8,8,40`.

        Raises
        ------
        InputError
            If there is no such scale; the message lists those there are.
        """
        listing = "; ".join(f"{i}: {_comma(s.resolution)} nm" for i, s in enumerate(self.scales))
        text = str(mip).strip()
        if re.fullmatch(r"\d+", text):
            if int(text) < len(self.scales):
                return int(text), self.scales[int(text)]
        else:
            try:
                wanted = tuple(float(part) for part in text.split(","))
            except ValueError:
                wanted = ()
            if len(wanted) != 3:
                raise InputError(f"mip {text!r}: expected a scale's index or its resolution as in 8,8,40")
            for index, scale in enumerate(self.scales):
                if np.allclose(scale.resolution, wanted, rtol=1e-9, atol=0):
                    return index, scale
        raise InputError(f"{where} has no mip {text}; its scales are {listing}")


def _comma(values: tuple[float, float, float]) -> str:
    # All digits, so that what is listed can be asked for.
    return ",".join(f"{int(v)}" if v.is_integer() else repr(v) for v in values)
