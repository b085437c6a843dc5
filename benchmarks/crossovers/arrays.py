"""Chunks of zarr: each compressor on segments of uint64 and on an image of uint8."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import partial
from unittest import mock

import numcodecs
import numpy as np

from benchmarks.crossovers.cases import Case
from benchmarks.crossovers.segmentation import grow_chunk
from voxelprobe.codecs import blosc_frame, zarr
from voxelprobe.codecs.protocol import ChunkLayout

CODECS = {
    "no codec": None,
    "zstd": {"id": "zstd", "level": 3},
    "gzip": {"id": "gzip", "level": 5},
    "zlib": {"id": "zlib", "level": 5},
    "blosc lz4": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
    "blosc zstd": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 0},
}


def grow_image(shape: tuple[int, ...]) -> np.ndarray:
    """Return grey values like those of an electron microscope: membranes and noise."""
    rng = np.random.default_rng(1)
    segments = grow_chunk(shape)
    is_edge = np.zeros(shape, bool)
    for axis in range(3):
        is_edge |= segments != np.roll(segments, 1, axis)
    return (np.where(is_edge, 90, 160) + rng.normal(0, 12, shape)).clip(0, 255).astype(np.uint8)


def decode(codec: dict | None, array: np.ndarray, payload: bytes) -> np.ndarray:
    content = numcodecs.get_codec(codec).decode(payload) if codec else payload
    return np.frombuffer(content, array.dtype).reshape(array.shape, order="F")


def read_all_blocks(payload: bytes, layout: ChunkLayout, voxels: np.ndarray) -> np.ndarray:
    def take_values(frame: bytes, dtype: np.dtype, count: int, places: np.ndarray) -> np.ndarray:
        return np.frombuffer(blosc_frame.decompress(frame, count * dtype.itemsize), dtype).take(places)

    with mock.patch.object(blosc_frame, "take_values", take_values):
        return zarr.read_points(payload, layout, voxels)


def list_cases(shape: tuple[int, int, int]) -> Iterator[Case]:
    """Yield each codec; of blosc also with all blocks decoded by the same reader."""
    numcodecs.blosc.use_threads = False  # one thread, as the reader
    for kind, array in (("uint64", grow_chunk(shape)), ("uint8", grow_image(shape))):
        for name, codec in CODECS.items():
            payload, remark = array.tobytes("F"), ""
            if codec:
                payload = bytes(numcodecs.get_codec(codec).encode(np.frombuffer(payload, array.dtype)))
            if "blosc" in name:
                nbytes, blocksize = struct.unpack_from("<II", payload, 4)
                remark = f"{-(-nbytes // blocksize)} blocks"
            layout = ChunkLayout(shape, 1, array.dtype, codecs=json.dumps({
                "axes": [2, 1, 0], "chunk": shape[::-1], "codecs": [codec] if codec else [], "dtype": array.dtype.str,
                "fill_value": 0, "order": [0, 1, 2], "parts": 1}))
            yield Case(f"zarr {kind}, {name}", "zarr", layout, payload, partial(decode, codec, array),
                       {"all blocks": read_all_blocks} if "blosc" in name else {}, remark)
