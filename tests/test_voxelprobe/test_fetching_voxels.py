"""Single voxels read by byte ranges: the same labels as from whole chunks, for fewer bytes, or whole chunks instead."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe import InputError, fetching_voxels, sample_points
from voxelprobe.cache.memory import MemoryCache
from voxelprobe.decoding import decode_points
from voxelprobe.fetching import fetch_chunks
from voxelprobe.fetching_voxels import can_read_voxels, choose_reads
from voxelprobe.opening import Volume, open_volume
from voxelprobe.planning import ChunkJobs, order_by_chunk
from voxelprobe.testing.http_store import HttpStore


@pytest.fixture(autouse=True)
def cheap_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ranges pay in small chunks: a request costs as much as 20 bytes."""
    monkeypatch.setattr(fetching_voxels, "REQUEST_BYTES", 20)
    monkeypatch.setattr(fetching_voxels, "LOCAL_REQUEST_BYTES", 20)


def make_jobs(volume: Volume, voxels: np.ndarray[Any, Any]) -> ChunkJobs:
    """Return the jobs of voxels (n, 3) that lie inside the volume."""
    chunks, places = volume.grid.locate(voxels)
    return order_by_chunk(np.arange(len(voxels)), chunks, places, volume.regions)


def count(volume: Volume, jobs: ChunkJobs, cache: Any = None) -> tuple[Any, Any]:
    """Return the report of fetching and what decoding gave."""
    cache = cache or MemoryCache()
    options: dict[str, Any] = {"threads": 4, "missing_is_error": False, "progress": lambda chunks, received: None}
    return fetch_chunks(volume, jobs, cache, **options), decode_points(volume, jobs, cache, **options)


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("dtype", ["uint64", "uint8", "int16", "float32"])
def test_labels_are_those_of_whole_chunks(tmp_path: Path, known: Callable[..., Any], dtype: str, channels: Any) -> None:
    """Over file:// and HTTP, chunks with few points and with many give the array's values, clipped chunks too."""
    oracle = known(dtype, channels=channels)
    oracle.write(tmp_path / "seg")
    oracle.check(tmp_path / "seg")
    with HttpStore(tmp_path / "seg") as store:
        oracle.check(store.url)
    few = np.random.default_rng(9).permutation(oracle.points(30))[:40]
    for cloudpath in (tmp_path / "seg", f"file://{tmp_path}/seg"):
        assert np.array_equal(sample_points(str(cloudpath), few).data, oracle.at(few))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_reads_cover_their_values(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, known: Any) -> None:
    """Spans lie in the object in order, their gaps are worth a request, and no chunk costs more than its whole."""
    oracle = known("uint16", channels=data.draw(st.sampled_from([None, 2])))
    folder = tmp_path_factory.mktemp("seg")
    oracle.write(folder)
    volume = open_volume(str(folder))
    number = data.draw(st.integers(1, 400))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    spread = data.draw(st.sampled_from([2, 16, 40]))
    size = np.minimum(oracle.array.shape[:3], spread)
    voxels = rng.integers(0, size, (number, 3)) + oracle.offset
    jobs = make_jobs(volume, voxels)
    cost = data.draw(st.sampled_from([1, 20, 300, 10**6]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching_voxels, "LOCAL_REQUEST_BYTES", cost)
        reads = choose_reads(volume, jobs)
    item = oracle.array.dtype.itemsize
    for i, row in enumerate(reads.rows.tolist()):
        position = volume.grid.positions(jobs.chunks[row : row + 1])[0].tolist()
        whole = math.prod(volume.grid.chunk_shape(tuple(position))) * volume.scale.num_channels * item
        begins = reads.begins[reads.first_span[i] : reads.first_span[i + 1]]
        ends = reads.ends[reads.first_span[i] : reads.first_span[i + 1]]
        assert (begins[0], ends[-1]) >= (0, item)
        assert ends[-1] <= whole
        assert (begins < ends).all()
        assert (begins[1:] - ends[:-1] > cost).all()
        assert (len(begins) - 1) * cost + (ends - begins).sum() < whole
    _, decoded = count(volume, jobs)
    assert np.array_equal(decoded.labels.squeeze(), oracle.at(voxels[jobs.points]).squeeze())


def test_far_fewer_bytes(tmp_path: Path, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a point a chunk, one voxel a chunk is transferred, a chunk of many points is fetched whole and once."""
    monkeypatch.setattr(fetching_voxels, "REQUEST_BYTES", 2000)
    oracle = known("uint64")
    oracle.write(tmp_path)
    corners = np.array([[x, y, z] for x in (0, 16, 32) for y in (0, 16, 32) for z in (0, 8, 16)]) + oracle.offset
    many = np.random.default_rng(0).integers(0, oracle.chunk_size, (500, 3)) + oracle.offset
    with HttpStore(tmp_path) as store:
        volume = open_volume(store.url)
        jobs = make_jobs(volume, np.concatenate([corners, many]))
        cache = MemoryCache()
        report, decoded = count(volume, jobs, cache)
        assert (report.chunks, report.by_range, report.fetched, decoded.by_range) == (27, 26, 1, 26)
        ranged = [request for request in store.requests if request.range is not None]
        assert len(ranged) == 26 + 4  # and those that try it
        again, decoded = count(volume, jobs, cache)
        assert (again.cached, again.by_range, again.requests) == (1, 26, 0)
    assert np.array_equal(decoded.labels[:, 0], oracle.at(np.concatenate([corners, many])[jobs.points]))


def test_cached_chunks_are_not_read_again(tmp_path: Path, known: Any) -> None:
    """A chunk that the cache has whole answers for all its voxels, without the store."""
    oracle = known("uint32")
    oracle.write(tmp_path)
    volume = open_volume(str(tmp_path))
    cache = MemoryCache()
    size = np.array(oracle.array.shape)
    everywhere = np.indices(size).reshape(3, -1).T + oracle.offset
    report, _ = count(volume, make_jobs(volume, everywhere), cache)
    assert report.by_range == 0
    for path in tmp_path.glob("4_4_40/*"):
        path.unlink()
    few = make_jobs(volume, everywhere[::997])
    report, decoded = count(volume, few, cache)
    assert (report.cached, report.by_range, decoded.by_range) == (report.chunks, 0, 0)
    assert np.array_equal(decoded.labels[:, 0], oracle.at(everywhere[::997][few.points]))


@pytest.mark.parametrize("compress", ["gzip", "br", "zstd"])
def test_compressed_objects_are_fetched_whole(tmp_path: Path, known: Any, compress: Any) -> None:
    """Where chunks turn out to be compressed, a few tries tell, and all are fetched whole."""
    oracle = known("uint32")
    oracle.write(tmp_path, compress=compress)
    points = oracle.points(20)
    with HttpStore(tmp_path) as store:
        for cloudpath in (str(tmp_path), store.url):
            volume = open_volume(cloudpath)
            assert can_read_voxels(volume)
            jobs = make_jobs(volume, points)
            report, decoded = count(volume, jobs)
            assert (report.by_range, decoded.by_range, report.fetched) == (0, 0, report.chunks)
            assert np.array_equal(decoded.labels[:, 0], oracle.at(points[jobs.points]))


@pytest.mark.parametrize("compress", [None, "gzip"])
@pytest.mark.parametrize("bucket", ["s3", "gcs"])
def test_voxels_in_buckets(
    request: pytest.FixtureRequest, tmp_path: Path, known: Any, bucket: str, compress: Any
) -> None:
    """Voxels of plain chunks in buckets are read by range, compressed chunks whole; the labels are the same."""
    oracle = known("int32")
    oracle.write(tmp_path, compress=compress)
    volume = open_volume(request.getfixturevalue(bucket).upload(tmp_path, "seg"))
    points = oracle.points(10)
    jobs = make_jobs(volume, points)
    report, decoded = count(volume, jobs)
    assert (report.by_range > 0) == (decoded.by_range > 0) == (compress is None)
    assert np.array_equal(decoded.labels[:, 0], oracle.at(points[jobs.points]))


def test_ranges_that_the_store_refuses(tmp_path: Path, known: Any, serve: Any) -> None:
    """A store that gives whole objects only, as Google's does of gzip that it undoes, is asked for whole chunks."""
    oracle = known("uint32")
    oracle.write(tmp_path, compress="gzip", suffixes=False)

    def undo(path: str, number: int) -> tuple[int, dict[str, str], bytes]:
        content = (tmp_path / path.strip("/")).read_bytes()
        if path == "/info":
            return 200, {}, content
        stored = {"x-goog-stored-content-encoding": "gzip"}
        if "Range" in server.headers[number]:
            return 200, stored, gzip.decompress(content)
        return 200, stored | {"Content-Encoding": "gzip"}, content

    server = serve(undo)
    volume = open_volume(server.url)
    points = oracle.points(10)
    jobs = make_jobs(volume, points)
    report, decoded = count(volume, jobs)
    assert (report.by_range, decoded.by_range) == (0, 0)
    assert np.array_equal(decoded.labels[:, 0], oracle.at(points[jobs.points]))


@pytest.mark.parametrize("size", [-1, 1, 4096])
def test_objects_of_a_wrong_size_are_corrupt(tmp_path: Path, oracle: Any, size: int) -> None:
    """A chunk that is too short or too long gives its points corrupt_chunk, though their voxels could be read."""
    oracle.write(tmp_path)
    name = tmp_path / "4_4_40/13-29_7-23_101-109"
    content = name.read_bytes()
    name.write_bytes(content[:size] if size < 0 else content + bytes(size))
    points = oracle.points()
    inside = ((points - oracle.offset) // oracle.chunk_size == 0).all(axis=1)
    for few in (points, points[inside][:3], points[~inside][:30]):
        labels, status = sample_points(str(tmp_path), few, return_status=True)
        damaged = ((few - oracle.offset) // oracle.chunk_size == 0).all(axis=1)
        assert np.array_equal(status == "corrupt_chunk", damaged)
        assert np.array_equal(labels[~damaged].data, oracle.at(few)[~damaged])


def test_absent_chunks_are_missing(tmp_path: Path, oracle: Any) -> None:
    """Points of absent and of empty objects get missing_chunk, or the run ends, also where voxels are read."""
    oracle.write(tmp_path, skip_chunks=[(0, 0, 0)], empty_chunks=[(1, 0, 0)])
    points = np.array([[0, 0, 0], [16, 0, 0], [32, 0, 0], [0, 16, 0], [17, 17, 9]]) + oracle.offset
    _, status = sample_points(str(tmp_path), points, return_status=True)
    assert status.tolist() == ["missing_chunk", "missing_chunk", "ok", "ok", "ok"]
    with pytest.raises(InputError, match=r"chunk 13-29_7-23_101-109 .* is not in the store"):
        sample_points(str(tmp_path), points[[0, 2, 3]], missing_chunks="error")


def test_server_without_ranges(tmp_path: Path, known: Any) -> None:
    """A server that always sends the whole object is asked for each chunk once, after a few tries."""
    oracle = known("uint32")
    oracle.write(tmp_path)
    points = oracle.points(20)
    with HttpStore(tmp_path, ranges=False) as store:
        volume = open_volume(store.url)
        jobs = make_jobs(volume, points)
        store.clear()
        report, decoded = count(volume, jobs)
        tried = len({request.path for request in store.requests if request.range})
        assert sum(request.range is None for request in store.requests) == len(jobs.chunks)
    assert tried <= 4
    assert (report.by_range, report.fetched) == (0, report.chunks)
    assert np.array_equal(decoded.labels[:, 0], oracle.at(points[jobs.points]))


def test_what_is_not_read_so(tmp_path: Path, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoded and sharded chunks, and chunks that are hardly more than a request, are never read by range."""
    oracle = known("uint64")
    oracle.write(tmp_path / "cseg", encoding="compressed_segmentation")
    oracle.write(tmp_path / "shards", sharding={"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3})
    oracle.write(tmp_path / "raw")
    assert not can_read_voxels(open_volume(str(tmp_path / "cseg")))
    assert not can_read_voxels(open_volume(str(tmp_path / "shards")))
    assert can_read_voxels(open_volume(str(tmp_path / "raw")))
    monkeypatch.setattr(fetching_voxels, "LOCAL_REQUEST_BYTES", 16 * 16 * 8 * 8)
    assert not can_read_voxels(open_volume(str(tmp_path / "raw")))
