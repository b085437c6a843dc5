"""Chunks of zarr as numpy and numcodecs write them, one compressor or filter after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from voxelprobe.arrays import Labels
from voxelprobe.codecs.parts import pack_parts
from voxelprobe.codecs.protocol import ChunkLayout

COMPRESSORS: dict[str, dict[str, Any]] = {
    "blosc lz4": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
    "blosc zstd, bits": {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 2, "blocksize": 512},
    "blosc zlib": {"id": "blosc", "cname": "zlib", "clevel": 5, "shuffle": 0, "blocksize": 1024},
    "blosc lz4hc": {"id": "blosc", "cname": "lz4hc", "clevel": 9, "shuffle": 1, "blocksize": 2048},
    "blosc blosclz": {"id": "blosc", "cname": "blosclz", "clevel": 5, "shuffle": 1, "blocksize": 256},
    "blosc stored": {"id": "blosc", "cname": "lz4", "clevel": 0, "shuffle": 0, "blocksize": 0},
    "zstd": {"id": "zstd", "level": 3},
    "zstd checksum": {"id": "zstd", "level": 1, "checksum": True},
    "gzip": {"id": "gzip", "level": 5},
    "zlib": {"id": "zlib", "level": 1},
    "lz4": {"id": "lz4", "acceleration": 1},
    "bz2": {"id": "bz2", "level": 1},
    "xz": {"id": "lzma", "format": 1, "check": -1, "preset": 1, "filters": None},
    "lzma": {"id": "lzma", "format": 2, "check": -1, "preset": 1, "filters": None},
}
"""Every compressor, as metadata of version 2 have it."""


def describe_codecs(
    chunk: Sequence[int],
    axes: Sequence[int] = (2, 1, 0),
    *,
    order: Sequence[int] | None = None,
    dtype: str = "<u8",
    codecs: Sequence[dict[str, Any]] = (),
    parts: int = 1,
    fill_value: float | str | None = 0,
) -> str:
    """Return `ChunkLayout.codecs` as the metadata have it."""
    return json.dumps({
        "axes": list(axes), "chunk": list(chunk), "codecs": list(codecs), "dtype": dtype, "fill_value": fill_value,
        "order": list(range(len(axes)) if order is None else order), "parts": parts,
    }, sort_keys=True)


def make_layout(shape: tuple[int, int, int], num_channels: int = 1, dtype: str = "<u8", **facts: Any) -> ChunkLayout:
    """Return the layout of a chunk; unless the facts say else, as large as it is and in z y x order."""
    facts = {"chunk": shape[::-1], "dtype": dtype} | facts
    return ChunkLayout(shape, num_channels, np.dtype(dtype).newbyteorder("<"), codecs=describe_codecs(**facts))


def encode_zarr(array: Labels, layout: ChunkLayout) -> bytes:
    """Return a chunk of shape (x, y, z, channels); what the layout doesn't have is filled with rubbish."""
    import numcodecs

    facts = json.loads(layout.codecs)
    payloads: list[bytes] = []
    channels = facts["chunk"][facts["axes"].index(3)] if 3 in facts["axes"] else 1
    for part in range(facts["parts"]):
        whole = np.full(facts["chunk"], 77, np.dtype(facts["dtype"]))
        some = array[..., part * channels:(part + 1) * channels]
        kept = [axis for axis in facts["axes"] if axis >= 0]
        some = some[tuple(slice(None) if axis in kept else 0 for axis in range(4))]
        some = some.transpose([sorted(kept).index(axis) for axis in kept])
        sizes = iter(some.shape)
        whole[tuple(0 if axis < 0 else slice(next(sizes)) for axis in facts["axes"])] = some
        content: Any = np.ascontiguousarray(whole.transpose(facts["order"])).reshape(-1)
        for config in facts["codecs"]:
            if config["id"] == "crc32c":
                import google_crc32c

                content = bytes(content) + google_crc32c.value(bytes(content)).to_bytes(4, "little")
            else:
                content = numcodecs.get_codec(config).encode(content)
        payloads.append(bytes(np.ascontiguousarray(content).view("u1").data))
    return payloads[0] if len(payloads) == 1 else pack_parts(payloads)
