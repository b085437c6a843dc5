"""The indices of shards: of Precomputed's hashed ones, and of zarr's boxes."""

from __future__ import annotations

import gzip
import random
import struct

import google_crc32c
import numpy as np

from fuzz.target import Target, attempt, is_refused
from fuzz.targets.wrappers import inflate_gzip
from voxelprobe.sharding.boxes import BoxSharding, parse_box_index
from voxelprobe.sharding.index import parse_minishard_index, parse_shard_index
from voxelprobe.sharding.spec import Sharding

_LARGEST = 2**63 - 1


def _pairs(payload: bytes) -> list[tuple[int, int]]:
    return [struct.unpack_from("<QQ", payload, at) for at in range(0, len(payload) - 15, 16)]


def _check_shard(data: bytes) -> bool:
    bits = data[0] % 4 if data else 0
    payload, spec = data[1:], Sharding("identity", 0, bits, 0)
    found = attempt(parse_shard_index, payload, spec)
    base = 16 << bits
    wanted = None
    if len(payload) == base:
        wanted = [(a + base, b + base) for a, b in _pairs(payload)]
        if any(b < a or b > _LARGEST for a, b in wanted):
            wanted = None
    assert is_refused(found) is (wanted is None), (found, wanted)
    assert wanted is None or found.tolist() == [list(pair) for pair in wanted]
    return wanted is not None


def _check_minishard(data: bytes) -> bool:
    is_gzip, bits = (data[0] & 1, data[0] >> 1 & 3) if data else (0, 0)
    spec = Sharding("identity", 0, bits, 0, "gzip" if is_gzip else "raw")
    found = attempt(parse_minishard_index, data[1:], spec)
    payload = data[1:]
    if is_gzip and not is_refused(found):
        payload = inflate_gzip(payload)
    elif is_gzip:
        return False
    wanted = _list_chunks(payload, 16 << bits)
    assert is_refused(found) is (wanted is None), (found, wanted)
    if wanted is None:
        return False
    assert found.chunk_ids.tolist() == sorted(chunk for chunk, _, _ in wanted)
    first: dict[int, tuple[int, int]] = {}
    for chunk, start, end in wanted:
        first.setdefault(chunk, (start, end))
    asked = list(first)[:20] + [(chunk + 1) % 2**64 for chunk in list(first)[:20]] + [0, 2**64 - 1]
    starts, ends, is_found = found.find(np.array(asked, np.uint64))
    for chunk, start, end, here in zip(asked, starts.tolist(), ends.tolist(), is_found.tolist(), strict=True):
        assert here is (chunk in first)
        assert (start, end) == first.get(chunk, (0, 0))
    return True


def _list_chunks(payload: bytes, base: int) -> list[tuple[int, int, int]] | None:
    if len(payload) % 24:
        return None
    count = len(payload) // 24
    numbers = struct.unpack(f"<{3 * count}Q", payload)
    chunks, chunk, end = [], 0, 0
    for i in range(count):
        chunk = (chunk + numbers[i]) % 2**64
        start = (end + numbers[count + i]) % 2**64
        end = (start + numbers[2 * count + i]) % 2**64
        if end < start or end + base > _LARGEST:
            return None
        chunks.append((chunk, start + base, end + base))
    return chunks


def _box(data: bytes) -> BoxSharding:
    kind = data[0] if data else 0
    counts = ((2, 2), (1,), (3, 1, 2), (2, 2, 2))[kind >> 1 & 3]
    return BoxSharding((1, 1, 1), 1, 1, (0,) * len(counts), counts, True, bool(kind & 1))


def _check_box(data: bytes) -> bool:
    spec = _box(data)
    payload, most = data[1:], 5000 if data and data[0] & 16 else None
    found = attempt(parse_box_index, payload, spec, most)
    count = int(np.prod(spec.counts))
    wanted: list[tuple[int, int]] | None = None
    is_whole = len(payload) == 16 * count + 4 * spec.has_checksum
    if is_whole and spec.has_checksum:
        is_whole = google_crc32c.value(payload[:-4]) == int.from_bytes(payload[-4:], "little")
    if is_whole:
        wanted = []
        for start, size in _pairs(payload[: 16 * count]):
            if start == size == 2**64 - 1:
                wanted.append((-1, -1))
            elif size == 0 or start + size > (_LARGEST if most is None else most):
                wanted = None
                break
            else:
                wanted.append((start, start + size))
    assert is_refused(found) is (wanted is None), (found, wanted)
    assert wanted is None or list(zip(*(ends.tolist() for ends in found), strict=True)) == wanted
    return wanted is not None


def _mend_box(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.2 or not data or not data[0] & 1:
        return data
    size = _box(data).index_bytes - 4
    body = data[1 : 1 + size].ljust(size, b"\xff")
    return data[:1] + body + google_crc32c.value(body).to_bytes(4, "little")


def _mend_gzip(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3 or not data or not data[0] & 1:
        return data
    try:
        body = bytearray(gzip.decompress(data[1:]))
    except Exception:
        return data
    if body:
        at = rng.randrange(len(body))
        body[at] ^= 1 << rng.randrange(8)
    return data[:1] + gzip.compress(bytes(body[:4000]), 1)


def _minishard_seeds() -> list[bytes]:
    rows = [
        np.array(table, "<u8").T.tobytes()
        for table in (
            [(5, 0, 10), (1, 0, 20), (9, 4, 0)],
            [(2**64 - 1, 7, 7), (1, 2**64 - 14, 7), (0, 100, 3)],
            [(3, 1, 2)] * 6,
        )
    ]
    return [bytes([kind]) + (gzip.compress(row) if kind & 1 else row) for row in (b"", *rows) for kind in (0, 1, 2, 5)]


TARGETS = {
    "shard_index": Target(
        lambda: [bytes([bits]) + struct.pack("<QQ", 3 * bits, 3 * bits + 9) * (1 << bits) for bits in range(4)],
        _check_shard, most_bytes=200,
    ),
    "minishard_index": Target(_minishard_seeds, _check_minishard, _mend_gzip, most_bytes=600),
    "box_index": Target(
        lambda: [_mend_box(bytes([kind]) + struct.pack("<QQ", 100, 40) * 3 + b"\xff" * 80, random.Random(2))
                 for kind in (1, 3, 5, 7, 17)] + [b"\0" + struct.pack("<QQ", 8, 9) * 4],
        _check_box, _mend_box, most_bytes=200,
    ),
}
