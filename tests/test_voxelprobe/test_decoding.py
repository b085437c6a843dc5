import gzip
import logging
import tracemalloc

import numpy as np
import pytest

from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.memory import MemoryCache
from voxelprobe.decoding import decode_points
from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.fetching import fetch_chunks, max_payload_bytes
from voxelprobe.opening import open_volume
from voxelprobe.planning import order_by_chunk
from voxelprobe.records import Status
from voxelprobe.testing.encoders import LABEL_ENCODINGS as ENCODINGS
from voxelprobe.testing.volumes import SUFFIXES, chunk_name, compress_bytes, write_volume
from voxelprobe.transport.protocol import StoredObject

SHAPE, CHUNK, OFFSET = (45, 40, 21), (16, 16, 8), (13, 7, -102)
SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 2, "data_encoding": "gzip"}


def make_array(channels=None):
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 2**64 - 1, (12, 10, 21) + ((channels,) if channels else ()), dtype=np.uint64)
    return blocks.repeat(4, 0).repeat(4, 1)[: SHAPE[0], : SHAPE[1]]


class Case:
    """A volume on disk, points all over it, and what is right."""

    def __init__(self, folder, channels=None, count=500, **kinds):
        array = make_array(channels)
        self.folder = folder
        self.info = write_volume(folder, array, chunk_size=CHUNK, voxel_offset=OFFSET, **kinds)
        self.suffix = SUFFIXES.get(kinds.get("compress"), "")
        self.volume = open_volume(f"file://{folder}")
        inside = np.random.default_rng(3).integers(0, SHAPE, (count, 3))
        self.chunks, self.places = self.volume.grid.locate(inside + np.array(OFFSET))
        self.jobs = order_by_chunk(np.arange(count), self.chunks, self.places, self.volume.regions)
        self.expected = array[tuple(inside.T)].reshape(count, -1)
        self.in_corner = (inside < CHUNK).all(axis=1)  # chunk 0, at grid place 0, 0, 0

    def path(self, grid=(0, 0, 0)):
        """Where a chunk of the volume is stored."""
        return self.folder / (chunk_name(self.info["scales"][0], grid) + self.suffix)

    @property
    def corner_region(self):
        """The cache's region of the corner chunk."""
        return int(self.volume.regions.numbers(np.zeros(1, np.int64))[0])

    def decode(self, cache, jobs=None, missing_is_error=False):
        """Labels (n, channels) and status (n,) in the points' order, and the whole answer."""
        jobs = self.jobs if jobs is None else jobs
        self.seen = 0

        def progress(chunks, received):
            self.seen += chunks

        decoded = decode_points(self.volume, jobs, cache, threads=4, missing_is_error=missing_is_error,
                                progress=progress)
        labels, status = np.zeros_like(self.expected), np.full(len(self.expected), 99)
        labels[jobs.points], status[jobs.points] = decoded.labels, decoded.status
        assert decoded.labels.dtype == self.volume.scale.dtype
        return labels, status, decoded

    def assert_right(self, cache, lost=Status.OK):
        """All labels are right, but for those of the corner chunk if these are `lost`."""
        labels, status, decoded = self.decode(cache)
        kept = ~self.in_corner | (lost == Status.OK)
        assert (labels[kept] == self.expected[kept]).all()
        assert (status[kept] == Status.OK).all()
        assert (status[~kept] == lost).all()
        assert self.seen == len(self.jobs.chunks)
        return decoded


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache", budget_bytes=1 << 40).of_scale("v", "f")


