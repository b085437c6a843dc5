"""The specification of a sharded scale, as `volume.info` reads it from an `info`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Compression = Literal["raw", "gzip"]


@dataclass(frozen=True, slots=True)
class Sharding:
    """A `neuroglancer_uint64_sharded_v1` specification.

    Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md
    """

    hash: Literal["identity", "murmurhash3_x86_128"]
    preshift_bits: int
    minishard_bits: int
    shard_bits: int
    minishard_index_encoding: Compression = "raw"
    data_encoding: Compression = "raw"
