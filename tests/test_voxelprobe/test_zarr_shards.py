"""Zarr v3's shards: their index, how often a store is asked, cache regions, and what damage does."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe import CorruptDataError, InputError, sample_points
from voxelprobe.cache.disk import DiskCache
from voxelprobe.fetching import fetch_chunks
from voxelprobe.opening import open_volume
from voxelprobe.planning import order_by_chunk
from voxelprobe.sharding.boxes import BoxSharding, parse_box_index
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.zarr_volumes import write_shards
from voxelprobe.volume.grid import MAX_BLOCK_EDGE, MAX_CHUNKS_OF_SHARD_REGION, Regions
from voxelprobe.volume.names import GridNames
from voxelprobe.volume.scale import Scale

SHAPE, CHUNK, SHARD = (45, 40, 21), (8, 8, 4), (16, 16, 16)  # x, y, z
NONE = 2**64 - 1
pytestmark = [pytest.mark.usefixtures("quick_retries"), pytest.mark.filterwarnings("ignore:Numcodecs")]


def write(path: Path, array: Any, *, chunk: Any = CHUNK, shard: Any = SHARD, **options: Any) -> None:
    """Write an array (x, y, z[, c]) in shards by zarr-python, axes [c, ]z, y, x."""
    write_shards(path, array, chunk, shard, **options)


def noise(shape: Any = SHAPE, dtype: str = "uint64") -> Any:
    limits = np.iinfo(dtype)
    return np.random.default_rng(5).integers(1, limits.max, shape, dtype=dtype, endpoint=True)


def points_of(shape: Any = SHAPE, count: int = 600) -> Any:
    """Return random voxels, and one of each chunk."""
    corners = np.array(list(itertools.product(*(range(0, n, c) for n, c in zip(shape[:3], CHUNK, strict=True)))))
    return np.concatenate([corners, np.random.default_rng(3).integers(0, shape[:3], (count, 3))])


def check(cloudpath: str, array: Any, **options: Any) -> None:
    points = points_of(array.shape)
    labels, status = sample_points(cloudpath, points, return_status=True, **options)
    assert set(status) == {"ok"}
    np.testing.assert_array_equal(labels.data, array[tuple(points.T)])


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("shard", [SHARD, CHUNK, (64, 64, 64), (8, 40, 4)])
def test_labels_are_those_written(tmp_path: Path, location: str, checksum: bool, shard: Any) -> None:
    """Shards of any box, clipped ones included, with their index at either end, checked or not, have the values."""
    array = noise()
    write(tmp_path, array, shard=shard, location=location, checksum=checksum)
    check(f"zarr3://file://{tmp_path}", array)


@pytest.mark.parametrize(("channels", "chunk", "shard"), [(5, 1, 5), (5, 1, 2), (5, 2, 4), (3, 3, 3), (3, 4, 8)])
def test_channels(tmp_path: Path, channels: int, chunk: int, shard: int) -> None:
    """Channels together, in chunks or shards of their own, or fewer than a chunk has, are all kept apart."""
    array = noise((*SHAPE, channels), "uint16")
    write(tmp_path, array, chunk=(*CHUNK, chunk), shard=(*SHARD, shard))
    check(f"zarr://file://{tmp_path}", array)
    (tmp_path / "c/0/1/1/1").unlink()
    array[16:32, 16:32, 16:, :shard] = 0
    check(f"zarr://file://{tmp_path}", array)


def test_a_server_without_ranges(tmp_path: Path) -> None:
    """From a server that ignores ranges the right bytes of each whole answer are taken."""
    array = noise()
    write(tmp_path, array)
    with HttpStore(tmp_path, ranges=False) as store:
        check(f"zarr3://{store.url}", array)


def test_transposed_inside(tmp_path: Path) -> None:
    """Codecs inside of a shard are each chunk's: transposed, big-endian and checked."""
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec

    array = noise()
    write(tmp_path, array, codecs=[TransposeCodec(order=(1, 2, 0)), BytesCodec(endian="big"), BloscCodec(cname="lz4"),
                                   Crc32cCodec()])
    check(f"zarr://file://{tmp_path}", array)


