"""The audit's own reading of volumes, against the arrays that were written."""

from __future__ import annotations

import gzip
import itertools
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe.audit.decoders import decode_chunk, explain_decoder
from voxelprobe.audit.places import Place, find_place
from voxelprobe.audit.precomputed import AuditedScale, read_scale
from voxelprobe.audit.reading import read_places
from voxelprobe.audit.shards import find_shard, morton_code
from voxelprobe.audit.stripping import strip
from voxelprobe.errors import CorruptDataError, InputError, TransportError, UnsupportedError
from voxelprobe.locations import parse_location
from voxelprobe.points import UnitConversion, parse_coord_resolution
from voxelprobe.records import Status
from voxelprobe.sharding.hashing import hash_codes, morton_codes
from voxelprobe.testing.encoders import encode_chunk
from voxelprobe.testing.encoding_floats import encode_zfpc
from voxelprobe.testing.faults import Fault
from voxelprobe.testing.http_store import HttpStore, Request
from voxelprobe.testing.volumes import SUFFIXES, compress_bytes, write_volume
from voxelprobe.transport.sources import open_source

SHAPE, CHUNK, OFFSET = (20, 13, 9), (8, 8, 4), (-5, 100, 3)


def scale_of(info: Mapping[str, Any], mip: int = 0) -> AuditedScale:
    return read_scale(info, mip, None, "here")


def read_all(folder: Path, info: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return labels (n, channels) and statuses (n,) of every voxel of mip 0, in C order."""
    scale = scale_of(info)
    points = np.indices(scale.size).reshape(3, -1).T + scale.voxel_offset
    with closing(open_source(parse_location(str(folder)), threads=4)) as source:
        explain_decoder(scale)
        found = read_places(scale, source, [find_place(scale, point) for point in points.tolist()], threads=4)
    return found.labels, found.status


SHARDINGS = {
    "identity": {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 1},
    "murmur, gzip": {"preshift_bits": 0, "minishard_bits": 3, "shard_bits": 5, "hash": "murmurhash3_x86_128",
                     "minishard_index_encoding": "gzip", "data_encoding": "gzip"},
    "one minishard": {"preshift_bits": 9, "minishard_bits": 0, "shard_bits": 0},
}


@pytest.mark.parametrize("sharding", SHARDINGS.values(), ids=SHARDINGS)
def test_every_voxel_of_shards(sharding: Any, tmp_path: Path) -> None:
    """Every voxel of a sharded volume is read as written; a chunk that no shard has is missing."""
    array = np.random.default_rng(0).integers(0, 2**64, SHAPE, np.uint64)
    info = write_volume(tmp_path, array, chunk_size=CHUNK, voxel_offset=OFFSET, sharding=sharding, gap_bytes=3,
                        skip_chunks=[(1, 0, 1)], empty_chunks=[(2, 1, 0)])
    labels, status = read_all(tmp_path, info)
    status, labels = status.reshape(SHAPE), labels.reshape(SHAPE)
    missing = np.zeros(SHAPE, np.bool_)
    missing[8:16, :8, 4:8] = missing[16:, 8:, :4] = True
    np.testing.assert_array_equal(status, np.where(missing, Status.MISSING_CHUNK, Status.OK))
    np.testing.assert_array_equal(labels[~missing], array[~missing])


@pytest.mark.parametrize("compress", [None, *SUFFIXES])
def test_every_voxel_of_files(compress: Any, tmp_path: Path) -> None:
    """Every voxel of a volume of files, however compressed, is read as written."""
    array = np.random.default_rng(0).integers(0, 2**16, (*SHAPE, 2), np.uint16)
    info = write_volume(tmp_path, array, chunk_size=CHUNK, voxel_offset=OFFSET, compress=compress)
    labels, status = read_all(tmp_path, info)
    assert not status.any()
    np.testing.assert_array_equal(labels.reshape(*SHAPE, 2), array)


def test_chunks_that_end_the_process(tmp_path: Path) -> None:
    """Chunks that the package crashes on cost their own points and no others."""
    array = np.random.default_rng(0).integers(0, 5, SHAPE, np.uint64)
    info = write_volume(tmp_path, array, chunk_size=CHUNK, encoding="compressed_segmentation", voxel_offset=OFFSET)
    scale = scale_of(info)
    (tmp_path / scale.chunk_name((0, 0, 0))).write_bytes(b"\xff" * 64)
    (tmp_path / scale.chunk_name((1, 1, 1))).write_bytes(b"\xff" * 200)
    labels, status = read_all(tmp_path, info)
    status, labels = status.reshape(SHAPE), labels.reshape(SHAPE)
    bad = np.zeros(SHAPE, np.bool_)
    bad[:8, :8, :4] = bad[8:16, 8:, 4:8] = True
    np.testing.assert_array_equal(status, np.where(bad, Status.CORRUPT_CHUNK, Status.OK))
    np.testing.assert_array_equal(labels[~bad], array[~bad])


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
@pytest.mark.parametrize("sharding", [None, SHARDINGS["murmur, gzip"]], ids=["files", "shards"])
def test_chunks_that_are_damaged_on_the_way(sharding: Any, kind: Any, tmp_path: Path) -> None:
    """What can't be read is fetched again, indices of shards too: a server that garbles answers costs time alone."""
    array = np.random.default_rng(0).integers(0, 2**60, SHAPE, np.uint64)
    info = write_volume(tmp_path, array, chunk_size=CHUNK, sharding=sharding, compress=None if sharding else "gzip")
    scale = scale_of(info)
    places = [find_place(scale, point) for point in np.ndindex(*SHAPE)]
    asked = Counter[tuple[str, str]]()

    def garble(request: Request) -> Fault | None:
        asked[request.path, request.range or ""] += 1
        # A chunk of a shard takes three answers, one after the other.
        return Fault(kind) if asked[request.path, request.range or ""] <= (1 if sharding else 3) else None

    with HttpStore(tmp_path, fault_for=garble) as store, \
            closing(open_source(parse_location(store.url), threads=4)) as source:
        found = read_places(scale, source, places, threads=4)
        assert max(asked.values()) >= 2
        assert (found.unread, found.status.any()) == ({}, False)
        np.testing.assert_array_equal(found.labels.reshape(SHAPE), array)
        store.fault_for = lambda request: Fault(kind)
        if sharding and kind == "truncated":  # a range is known to be cut short
            with pytest.raises(TransportError, match="tried 6 times"):
                read_places(scale, source, places[:1], threads=4)
            return
        found = read_places(scale, source, places[:1], threads=4)
    assert found.status.tolist() == [Status.CORRUPT_CHUNK]
    assert list(found.unread) == [scale.chunk_name((0, 0, 0))]


CHUNKS = [
    *((encoding, dtype, channels) for encoding in ("raw", "compressed_segmentation") for channels in (1, 3)
      for dtype in ("uint32", "uint64")),
    *(("raw", dtype, 1) for dtype in ("uint8", "int8", "int16", "int32", "int64", "float32", "float64")),
    *((encoding, dtype, 1) for encoding in ("crackle", "compresso") for dtype in ("uint8", "uint16", "uint32",
                                                                                 "uint64")),
    *(("png", dtype, channels) for dtype in ("uint8", "uint16") for channels in (1, 2, 3, 4)),
    ("jxl", "uint8", 1), ("jxl", "uint8", 3),
    *(("fpzip", dtype, channels) for dtype in ("float32", "float64") for channels in (1, 2)),
    *(("zfpc", dtype, channels) for dtype in ("float32", "float64", "int32", "int64") for channels in (1, 2)),
]


def chunk_scale(encoding: str, dtype: str, channels: int) -> AuditedScale:
    one = (Fraction(1),) * 3
    return AuditedScale("k", SHAPE, (0, 0, 0), SHAPE, one, encoding, dtype, channels, (8, 8, 8), None)


@pytest.mark.parametrize("size", [SHAPE, (3, 5, 4)], ids=str)
@pytest.mark.parametrize(("encoding", "dtype", "channels"), CHUNKS)
def test_whole_chunks(encoding: str, dtype: str, channels: int, size: Any) -> None:
    """What loses nothing is decoded to the very values that were encoded, in the volume's dtype."""
    rng = np.random.default_rng(1)
    chunk = rng.integers(0, 100, (*size, channels)).astype(dtype)
    if dtype in ("uint64", "int64", "float64"):
        chunk = (chunk * chunk.dtype.type(2**45 + 3)).astype(dtype)
    scale = chunk_scale(encoding, dtype, channels)
    found = decode_chunk(encode_chunk(chunk, encoding), scale, size)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, chunk)


