"""Chunks of zarr and n5, against the whole as numcodecs decodes it (gzip: zlib), and blosc's blocks against frames."""

from __future__ import annotations

import json
import random
import struct
from functools import cache
from math import prod
from typing import Any

import numcodecs
import numpy as np

from fuzz.target import Target, attempt, is_refused
from fuzz.targets.wrappers import inflate_gzip
from voxelprobe.codecs import blosc_frame, n5, zarr
from voxelprobe.codecs.parts import pack_parts
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.contracts import every_voxel, make_segments

_SHAPE = (8, 6, 5)
_CODECS: list[list[dict[str, Any]]] = [
    [],
    [{"id": "gzip"}],
    [{"id": "zlib"}],
    [{"id": "zstd"}],
    [{"id": "bz2"}],
    [{"id": "lz4"}],
    [{"id": "lzma", "format": 1}],
    [{"id": "blosc", "cname": "lz4", "blocksize": 256}],
    [{"id": "delta", "dtype": "<u4"}, {"id": "zlib"}],
    [{"id": "shuffle", "elementsize": 4}, {"id": "zstd"}],
    [{"id": "blosc", "cname": "zstd", "shuffle": 2}, {"id": "crc32c"}],
    [{"id": "fletcher32"}],
    [{"id": "adler32"}],
    [{"id": "crc32"}, {"id": "gzip"}],
]


def _facts(codecs: list[dict[str, Any]], dtype: str, parts: int = 1, *, is_n5: bool = False) -> str:
    facts = {
        "chunk": list(_SHAPE) if is_n5 else list(reversed(_SHAPE)),
        "axes": [0, 1, 2] if is_n5 else [2, 1, 0],
        "dtype": dtype,
        "parts": parts,
        "fill_value": 7,
        "codecs": codecs,
    }
    if parts > 1:
        facts["chunk"] = [*_SHAPE, 1] if is_n5 else [1, *reversed(_SHAPE)]
        facts["axes"] = [0, 1, 2, 3] if is_n5 else [3, 2, 1, 0]
    if not is_n5:
        facts["order"] = list(range(len(facts["axes"])))
    return json.dumps(facts)


_ZARR = [ChunkLayout(_SHAPE, 1, np.dtype("<u4"), codecs=_facts(codecs, "<u4")) for codecs in _CODECS] + [
    ChunkLayout(_SHAPE, 2, np.dtype("<u4"), codecs=_facts(codecs, "<u4", 2)) for codecs in ([], [{"id": "zlib"}])
]
_N5 = [ChunkLayout(_SHAPE, 1, np.dtype("<u4"), codecs=_facts(codecs, ">u4", is_n5=True)) for codecs in _CODECS[:8]] + [
    ChunkLayout(_SHAPE, 2, np.dtype("<u4"), codecs=_facts([], ">u4", 2, is_n5=True))
]


def _encode(values: np.ndarray, codecs: list[dict[str, Any]]) -> bytes:
    content: Any = values
    for config in codecs:
        content = numcodecs.get_codec(config).encode(content)
    return np.ascontiguousarray(content).tobytes()


@cache
def _decoders(codecs: str) -> list[Any]:
    return [numcodecs.get_codec(config) for config in json.loads(codecs)]


def _decode(content: bytes, codecs: list[dict[str, Any]], dtype: str, count: int) -> np.ndarray:
    for codec in reversed(_decoders(json.dumps(codecs))):
        content = inflate_gzip(bytes(content)) if codec.codec_id == "gzip" else codec.decode(content)
    values = np.frombuffer(np.ascontiguousarray(content).tobytes(), dtype)
    assert len(values) == count
    return values


def _split(payload: bytes, parts: int) -> list[bytes | None]:
    if parts == 1:
        return [payload]
    sizes = struct.unpack_from(f"<{parts}Q", payload)
    found: list[bytes | None] = []
    at = 8 * parts
    for size in sizes:
        found.append(None if size == 2**64 - 1 else payload[at : at + size])
        at += 0 if size == 2**64 - 1 else size
    assert at == len(payload)
    return found