@pytest.mark.parametrize("location", ["start", "end"])
def test_indices_and_chunks_are_fetched_once(tmp_path: Path, location: str) -> None:
    """Over HTTP a shard costs one request for its index and one for its chunks, which are neighbours."""
    array = noise()
    write(tmp_path, array, location=location)
    index = "bytes=-" if location == "end" else "bytes=0-"
    with HttpStore(tmp_path) as store:
        check(f"zarr3://{store.url}", array)
        asked = Counter(request.path for request in store.requests)
        ranges = Counter((request.path, request.range) for request in store.requests)
    assert asked.pop("zarr.json") == 1
    assert len(asked) == 3 * 3 * 2
    assert set(asked.values()) == {2}
    assert set(ranges.values()) == {1}
    assert sum(str(text).startswith(index) for _, text in ranges) == len(asked)
    size = (tmp_path / "c/0/0/0").stat().st_size
    (span,) = (text for path, text in ranges if path == "c/0/0/0" and not str(text).startswith(index))
    index_bytes = 16 * 2 * 2 * 4 + 4
    assert span == (f"bytes=0-{size - index_bytes - 1}" if location == "end" else f"bytes={index_bytes}-{size - 1}")


def test_channels_cost_one_request_too(tmp_path: Path) -> None:
    """Channels in chunks of their own, which lie apart in the shard, are asked for together."""
    array = noise((*SHAPE, 3), "uint16")
    write(tmp_path, array, chunk=(*CHUNK, 1), shard=(*SHARD, 3))
    with HttpStore(tmp_path) as store:
        check(f"zarr3://{store.url}", array)
        asked = Counter(request.path for request in store.requests)
    assert asked.pop("zarr.json") == 1
    assert set(asked.values()) == {2}


def test_few_chunks_of_a_shard_cost_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that lie apart are fetched apart: little more is transferred than the index and the chunks."""
    array = noise((64, 64, 64))
    write(tmp_path, array, chunk=(16, 16, 16), shard=(64, 64, 64))
    points = np.array([[0, 0, 0], [63, 63, 63], [0, 63, 20]])
    with HttpStore(tmp_path) as store:
        labels = sample_points(f"zarr3://{store.url}", points)
        assert labels.tolist() == array[tuple(points.T)].tolist()
        assert len(store.requests) == 1 + 1 + 3
        assert store.bytes_sent < 4 * 16**3 * 8
        store.clear()
        monkeypatch.setattr("voxelprobe.fetching_zarr_shards.MAX_SPAN_BYTES", 40_000)
        check(f"zarr3://{store.url}", array)
        assert len(store.requests) >= 2 + 64
        assert len({(request.path, request.range) for request in store.requests}) == len(store.requests)


def test_what_is_not_stored_is_the_fill_value(tmp_path: Path) -> None:
    """Chunks that a shard's index lacks, and those of an absent shard, have the fill value; as an error, named."""
    array = noise()
    array[:8, :8, :4] = array[32:, 32:, :] = 7
    write(tmp_path, array, fill_value=7)  # zarr-python leaves out what is the fill value
    assert not (tmp_path / "c/0/2/2").exists()
    check(f"zarr3://file://{tmp_path}", array)
    for point in ([0, 0, 0], [44, 39, 20]):
        with pytest.raises(InputError, match=r"is not in the store; .* get the volume's fill value 7"):
            sample_points(f"zarr3://file://{tmp_path}", point, missing_chunks="error")
    volume = open_volume(f"zarr3://file://{tmp_path}")
    chunks = np.arange(np.prod(volume.grid.shape))
    cache = DiskCache(tmp_path / "cache", budget_bytes=1 << 30).of_scale("v", "f")
    jobs = order_by_chunk(chunks, chunks, np.zeros(len(chunks), np.int64), volume.regions)
    report = fetch_chunks(volume, jobs, cache, threads=4, missing_is_error=False, progress=lambda count, size: None)
    assert (report.fetched, report.absent, report.corrupt) == (6 * 5 * 6, 1 + 2 * 1 * 6, {})


