"""Chunks of labels: compressed_segmentation, and our part of crackle, up to where the package decodes."""

from __future__ import annotations

import random
import struct
from functools import cache
from itertools import accumulate

import google_crc32c
import numpy as np

from fuzz.target import Target, attempt, is_refused
from voxelprobe.codecs import compressed_segmentation, crackle
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.contracts import every_voxel, make_segments
from voxelprobe.testing.encoders import encode_chunk

_SEGMENTATION = [
    ChunkLayout((4, 4, 3), 1, np.dtype("<u8"), (4, 4, 4)),
    ChunkLayout((4, 4, 3), 1, np.dtype("<u4"), (2, 3, 1)),
    ChunkLayout((5, 3, 2), 2, np.dtype("<u4"), (8, 8, 8)),
    ChunkLayout((5, 3, 3), 2, np.dtype("<u8"), (2, 2, 2)),
]
SLICED = [ChunkLayout((6, 5, 4), 1, np.dtype(name)) for name in ("<u8", "<u4", "<u2", "u1")] + [
    ChunkLayout((9, 7, 3), 1, np.dtype("<u4"))
]


def seeds_of(layouts: list[ChunkLayout], encoding: str) -> list[bytes]:
    """Return chunks of segments and of noise, each after the number of its layout."""
    return [
        bytes([index]) + encode_chunk(make_segments(layout, seed), encoding, layout.block_size or (8, 8, 8))
        for index, layout in enumerate(layouts)
        for seed in (0, 1, 2)
    ]


@cache
def _voxels(shape: tuple[int, int, int]) -> np.ndarray:
    return every_voxel(shape)


# compressed_segmentation