def _check(reader: Any, layouts: list[ChunkLayout], data: bytes) -> bool:
    layout = layouts[data[0] % len(layouts)] if data else layouts[0]
    payload, voxels = data[1:], every_voxel(layout.shape)
    facts = json.loads(layout.codecs)
    few = attempt(reader.read_points, payload, layout, voxels[[3, len(data) % len(voxels)]])
    found = attempt(reader.read_points, payload, layout, voxels)
    if is_refused(found):
        # Of blosc other blocks may be what is damaged.
        assert is_refused(few) or any(codec["id"] == "blosc" for codec in facts["codecs"])
        return False
    if is_refused(few):
        # A block of blosc that is read alone ends where another one begins.
        assert any(codec["id"] == "blosc" for codec in facts["codecs"])
    else:
        assert np.array_equal(few, found[[3, len(data) % len(voxels)]])
    for channel, part in enumerate(_split(payload, facts["parts"])):
        if part is None:
            assert (found[:, channel] == 7).all()
            continue
        content, shape = part, _SHAPE
        if reader is n5:
            rank = 3 + (facts["parts"] > 1)
            mode, found_rank, *sizes = struct.unpack_from(f">HH{rank}I", part)
            assert found_rank == rank
            assert mode in (0, 1)
            content, shape = part[4 + 4 * rank + 4 * mode :], tuple(sizes[:3])
        whole = _decode(content, facts["codecs"], facts["dtype"], prod(shape)).reshape(shape, order="F")
        assert np.array_equal(found[:, channel], whole[tuple(voxels.T)])
    return True


def _zarr_seeds() -> list[bytes]:
    seeds = []
    for index, layout in enumerate(_ZARR):
        facts = json.loads(layout.codecs)
        parts = [
            _encode(make_segments(layout, seed)[..., c].ravel("F"), facts["codecs"])
            for seed in (0, 1)
            for c in range(layout.num_channels)
        ]
        if facts["parts"] == 1:
            seeds += [bytes([index]) + part for part in parts]
        else:
            seeds += [bytes([index]) + pack_parts(some) for some in (parts[:2], [None, parts[2]])]
    return seeds


def _n5_seeds() -> list[bytes]:
    seeds = []
    for index, layout in enumerate(_N5):
        facts = json.loads(layout.codecs)
        rank = 3 + (facts["parts"] > 1)
        parts = []
        for seed in (0, 1):
            values = make_segments(layout, seed)[..., seed % layout.num_channels].ravel("F").astype(">u4")
            size = (*_SHAPE, 1)[:rank]
            head = struct.pack(f">HH{rank}I", seed, rank, *size) + (struct.pack(">I", len(values)) if seed else b"")
            parts.append(head + _encode(values, facts["codecs"]))
        seeds += [bytes([index]) + part for part in ([pack_parts(parts)] if facts["parts"] > 1 else parts)]
    return seeds


# blosc

_KINDS = [
    ("<u4", 400, "lz4", 1, 256),
    ("<u8", 300, "zstd", 2, 512),
    ("u1", 1500, "zlib", 0, 128),
    ("<u2", 600, "blosclz", 1, 0),
]


def _frame_seeds() -> list[bytes]:
    seeds = []
    for index, (dtype, count, name, shuffle, blocksize) in enumerate(_KINDS):
        for high in (9, 2**8 - 1):
            values = np.random.default_rng(1).integers(0, high, count).astype(dtype)
            codec = numcodecs.Blosc(name, 5, shuffle, blocksize)
            seeds.append(bytes([index]) + bytes(codec.encode(values)))
    return seeds


def _mend_frame(data: bytes, rng: random.Random) -> bytes:
    """Return a frame whose header has its length right."""
    if rng.random() < 0.2 or len(data) < 17:
        return data
    return data[:13] + (len(data) - 1).to_bytes(4, "little") + data[17:]


def _check_frame(data: bytes) -> bool:
    name, count, *_ = _KINDS[data[0] % len(_KINDS)] if data else _KINDS[0]
    frame, dtype = data[1:], np.dtype(name)
    places = np.array([count - 1, len(data) % count, 5])
    few = attempt(blosc_frame.take_values, frame, dtype, count, places)
    whole = attempt(blosc_frame.decompress, frame, count * dtype.itemsize)
    if is_refused(whole):
        return False
    values = np.frombuffer(numcodecs.blosc.decompress(frame), np.uint8)
    assert bytes(whole) == values.tobytes()
    if len(values) != count * dtype.itemsize:
        assert is_refused(few)
        return False
    assert is_refused(few) or np.array_equal(few, values.view(dtype)[places]), (few, values.view(dtype)[places])
    return not is_refused(few)


TARGETS = {
    "zarr": Target(_zarr_seeds, lambda data: _check(zarr, _ZARR, data), most_bytes=2500),
    "n5": Target(_n5_seeds, lambda data: _check(n5, _N5, data), most_bytes=2500),
    "blosc_frame": Target(_frame_seeds, _check_frame, _mend_frame, most_bytes=3000),
}