DAMAGE = {
    "empty": lambda good: b"", "short": lambda good: good[:20], "cut": lambda good: good[:-1],
    "longer": lambda good: good + b"x", "flip in the index": lambda good: good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
    "flip in the checksum": lambda good: good[:-1] + bytes([good[-1] ^ 1]), "ones": lambda good: b"\xff" * len(good),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("over", ["file", "http"])
def test_a_broken_shard_costs_its_own_points(tmp_path: Path, damage: str, over: str) -> None:
    """A shard whose index is damaged gives no labels, and says so; those of other shards are right."""
    array = noise()
    write(tmp_path, array)
    path = tmp_path / "c/1/1/1"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    points = points_of()
    with HttpStore(tmp_path) as store:
        cloudpath = f"zarr3://file://{tmp_path}" if over == "file" else f"zarr3://{store.url}"
        labels, status = sample_points(cloudpath, points, return_status=True)
        with pytest.raises(CorruptDataError, match=r"index of shard .*/c/1/1/1: "):
            sample_points(cloudpath, points)
    broken = (points // SHARD == 1).all(axis=1)
    assert set(status[broken]) == {"corrupt_chunk"}
    assert set(status[~broken]) == {"ok"}
    np.testing.assert_array_equal(labels[~broken].data, array[tuple(points[~broken].T)])


def rewrite_index(path: Path, row: int, begin: int, size: int) -> None:
    """Change an entry of the index at the end of a shard, with its checksum."""
    content = path.read_bytes()
    index = np.frombuffer(content[-260:-4], "<u8").reshape(-1, 2).copy()
    index[row] = begin, size
    payload = index.tobytes()
    path.write_bytes(content[:-260] + payload + google_crc32c.value(payload).to_bytes(4, "little"))


@pytest.mark.parametrize(("begin", "size"), [
    (0, 0), (10, 2**63), (2**64 - 2, 5), (2**63, 2**63), (NONE, 5), (5, NONE), (0, 10**6), (10**6, 1), (10, 2**64 - 11),
])
def test_an_index_that_promises_what_is_not_there(tmp_path: Path, begin: int, size: int) -> None:
    """Ranges beyond the object, empty ones, and those that wrap are damage, whatever the checksum says."""
    array = noise()
    write(tmp_path, array)
    rewrite_index(tmp_path / "c/0/0/0", 3, begin, size)
    points = points_of()
    labels, status = sample_points(f"zarr3://file://{tmp_path}", points, return_status=True)
    broken = (points // SHARD == 0).all(axis=1)
    assert set(status[broken]) == {"corrupt_chunk"}
    assert set(status[~broken]) == {"ok"}
    np.testing.assert_array_equal(labels[~broken].data, array[tuple(points[~broken].T)])


@pytest.mark.parametrize("checksum", [True, False])
def test_every_flipped_byte_of_an_index_is_noticed_or_harmless(tmp_path: Path, checksum: bool) -> None:
    """With a checksum no byte of an index can be changed; without, no label is wrong unless it decodes as a chunk.

    Chunks have checksums here, so that none does.
    """
    from zarr.codecs import BytesCodec, Crc32cCodec

    array = noise((16, 16, 8))
    write(tmp_path, array, shard=(16, 16, 8), checksum=checksum, codecs=[BytesCodec(), Crc32cCodec()])
    path = tmp_path / "c/0/0/0"
    good = path.read_bytes()
    points = points_of(array.shape, 100)
    expected = array[tuple(points.T)]
    for place in range(1, 16 * 8 + 4 * checksum + 1, 3):
        path.write_bytes(good[:-place] + bytes([good[-place] ^ 0x11]) + good[len(good) - place + 1:])
        labels, status = sample_points(f"zarr3://file://{tmp_path}", points, return_status=True)
        assert set(status) == {"corrupt_chunk"} if checksum else "corrupt_chunk" in set(status)
        np.testing.assert_array_equal(labels[status == "ok"].data, expected[status == "ok"])


def test_a_damaged_chunk_costs_its_own_points(tmp_path: Path) -> None:
    """A chunk whose own bytes are damaged inside of a sound shard is corrupt alone."""
    array = noise()
    write(tmp_path, array)
    path = tmp_path / "c/0/0/0"
    content = bytearray(path.read_bytes())
    begin, size = np.frombuffer(content[-260:-4], "<u8").reshape(4, 2, 2, 2)[1, 1, 0].tolist()
    content[begin : begin + size] = bytes(size)
    path.write_bytes(content)
    points = points_of()
    labels, status = sample_points(f"zarr3://file://{tmp_path}", points, return_status=True)
    broken = (points // CHUNK == (0, 1, 1)).all(axis=1)
    assert broken.any()
    assert set(status[broken]) == {"corrupt_chunk"}
    assert set(status[~broken]) == {"ok"}
    np.testing.assert_array_equal(labels[~broken].data, array[tuple(points[~broken].T)])


def test_a_shard_sent_compressed_is_not_believed(tmp_path: Path) -> None:
    """Ranges of a shard that is stored gzipped are ranges of something else."""
    import gzip

    array = noise()
    write(tmp_path, array)
    path = tmp_path / "c/0/0/0"
    (tmp_path / "c/0/0/0.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(CorruptDataError, match="expected bytes as they are, found them sent as gzip"):
        sample_points(f"zarr3://file://{tmp_path}", [0, 0, 0])


@given(st.permutations([0, 1, 2, 3]), st.lists(st.integers(1, 4), min_size=4, max_size=4), st.data())
def test_entries_are_where_a_walk_through_the_box_finds_them(axes: Any, sizes: Any, data: Any) -> None:
    """A chunk's entry is its number in the index array, in the array's own order of axes."""
    counts = tuple(sizes[axis] for axis in axes)
    spec = BoxSharding((sizes[0], sizes[1], sizes[2]), sizes[3], 9, tuple(axes), counts, True, True)
    place = [data.draw(st.integers(0, size - 1)) for size in sizes]
    walk = list(itertools.product(*map(range, counts)))
    part = place[3] + data.draw(st.integers(0, 2)) * sizes[3]
    assert spec.rows(np.array([place[:3]]), part).tolist() == [walk.index(tuple(place[axis] for axis in axes))]


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 900), st.integers(1, 99))), min_size=1, max_size=9),
       st.booleans())