def test_streams_of_zfpc_keep_their_dtype() -> None:
    """Of several streams, values of float64 are zfp's and not rounded to float32, which `zfpc.decompress` does."""
    chunk = np.random.default_rng(1).random((*SHAPE, 2))
    payload = encode_zfpc(chunk, (True, True, False, False))
    np.testing.assert_array_equal(decode_chunk(payload, chunk_scale("zfpc", "float64", 2), SHAPE), chunk)


@pytest.mark.parametrize(("encoding", "dtype"), [("kempressed", "float32"), ("jpeg", "uint8")])
@pytest.mark.parametrize("channels", [1, 3])
def test_chunks_that_lose_something(encoding: str, dtype: str, channels: int) -> None:
    """What loses something is decoded close to what was encoded, voxel by voxel and channel by channel."""
    x, y, z = np.indices(SHAPE)
    chunk = np.stack([40 * c + 3 * x + 2 * y + z for c in range(channels)], axis=3).astype(dtype)
    payload = encode_chunk(chunk, encoding)
    found = decode_chunk(payload, chunk_scale(encoding, dtype, channels), SHAPE)
    assert np.abs(found.astype(float) - chunk).max() <= (1e-4 if encoding == "kempressed" else 8)


@pytest.mark.parametrize("encoding", ["raw", "crackle", "compresso", "png", "zfpc"])
def test_a_chunk_of_another_size(encoding: str) -> None:
    """A chunk of another size than the `info` says is refused, and not indexed."""
    dtype = "float32" if encoding == "zfpc" else "uint8"
    payload = encode_chunk(np.ones((4, 4, 4, 1), dtype), encoding)
    with pytest.raises(CorruptDataError):
        decode_chunk(payload, chunk_scale(encoding, dtype, 1), (4, 4, 5))