def _decode_segmentation(payload: bytes, layout: ChunkLayout) -> list[int | None] | None:
    """Return each voxel's label (z fastest, then channels), None for one whose offsets lead out; None if all do."""
    total = len(payload) // 4
    if len(payload) % 4 or total < layout.num_channels:
        return None
    words = struct.unpack(f"<{total}I", payload)
    grid = [-(-s // b) for s, b in zip(layout.shape, layout.block_size, strict=True)]
    headers = 2 * grid[0] * grid[1] * grid[2]
    for channel in range(layout.num_channels):
        if not layout.num_channels <= words[channel] <= total - headers:
            return None
    return [
        _decode_label(words, words[channel], headers, grid, layout, voxel)
        for voxel in _voxels(layout.shape).tolist()
        for channel in range(layout.num_channels)
    ]


def _decode_label(words, start, headers, grid, layout, voxel) -> int | None:
    (x, y, z), (bx, by, bz) = voxel, layout.block_size
    here = start + 2 * (x // bx + grid[0] * (y // by + grid[1] * (z // bz)))
    table, bits, values = words[here] & 0xFFFFFF, words[here] >> 24, words[here + 1]
    if bits not in (0, 1, 2, 4, 8, 16, 32) or table < headers:
        return None
    index = 0
    if bits:
        bit = bits * (x % bx + bx * (y % by + by * (z % bz)))
        place = values + bit // 32
        if place < headers or start + place >= len(words):
            return None
        index = words[start + place] >> bit % 32 & (2**bits - 1)
    width = layout.dtype.itemsize // 4
    entry = start + table + width * index
    if entry + width > len(words):
        return None
    return words[entry] + (words[entry + 1] << 32 if width == 2 else 0)


def _check_segmentation(data: bytes) -> bool:
    layout = _SEGMENTATION[data[0] % len(_SEGMENTATION)] if data else _SEGMENTATION[0]
    payload = data[1:]
    expected = _decode_segmentation(payload, layout)
    voxels, channels = _voxels(layout.shape), layout.num_channels
    few = [0, len(voxels) - 1, len(payload) % len(voxels)]
    is_read = False
    for some in (range(len(voxels)), few):
        found = attempt(compressed_segmentation.read_points, payload, layout, voxels[list(some)])
        wanted = None if expected is None else [expected[v * channels + c] for v in some for c in range(channels)]
        if wanted is None or None in wanted:
            assert is_refused(found), (wanted, found)
        else:
            assert not is_refused(found), found
            assert found.shape == (len(some), channels)
            assert found.dtype == layout.dtype
            assert found.ravel().tolist() == wanted
            is_read = True
    return is_read


# crackle


def _mend_crackle(data: bytes, rng: random.Random) -> bytes:
    """Return a stream of format 1 with the checksums of its header, index and labels mended."""
    payload = bytearray(data[1:])
    if rng.random() < 0.2 or len(payload) < 33 or payload[4] != 1:
        return data
    payload[28] = crackle._crc8(bytes(payload[5:28]))
    sz, size = int.from_bytes(payload[15:19], "little"), int.from_bytes(payload[20:28], "little")
    end = 29 + 4 * sz
    if sz < 100 and end + 4 <= len(payload):
        payload[end : end + 4] = google_crc32c.value(bytes(payload[29:end])).to_bytes(4, "little")
        at = len(payload) - 4 - 4 * sz
        if at > 0 and size < 10_000:
            payload[at : at + 4] = google_crc32c.value(bytes(payload[end + 4 : end + 4 + size])).to_bytes(4, "little")
    return data[:1] + bytes(payload)


def _crackle_seeds() -> list[bytes]:
    import crackle as package

    seeds = seeds_of(SLICED, "crackle")
    for index, layout in enumerate(SLICED):
        chunk = make_segments(layout)[..., 0]
        seeds.append(bytes([index]) + bytes(package.compress(chunk, markov_model_order=2)))
        seeds.append(bytes([index]) + bytes(package.compress(chunk, allow_pins=True)))
    # Condensed pins, made by hand: background, labels, components a slice, widths, and each label's pins.
    for seed in seeds[:1]:
        payload = bytearray(seed[1:])
        size = int.from_bytes(payload[20:28], "little")
        fields = int.from_bytes(payload[5:7], "little") & ~0b1100000 | 2 << 5
        payload[5:7] = fields.to_bytes(2, "little")
        wide = 1 << (fields >> 2 & 3)
        labels = (
            bytes(wide) + (2).to_bytes(8, "little") + bytes(2 * wide) + bytes([3] * 4) + bytes([0])
            + bytes([1, 5, 2, 1, 4]) + bytes([0, 2, 1, 1])
        )
        payload[20:28] = len(labels).to_bytes(8, "little")
        payload[29 + 16 + 4 : 29 + 16 + 4 + size] = labels
        seeds.append(_mend_crackle(bytes([0]) + bytes(payload), random.Random(1)))
    return seeds


def width_of(largest: int) -> int:
    """Return the bytes of numbers up to `largest`."""
    return next(n for n in (1, 2, 4, 8) if largest < 256**n)


def numbers(data: bytes, width: int) -> list[int]:
    """Return little-endian numbers of `width` bytes each."""
    assert len(data) % width == 0
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]


def _check_crackle(data: bytes) -> bool:
    layout = SLICED[data[0] % len(SLICED)] if data else SLICED[0]
    payload, (sx, sy, sz) = data[1:], layout.shape
    stream = attempt(crackle._parse_stream, payload, layout)
    if is_refused(stream):
        return False
    head = 29 if payload[4] else 24
    fields = int.from_bytes(payload[5:7], "little")
    assert numbers(payload[7:19], 4) == [sx, sy, sz]
    assert 1 << (fields & 3) == layout.dtype.itemsize
    size = int.from_bytes(payload[20 : 28 if payload[4] else 24], "little")
    codes = numbers(payload[head : head + 4 * sz], 4)
    begin = head + 4 * sz + (4 if payload[4] else 0)
    order = fields >> 9 & 15
    model = (4**order * 5 + 4) // 8 if order else 0
    assert stream.labels == payload[begin : begin + size]
    assert len(stream.labels) == size
    assert stream.model == payload[begin + size : begin + size + model]
    assert stream.codes.tolist() == list(accumulate(codes, initial=begin + size + model))
    assert stream.codes[-1] + (4 + 4 * sz if payload[4] else 0) == len(payload)
    if payload[4]:
        sums = payload[len(payload) - 4 - 4 * sz :]
        assert google_crc32c.value(stream.labels) == int.from_bytes(sums[:4], "little")
    parsed = attempt(crackle._parse_labels, stream, layout.shape)
    if is_refused(parsed):
        return False
    first, counts, keys, labels = parsed
    wide = 1 << (fields >> 2 & 3)
    is_pins = stream.label_format == 2
    at = wide if is_pins else 0
    number = int.from_bytes(stream.labels[at : at + 8], "little")
    stored = numbers(stream.labels[at + 8 : at + 8 + number * wide], wide)
    mask = 2 ** (8 * wide) - 1
    assert [int(label) & mask for label in labels.tolist()] == stored + (
        numbers(stream.labels[:wide], wide) if is_pins else []
    )
    at += 8 + number * wide
    count_width = width_of(sx * sy)
    assert counts.tolist() == numbers(stream.labels[at : at + sz * count_width], count_width)
    assert first.tolist() == list(accumulate(counts.tolist(), initial=0))[:-1]
    assert counts.max() <= sx * sy
    if is_pins:
        slices = np.arange(sz)
        components = (np.arange(sx * sy) % counts[:, None]).astype(np.uint32)
        placed = crackle._place_pins(keys, layout.shape, first, slices, components)
        assert 0 <= placed.min() <= placed.max() <= number
        return True
    at += sz * count_width
    assert keys.tolist() == numbers(stream.labels[at:], width_of(number))
    assert max(keys.tolist()) < len(labels)
    return True


TARGETS = {
    "compressed_segmentation": Target(lambda: seeds_of(_SEGMENTATION, "compressed_segmentation"), _check_segmentation),
    "crackle": Target(_crackle_seeds, _check_crackle, _mend_crackle),
}