def test_an_index_says_what_was_put_in(entries: Any, checksum: bool) -> None:
    """Ranges come back as they were written, with the object's size known or not; -1 is a chunk that isn't stored."""
    spec = BoxSharding((len(entries), 1, 1), 1, 1, (0,), (len(entries),), True, checksum)
    table = np.array([(NONE, NONE) if entry is None else entry for entry in entries], "<u8").tobytes()
    payload = table + (google_crc32c.value(table).to_bytes(4, "little") if checksum else b"")
    for size in (None, 1000):
        starts, ends = parse_box_index(payload, spec, size)
        assert starts.tolist() == [-1 if entry is None else entry[0] for entry in entries]
        assert ends.tolist() == [-1 if entry is None else sum(entry) for entry in entries]
    longest = max([sum(entry) for entry in entries if entry is not None], default=0)
    if longest:
        with pytest.raises(CorruptDataError, match="expected a chunk within"):
            parse_box_index(payload, spec, longest - 1)


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 3), st.tuples(*[st.integers(1, 40)] * 3))
def test_a_region_is_made_of_whole_shards(size: Any, shard: Any) -> None:
    """No shard lies in two regions, unless it has very many chunks; regions are told apart by their cells."""
    spec = BoxSharding(shard, 1, 1, (2, 1, 0), shard[::-1], True, True)
    scale = Scale("k", size, (0, 0, 0), (1.0, 1.0, 1.0), (1, 1, 1), "zarr", np.dtype("<u8"), 1, sharding=spec,
                  names=GridNames("c/", "/", (2, 1, 0)))
    regions = Regions.of(scale)
    positions = np.random.default_rng(1).integers(0, size, (200, 3))
    chunks = regions.grid.chunk_numbers(list(positions.T)).astype(np.int64)
    numbers, cells = regions.cells([positions[:, axis].astype(np.uint32) for axis in range(3)])
    assert numbers is not None
    np.testing.assert_array_equal(regions.chunks(numbers, cells), chunks)
    np.testing.assert_array_equal(regions.numbers(chunks), numbers)
    assert regions.capacity() >= np.unique(chunks[numbers == numbers[0]]).size
    if np.prod(np.minimum(shard, size)) <= MAX_CHUNKS_OF_SHARD_REGION:
        region_of: dict[Any, int] = {}
        for place, number in zip((positions // shard).tolist(), numbers.tolist(), strict=True):
            assert region_of.setdefault(tuple(place), number) == number
    assert all(edge <= max(MAX_BLOCK_EDGE, whole) for edge, whole in zip(regions.block, shard, strict=True))


def test_a_very_large_shard_is_cut() -> None:
    """A shard of 64^3 chunks is several regions of a size that a cache file can have, none of them in two shards."""
    spec = BoxSharding((64, 64, 64), 1, 1, (2, 1, 0), (64, 64, 64), True, True)
    regions = Regions.of(Scale("k", (500, 500, 500), (0, 0, 0), (1.0, 1.0, 1.0), (1, 1, 1), "zarr", np.dtype("<u8"), 1,
                               sharding=spec))
    assert np.prod(regions.block) == MAX_CHUNKS_OF_SHARD_REGION
    assert all(64 % edge == 0 for edge in regions.block)