def test_encodings_without_another_reader() -> None:
    """An encoding that nobody else decodes is said to be so."""
    with pytest.raises(UnsupportedError, match="encoding zarr"):
        explain_decoder(chunk_scale("zarr", "uint8", 1))


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "xz", "bz2"])
def test_compression_that_is_cut_or_too_long(encoding: Any) -> None:
    """What is cut short, or makes more than it may, is an error; what is whole comes back."""
    content = np.random.default_rng(0).bytes(3000)
    packed = compress_bytes(content, encoding)
    assert strip(packed, encoding, 3000) == content
    for end in (1, len(packed) // 2, len(packed) - 1):
        with pytest.raises(CorruptDataError):
            strip(packed[:end], encoding, 3000)
    with pytest.raises(CorruptDataError, match="at most 2999"):
        strip(packed, encoding, 2999)


def test_compression_twice_and_none() -> None:
    """Encodings are undone from the last to the first; an unknown one is an error."""
    packed = gzip.compress(compress_bytes(b"abc", "br"))
    assert strip(packed, "br, gzip", 10) == b"abc"
    assert strip(b"abc", None, 10) == strip(b"abc", "identity", 10) == b"abc"
    with pytest.raises(CorruptDataError, match="pack"):
        strip(b"abc", "pack", 10)


UNITS = ["4,4,40", "8,8,40", "nm", "17.2,17.2,30", "0.5,3,7", None]
# Whole numbers, halves and tenths: on borders of voxels, and close to them.
NUMBERS = st.one_of(st.integers(-(2**40), 2**40), st.integers(-9000, 9000).map(lambda n: n / 10), st.floats(width=32))


@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.sampled_from(UNITS), st.sampled_from([(4, 4, 40), (17.2, 8.6, 30.1)]))
def test_places_agree_with_the_products(point: Any, unit: str | None, resolution: Any) -> None:
    """Two computations that share nothing put every point into the same voxel, in every unit."""
    scale = {"key": "s", "size": [60, 50, 40], "voxel_offset": list(OFFSET), "resolution": list(resolution),
             "chunk_sizes": [list(CHUNK)]}
    info = {"data_type": "uint64", "num_channels": 1, "scales": [scale]}
    conversion = UnitConversion.between(
        parse_coord_resolution(unit) or parse_coord_resolution(resolution), resolution)  # type: ignore[arg-type]
    expected = [int(conversion.axis_to_voxels(np.array([value]), axis)[0]) for axis, value in enumerate(point)]
    place = find_place(read_scale(info, 0, unit, "here"), point)
    if not all(np.isfinite(point)):
        assert place == Status.INVALID_COORDINATE
    elif all(0 <= v - o < s for v, o, s in zip(expected, OFFSET, scale["size"], strict=True)):
        assert isinstance(place, Place)
        found = [o + g * c + v for o, g, c, v in zip(OFFSET, place.grid, CHUNK, place.voxel, strict=True)]
        assert found == expected
    else:
        assert place == Status.OUT_OF_BOUNDS


@pytest.mark.parametrize("point", [None, [None, 1, 1], [1, float("nan"), 1], [1, 1, float("-inf")]])
def test_points_that_are_none(point: Any) -> None:
    """Null, NaN and infinite coordinates are no place."""
    info = {"data_type": "uint8", "num_channels": 1, "scales": [
        {"key": "s", "size": [9, 9, 9], "resolution": [1, 1, 1], "chunk_sizes": [[3, 3, 3]]}]}
    assert find_place(scale_of(info), point) == Status.INVALID_COORDINATE


def test_an_info_that_became_something_else() -> None:
    """An `info` without what the run was planned by is named."""
    for document in ({}, [], None, {"scales": []}, {"scales": [{"resolution": 3}]}):
        with pytest.raises(InputError, match="here/info"):
            read_scale(document, 0, None, "here")  # type: ignore[arg-type]


@given(st.tuples(*[st.integers(1, 5000)] * 3), st.data())
def test_shards_agree_with_the_products(shape: Any, data: Any) -> None:
    """Two Morton codes and two hashes that share nothing say the same of every chunk."""
    grid = [data.draw(st.integers(0, size - 1)) for size in shape]
    code = morton_code(grid, shape)
    assert code == morton_codes(np.array([grid]), shape)[0]
    for name, shift, bits in itertools.product(("identity", "murmurhash3_x86_128"), (0, 3), ((0, 0), (5, 9))):
        sharding = {"hash": name, "preshift_bits": shift, "minishard_bits": bits[0], "shard_bits": bits[1]}
        hashed = int(hash_codes(np.array([code >> shift], np.uint64), name)[0])
        expected = (hashed >> bits[0] & (1 << bits[1]) - 1, hashed & (1 << bits[0]) - 1)
        assert find_shard(code, sharding) == expected
