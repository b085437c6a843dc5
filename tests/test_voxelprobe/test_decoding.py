import logging

import numpy as np
import pytest

from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.memory import MemoryCache
from voxelprobe.decoding import decode_points
from voxelprobe.errors import InputError
from voxelprobe.fetching import fetch_chunks
from voxelprobe.opening import open_volume
from voxelprobe.planning import order_by_chunk
from voxelprobe.records import Status
from voxelprobe.testing.volumes import chunk_name, write_volume

SHAPE, CHUNK, OFFSET = (45, 40, 21), (16, 16, 8), (13, 7, -102)
ENCODINGS = ["raw", "compressed_segmentation", "crackle", "compresso"]
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
        self.volume = open_volume(f"file://{folder}")
        inside = np.random.default_rng(3).integers(0, SHAPE, (count, 3))
        self.chunks, self.places = self.volume.grid.locate(inside + np.array(OFFSET))
        self.jobs = order_by_chunk(np.arange(count), self.chunks, self.places, self.volume.regions)
        self.expected = array[tuple(inside.T)].reshape(count, -1)
        self.in_corner = (inside < CHUNK).all(axis=1)  # chunk 0, at grid place 0, 0, 0

    def path(self, grid=(0, 0, 0)):
        """Where a chunk of the volume is stored."""
        return self.folder / chunk_name(self.info["scales"][0], grid)

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
@pytest.mark.parametrize("sharding", [None, SHARDING])
def test_labels_are_the_volumes_from_an_empty_and_from_a_full_cache(tmp_path, cache, encoding, sharding):
    """Every label is the array's; what the cache lacks is fetched, once, and never again."""
    case = Case(tmp_path / "v", encoding=encoding, sharding=sharding)
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
@pytest.mark.parametrize("payload", [b"x", b"garbage" * 50])
def test_a_damaged_payload_in_the_cache_is_fetched_once_more(tmp_path, cache, encoding, payload):
    """A payload that contradicts its format is replaced from the store, and every label is right."""
    case = Case(tmp_path / "v", encoding=encoding)
    fetch(case, cache)
    cache.write(int(case.volume.regions.numbers(np.zeros(1, np.int64))[0]), {0: payload})
    decoded = case.assert_right(cache)
    assert (decoded.fetched, decoded.corrupt) == (1, {})
    assert case.assert_right(cache).fetched == 0


def test_a_damaged_cache_file_is_fetched_once_more(tmp_path, cache, caplog):
    """A region's file that was overwritten costs a fetch and no label."""
    case = Case(tmp_path / "v")
    fetch(case, cache)
    path = min((tmp_path / "cache").glob("*/r*.sqlite"))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
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


def test_a_body_that_contradicts_its_compression_costs_its_own_points(tmp_path, cache):
    """A cut gzip file is noticed before decoding, says so, and is not kept."""
    case = Case(tmp_path / "v", compress="gzip")
    path = case.path().with_name(case.path().name + ".gz")
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    assert list(case.assert_right(cache, lost=Status.CORRUPT_CHUNK).corrupt) == [0]
    path.write_bytes(good)
    assert case.assert_right(cache).corrupt == {}


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