def fetch(case, cache):
    fetch_chunks(case.volume, case.jobs, cache, threads=4, missing_is_error=False, progress=lambda chunks, size: None)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kinds", [
    {}, *({"compress": compress} for compress in SUFFIXES),
    {"sharding": SHARDING}, {"sharding": SHARDING | {"data_encoding": "raw"}},
], ids=["plain", *SUFFIXES, "sharded gzip", "sharded raw"])
def test_labels_are_the_volumes_from_an_empty_and_from_a_full_cache(tmp_path, cache, encoding, kinds):
    """Every label is the array's, whatever chunks are wrapped in; what lacks is fetched, once, and never again."""
    case = Case(tmp_path / "v", encoding=encoding, **kinds)
    assert case.assert_right(cache).fetched == len(case.jobs.chunks)
    for path in [path for path in case.folder.rglob("*") if path.is_file()]:
        path.unlink()
    assert case.assert_right(cache).fetched == 0


def test_channels_stay_side_by_side(tmp_path):
    """A volume of several channels gives a label for each, in their order."""
    Case(tmp_path / "v", channels=3).assert_right(MemoryCache())


def test_only_what_the_cache_lost_is_fetched(tmp_path, cache):
    """An evicted region, or one chunk of it, is fetched again and nothing else."""
    case = Case(tmp_path / "v", sharding=SHARDING)
    fetch(case, cache)
    region, begin, end = max(case.jobs.by_region(1000), key=lambda run: run[2] - run[1])
    cache.discard(region, case.jobs.chunks[begin:end].tolist())
    assert case.assert_right(cache).fetched == end - begin
    cache.discard(region, case.jobs.chunks[begin : begin + 1].tolist())
    assert case.assert_right(cache).fetched == 1


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("compress", [None, "gzip"])
@pytest.mark.parametrize("damaged", [
    StoredObject(b"x", None), StoredObject(b"garbage" * 50, None), StoredObject(b"garbage" * 50, "gzip"),
    StoredObject(gzip.compress(b"garbage" * 50), "gzip"), StoredObject(gzip.compress(b"x"), None),
    StoredObject(gzip.compress(b"garbage" * 50)[:-3], "gzip"), StoredObject(gzip.compress(b"x") + b"x", "gzip"),
    StoredObject(gzip.compress(b"x"), "br, gzip"), StoredObject(b"\0" * 20, "zstd"),
])
def test_a_damaged_object_in_the_cache_is_fetched_once_more(tmp_path, cache, encoding, compress, damaged):
    """An object that contradicts its compression or its format is replaced from the store; every label is right."""
    case = Case(tmp_path / "v", encoding=encoding, compress=compress)
    fetch(case, cache)
    cache.write(case.corner_region, {0: damaged})
    decoded = case.assert_right(cache)
    assert (decoded.fetched, decoded.corrupt) == (1, {})
    assert case.assert_right(cache).fetched == 0


def test_a_damaged_cache_file_is_fetched_once_more(tmp_path, cache, caplog):
    """A region's file that was overwritten costs a fetch and no label."""
    case = Case(tmp_path / "v")
    fetch(case, cache)
    path = min((tmp_path / "cache").glob("*/r*.sqlite"))
    path.write_bytes(b"not a database" + path.read_bytes()[14:])
    with caplog.at_level(logging.WARNING):
        assert 0 < case.assert_right(cache).fetched < len(case.jobs.chunks)
    assert "is damaged" in caplog.text
    assert case.assert_right(cache).fetched == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"\xff" * 11, lambda b: b[:1]])
def test_a_corrupt_chunk_in_the_store_costs_its_own_points(tmp_path, cache, encoding, damage):
    """Its points are corrupt_chunk, with what is wrong by chunk number; all others are right."""
    case = Case(tmp_path / "v", encoding=encoding)
    good = case.path().read_bytes()
    case.path().write_bytes(damage(good))
    decoded = case.assert_right(cache, lost=Status.CORRUPT_CHUNK)
    assert list(decoded.corrupt) == [0]
    assert decoded.corrupt[0]
    # Mended in the store, it is mended here, however often it was looked at before.
    case.path().write_bytes(good)
    assert case.assert_right(cache).corrupt == {}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("compress", ["gzip", "xz", "bz2"])
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[:40] + bytes([b[40] ^ 4]) + b[41:]],
                         ids=["cut", "flipped"])
