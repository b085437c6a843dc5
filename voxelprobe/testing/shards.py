"""Shards of a Precomputed volume, written straight from the specification: chunk ids, hashes, files.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md
A second reading of it beside `voxelprobe.sharding`, plain and slow: one chunk at a time, in Python's integers.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Triple = tuple[int, int, int]
SHARDING_TYPE = "neuroglancer_uint64_sharded_v1"
SHARDING_DEFAULTS = {"@type": SHARDING_TYPE, "hash": "identity", "minishard_index_encoding": "raw",
                     "data_encoding": "raw"}


def write_shards(
    folder: Path,
    sharding: Mapping[str, Any],
    grid_size: Sequence[int],
    chunks: Mapping[Triple, bytes],
    *,
    gap_bytes: int,
) -> None:
    """Write encoded chunks, given by grid position, as the shards of one scale, into the scale's folder."""
    shards: dict[int, dict[int, dict[int, bytes]]] = defaultdict(lambda: defaultdict(dict))
    for grid, data in chunks.items():
        chunk_id = morton_code(grid, grid_size)
        shard, minishard = shard_of_chunk(chunk_id, sharding)
        shards[shard][minishard][chunk_id] = _pack(data, sharding["data_encoding"])
    folder.mkdir(parents=True, exist_ok=True)
    for shard, minishards in shards.items():
        body, table = bytearray(), np.zeros((2 ** sharding["minishard_bits"], 2), "<u8")
        for minishard, members in sorted(minishards.items()):
            rows, last_id, last_end = [], 0, 0
            for chunk_id, data in sorted(members.items()):
                body += b"\xff" * gap_bytes
                rows.append((chunk_id - last_id, len(body) - last_end, len(data)))
                body += data
                last_id, last_end = chunk_id, len(body)
            index = _pack(np.array(rows, "<u8").T.tobytes(), sharding["minishard_index_encoding"])
            table[minishard] = len(body), len(body) + len(index)
            body += index
        (folder / shard_name(shard, sharding)).write_bytes(table.tobytes() + bytes(body))


def shard_name(shard: int, sharding: Mapping[str, Any]) -> str:
    """Return the name of a shard's file: hexadecimal, with the zeros that its bits call for."""
    return f"{shard:0{-(-sharding['shard_bits'] // 4)}x}.shard"


def morton_code(grid: Triple, grid_size: Sequence[int]) -> int:
    """Return the compressed Morton code of a grid position: a chunk's id in a sharded volume."""
    code = out = 0
    for bit in range(64):
        for position, size in zip(grid, grid_size, strict=True):
            if 2**bit < size:
                code |= (position >> bit & 1) << out
                out += 1
    return code


def murmurhash3_x86_128(value: int) -> int:
    """Return the low 8 bytes of the hash of a uint64, as a little-endian number (seed 0)."""
    def rotate(x: int, r: int) -> int:
        return (x << r | x >> (32 - r)) & 0xFFFFFFFF

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        return x ^ x >> 16

    c1, c2, c3 = 0x239B961B, 0xAB0E9789, 0x38B34AE5
    low, high = value & 0xFFFFFFFF, value >> 32
    # Eight bytes are all tail: two words of the four are touched, and each is mixed with the length, 8.
    h1 = rotate(low * c1 & 0xFFFFFFFF, 15) * c2 & 0xFFFFFFFF ^ 8
    h2 = rotate(high * c2 & 0xFFFFFFFF, 16) * c3 & 0xFFFFFFFF ^ 8
    h3 = h4 = 8
    h1 = (h1 + h2 + h3 + h4) & 0xFFFFFFFF
    h1, h2, h3, h4 = (mix(h) for h in (h1, *((h + h1) & 0xFFFFFFFF for h in (h2, h3, h4))))
    h1 = (h1 + h2 + h3 + h4) & 0xFFFFFFFF
    return (h2 + h1 & 0xFFFFFFFF) << 32 | h1


def shard_of_chunk(chunk_id: int, sharding: Mapping[str, Any]) -> tuple[int, int]:
    """Return the shard and the minishard that hold a chunk."""
    hashed = chunk_id >> sharding["preshift_bits"]
    if sharding["hash"] == "murmurhash3_x86_128":
        hashed = murmurhash3_x86_128(hashed)
    shard = hashed >> sharding["minishard_bits"]
    return shard & (2 ** sharding["shard_bits"] - 1), hashed & (2 ** sharding["minishard_bits"] - 1)


def _pack(data: bytes, encoding: str) -> bytes:
    return gzip.compress(data, 6, mtime=0) if encoding == "gzip" else data