def test_a_body_that_contradicts_its_compression_costs_its_own_points(tmp_path, cache, encoding, compress, damage):
    """Fetched once more, then corrupt; so again by whoever finds it in the cache; mended in the store, mended here."""
    case = Case(tmp_path / "v", encoding=encoding, compress=compress)
    good = case.path().read_bytes()
    case.path().write_bytes(damage(good))
    for fetched in (len(case.jobs.chunks) + 1, 1):
        decoded = case.assert_right(cache, lost=Status.CORRUPT_CHUNK)
        assert list(decoded.corrupt) == [0]
        assert decoded.corrupt[0].startswith(f"expected whole {compress.replace('bz2', 'bzip2')} data, found")
        assert decoded.fetched == fetched
    case.path().write_bytes(good)
    for fetched in (1, 0):
        decoded = case.assert_right(cache)
        assert (decoded.corrupt, decoded.fetched) == ({}, fetched)


@pytest.mark.parametrize("encoding", ["raw", "crackle"])
def test_damage_that_was_fetched_before_is_noticed_by_decoding(tmp_path, cache, encoding):
    """Fetching takes a damaged gzip for what the store has, with right checksums in the cache; no label comes of it."""
    case = Case(tmp_path / "v", encoding=encoding, compress="gzip")
    good = case.path().read_bytes()
    bad = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    case.path().write_bytes(bad)
    fetch(case, cache)
    assert cache.read(case.corner_region, [0]) == {0: StoredObject(bad, "gzip")}
    assert case.assert_right(cache, lost=Status.CORRUPT_CHUNK).fetched == 1
    fetch(case, cache)
    case.path().write_bytes(good)
    assert case.assert_right(cache).fetched == 1
    assert cache.read(case.corner_region, [0]) == {0: StoredObject(good, "gzip")}
    assert case.assert_right(cache).fetched == 0


@pytest.mark.parametrize("encoding", ["raw", "crackle"])
def test_an_encoding_that_cant_be_undone_is_an_error(tmp_path, cache, encoding):
    """A cached chunk in an encoding that we don't know is neither corrupt nor guessed at, isolated reader or not."""
    case = Case(tmp_path / "v", encoding=encoding)
    fetch(case, cache)
    cache.write(case.corner_region, {0: StoredObject(case.path().read_bytes(), "gzip, rot13")})
    with pytest.raises(UnsupportedError, match="content encoding 'rot13' is not one of"):
        case.decode(cache)


@pytest.mark.parametrize("compress", ["gzip", "br", "zstd", "xz", "bz2"])
def test_a_cached_bomb_is_bounded(tmp_path, cache, compress):
    """What is in the cache expands to no more than a chunk can honestly have, and is replaced from the store."""
    case = Case(tmp_path / "v")
    fetch(case, cache)
    bomb = compress_bytes(bytes(1 << 27), compress)
    cache.write(case.corner_region, {0: StoredObject(bomb, compress)})
    tracemalloc.start()
    try:
        assert case.assert_right(cache).fetched == 1
        assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", [None, "gzip", "gzip, gzip"])
def test_the_bound_of_cached_objects_is_exact(tmp_path, cache, encoding):
    """One byte beyond what a chunk can honestly have is said as that; up to there it is the reader's to judge."""
    case = Case(tmp_path / "v")
    fetch(case, cache)
    case.path().write_bytes(b"damaged")  # so that what was wrong is told
    most = max_payload_bytes(case.volume)
    cache.discard(case.corner_region, [0])

    class Keeping:
        """The cache, but that the corner chunk is always the same."""

        def __init__(self, stored):
            self.stored = stored

        def __getattr__(self, name):
            return getattr(cache, name)

        def read(self, region, chunks):
            return cache.read(region, chunks) | ({0: self.stored} if 0 in chunks else {})

    for size, message in ((most, f"found {most}"), (most + 1, f"expected at most {most} bytes, found more")):
        content = np.random.default_rng(1).bytes(1000) * (size // 1000) + bytes(size % 1000)
        for _ in (encoding or "").split(",") if encoding else ():
            content = gzip.compress(content, 1)
        decoded = case.assert_right(Keeping(StoredObject(content, encoding)), lost=Status.CORRUPT_CHUNK)
        assert decoded.corrupt[0].endswith(message)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("compress", ["gzip", "br", "zstd", "xz", "bz2"])
def test_a_compressed_empty_chunk_is_missing(tmp_path, cache, encoding, compress):
    """No bytes, wrapped in a compression, are missing_chunk, never label 0; that is kept, or an error if wanted."""
    case = Case(tmp_path / "v", encoding=encoding, compress=compress)
    case.path().write_bytes(compress_bytes(b"", compress))
    fetch(case, cache)
    for _ in range(2):
        decoded = case.assert_right(cache, lost=Status.MISSING_CHUNK)
        assert (decoded.fetched, decoded.corrupt) == (0, {})
    for some in (cache, MemoryCache()):
        with pytest.raises(InputError, match=r"chunk 13-29_7-23_-102--94 of file://.*/4_4_40 is not in the store"):
            case.decode(some, missing_is_error=True)


@pytest.mark.parametrize("how", ["skip_chunks", "empty_chunks"])
@pytest.mark.parametrize("sharding", [None, SHARDING])
def test_an_absent_chunk_is_missing_and_remembered(tmp_path, cache, how, sharding):
    """Absent or of zero bytes: missing_chunk, never label 0; the cache keeps that, so it isn't asked for again."""
    case = Case(tmp_path / "v", sharding=sharding, **{how: [(0, 0, 0)]})
    assert case.assert_right(cache, lost=Status.MISSING_CHUNK).corrupt == {}
    assert case.assert_right(cache, lost=Status.MISSING_CHUNK).fetched == 0


def test_a_missing_chunk_may_be_an_error(tmp_path, cache):
    """Where missing chunks are errors the chunk is named, with what would give its points a status instead."""
    case = Case(tmp_path / "v", skip_chunks=[(0, 0, 0)])
    with pytest.raises(InputError, match=r"chunk 13-29_7-23_-102--94 of file://.*/4_4_40 is not in the store; with "
                                         r"--missing-chunks null"):
        case.decode(cache, missing_is_error=True)
    others, _ = case.jobs.select(case.jobs.chunks != 0)
    _, status, _ = case.decode(cache, others, missing_is_error=True)
    assert (status[~case.in_corner] == Status.OK).all()


def test_small_batches_give_the_same_labels(tmp_path, cache, monkeypatch):
    """How many chunks are held at once changes nothing."""
    case = Case(tmp_path / "v", encoding="crackle", skip_chunks=[(0, 0, 0)])
    for chunks in (1, 2, 7):
        monkeypatch.setattr("voxelprobe.decoding.BATCH_CHUNKS", chunks)
        case.assert_right(cache, lost=Status.MISSING_CHUNK)
    monkeypatch.setattr("voxelprobe.decoding.BATCH_BYTES", 1)
    case.assert_right(cache, lost=Status.MISSING_CHUNK)


def test_no_points_are_no_labels(tmp_path):
    """Nothing to do is legal, and nothing is opened for it."""
    case = Case(tmp_path / "v")
    nothing, _ = case.jobs.select(np.zeros(len(case.jobs.chunks), bool))
    decoded = decode_points(case.volume, nothing, MemoryCache(), threads=1, missing_is_error=True,
                            progress=lambda chunks, size: None)
    assert (decoded.labels.shape, decoded.status.shape, decoded.corrupt, decoded.fetched) == ((0, 1), (0,), {}, 0)
