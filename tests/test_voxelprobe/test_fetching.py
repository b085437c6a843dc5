"""How often a store is asked: each chunk once, and what came is kept."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe import InputError, TransportError, UnsupportedError, sample_points
from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.memory import MemoryCache
from voxelprobe.cache.protocol import ABSENT
from voxelprobe.fetching import FetchReport, fetch_chunks, max_payload_bytes
from voxelprobe.opening import Volume, open_volume
from voxelprobe.planning import ChunkJobs, order_by_chunk
from voxelprobe.testing.http_store import Fault, HttpStore
from voxelprobe.testing.volumes import SUFFIXES, chunk_name, compress_bytes, write_volume
from voxelprobe.transport.protocol import StoredObject

CHUNKS = 27
MIDDLE = "4_4_40/29-45_23-39_109-117"
pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def oracle(known: Callable[..., Any]) -> Any:
    return known()


@pytest.fixture
def store(tmp_path: Path, oracle: Any) -> Iterator[HttpStore]:
    """27 gzipped chunks, of which one is absent and one has no bytes."""
    oracle.write(tmp_path / "seg", encoding="compressed_segmentation", compress="gzip", skip_chunks=[(1, 0, 0)],
                 empty_chunks=[(2, 2, 2)])
    with HttpStore(tmp_path / "seg") as served:
        yield served


def jobs_of(volume: Volume, points: Any) -> ChunkJobs:
    positions = (np.asarray(points, np.int64) - volume.scale.voxel_offset) // volume.scale.chunk_size
    chunks = np.ravel_multi_index(tuple(positions.T), volume.grid.shape, order="F")
    assert (volume.grid.positions(chunks) == positions).all()
    return order_by_chunk(np.arange(len(chunks)), chunks, np.zeros(len(chunks), np.int64), volume.regions)


def fetch(volume: Volume, points: Any, cache: Any, *, threads: int = 4, missing_is_error: bool = False) -> FetchReport:
    return fetch_chunks(volume, jobs_of(volume, points), cache, threads=threads, missing_is_error=missing_is_error,
                        progress=lambda chunks, received: None)


def test_each_needed_chunk_is_asked_for_once(store: HttpStore, oracle: Any) -> None:
    """Unsharded: one request for the info and one for each chunk that has points, whatever their number."""
    points = oracle.points()
    sample_points(store.url, points)
    counts = Counter(request.path for request in store.requests)
    assert set(counts.values()) == {1}
    assert len(counts) == 1 + CHUNKS
    store.clear()
    inside = points[((points - oracle.offset) // oracle.chunk_size == 1).all(axis=1)]
    sample_points(store.url, inside)
    assert [request.path for request in store.requests] == ["info", MIDDLE]


def test_points_outside_cost_no_chunk(store: HttpStore) -> None:
    """Points without a chunk ask for the info alone."""
    sample_points(store.url, [[0, 0, 0], [9999, 8, 102]])
    assert [request.path for request in store.requests] == ["info"]


def test_a_second_call_asks_for_the_info_alone(store: HttpStore, oracle: Any, tmp_path: Path) -> None:
    """Out of a cache folder come also the chunks known to be absent, and the labels are the same."""
    points = oracle.points()
    first = sample_points(store.url, points, cache=tmp_path / "cache", return_status=True)
    store.clear()
    second = sample_points(store.url, points, cache=tmp_path / "cache", return_status=True)
    assert [request.path for request in store.requests] == ["info"]
    assert {"ok", "missing_chunk"} == set(first[1])
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(np.ma.filled(one, 5), np.ma.filled(other, 5))


def test_the_report_counts(store: HttpStore, oracle: Any) -> None:
    """Needed, cached, fetched, absent, requests, bytes and retries are those that the server saw."""
    volume, cache = open_volume(store.url), MemoryCache()
    store.clear()
    half = oracle.points()[:40]
    needed = len(jobs_of(volume, half).chunks)
    first = fetch(volume, half, cache)
    assert (first.chunks, first.cached, first.fetched) == (needed, 0, needed)
    store.fail("4_4_40/*", Fault("status", 503))
    rest = fetch(volume, oracle.points(), cache)
    assert (rest.chunks, rest.cached, rest.fetched, rest.retries) == (CHUNKS, needed, CHUNKS - needed, 1)
    assert first.absent + rest.absent == 2
    assert first.requests + rest.requests == len(store.requests) == CHUNKS + 1
    # Bodies of the 404 and the 503 aren't chunks.
    assert first.bytes + rest.bytes == sum(path.stat().st_size for path in (store.folder / "4_4_40").iterdir())


def test_what_came_before_a_failure_is_kept(store: HttpStore, oracle: Any, tmp_path: Path) -> None:
    """A call that ends in an error leaves its chunks in the cache: the next one asks only for those that lack."""
    store.fail(MIDDLE, Fault("status", 500), times=None)
    with pytest.raises(TransportError, match="answered 500"):
        sample_points(store.url, oracle.points(), cache=tmp_path / "cache")
    came = {request.path for request in store.requests} - {"info", MIDDLE}
    store.heal()
    store.clear()
    sample_points(store.url, oracle.points(), cache=tmp_path / "cache")
    asked = [request.path for request in store.requests if request.path != "info"]
    assert MIDDLE in asked
    assert len(came) >= 10
    assert not came & set(asked)


def test_missing_as_an_error_ends_the_fetch(store: HttpStore, oracle: Any) -> None:
    """With `missing_is_error` the first absent chunk is an InputError that names it."""
    with pytest.raises(InputError, match=r"chunk (29-45_7-23_101-109|45-58_39-47_117-122) of http://.* is not in"):
        fetch(open_volume(store.url), oracle.points(), MemoryCache(), missing_is_error=True)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_than_the_threads_are_under_way(store: HttpStore, oracle: Any, threads: int) -> None:
    """As many requests as threads are under way at once, and never more."""
    volume = open_volume(store.url)
    store.latency_seconds = 0.02
    store.clear()
    fetch(volume, oracle.points(), MemoryCache(), threads=threads)
    assert store.peak_in_flight == threads


def disk_cache(volume: Volume, folder: Path) -> Any:
    return DiskCache(folder / "cache", budget_bytes=1 << 30).of_scale(volume.url, volume.scale.fingerprint)


def read_all(volume: Volume, cache: Any) -> dict[int, StoredObject]:
    """Return every chunk that the cache has."""
    chunks = np.arange(CHUNKS)
    found = [cache.read(region, [chunk]) for region, chunk in zip(volume.regions.numbers(chunks), chunks, strict=True)]
    return {chunk: stored for one in found for chunk, stored in one.items()}


@pytest.mark.parametrize("compress", [None, *SUFFIXES])
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_what_is_cached_is_what_the_store_has(tmp_path: Path, oracle: Any, compress: Any, kind: str) -> None:
    """A chunk's bytes as they are stored, and what the store calls their compression; none for what isn't there."""
    oracle.write(tmp_path / "seg", compress=compress, skip_chunks=[(1, 0, 0)], empty_chunks=[(2, 2, 2)])
    with HttpStore(tmp_path / "seg") as store:
        volume = open_volume(store.url)
        cache = disk_cache(volume, tmp_path) if kind == "disk" else MemoryCache()
        fetch(volume, oracle.points(), cache)
        expected = {}
        for chunk, (x, y, z) in enumerate(volume.grid.positions(np.arange(CHUNKS)).tolist()):
            found = store.find(f"{volume.scale.key}/{volume.grid.chunk_name((x, y, z))}")
            content = found[0].read_bytes() if found else b""
            expected[chunk] = StoredObject(content, found[1]) if found and content else ABSENT
    assert read_all(volume, cache) == expected
    assert list(expected.values()).count(ABSENT) == 2


@pytest.mark.parametrize("times", [1, 2])
def test_a_body_damaged_on_the_way_is_asked_for_once_more(
    store: HttpStore, oracle: Any, tmp_path: Path, times: int
) -> None:
    """A chunk that came damaged is right the second time, or corrupt, and then right in the next call."""
    points = oracle.points()
    whole, _ = sample_points(store.url, points, return_status=True)
    inside = ((points - oracle.offset) // oracle.chunk_size == 1).all(axis=1)
    store.fail(MIDDLE, Fault("flipped"), times=times)
    store.clear()
    labels, status = sample_points(store.url, points, cache=tmp_path / "cache", return_status=True)
    counts = Counter(request.path for request in store.requests)
    assert counts.pop(MIDDLE) == 2
    assert set(counts.values()) == {1}
    assert set(status[inside]) == ({"ok"} if times == 1 else {"corrupt_chunk"})
    assert set(status[~inside]) == {"ok", "missing_chunk"}
    good = status == "ok"
    np.testing.assert_array_equal(labels[good].data, whole[good].data)
    store.clear()
    labels, status = sample_points(store.url, points, cache=tmp_path / "cache", return_status=True)
    assert [request.path for request in store.requests] == ["info"] + [MIDDLE] * (times == 2)
    assert set(status) == {"ok", "missing_chunk"}
    np.testing.assert_array_equal(labels.filled(5), whole.filled(5))


@pytest.mark.parametrize("compress", [None, "gzip"])
def test_a_chunk_of_impossible_size_is_not_cached(tmp_path: Path, oracle: Any, compress: Any) -> None:
    """More bytes than an encoded chunk can have are corrupt, by its number, and fetched anew by the next call."""
    oracle.write(tmp_path / "seg", compress=compress)
    with HttpStore(tmp_path / "seg") as store:
        volume = open_volume(store.url)
        cache, most = disk_cache(volume, tmp_path), max_payload_bytes(volume)
        found = store.find(MIDDLE)
        assert found
        good = found[0].read_bytes()
        found[0].write_bytes(bytes(most + 1))
        report = fetch(volume, oracle.points(), cache)
        (number,) = report.corrupt
        assert volume.grid.positions(np.array([number])).tolist() == [[1, 1, 1]]
        assert report.corrupt[number] == f"expected a chunk of at most {most} bytes, found {most + 1}"
        assert read_all(volume, cache).keys() == set(range(CHUNKS)) - {number}
        for content in (bytes(most), good):
            found[0].write_bytes(content)
            report = fetch(volume, oracle.points(), cache)
            assert (report.fetched, report.corrupt) == (1, {})
            assert read_all(volume, cache)[number] == StoredObject(content, compress)
            cache.discard(int(volume.regions.numbers(np.array([number]))[0]), [number])


def test_an_encoding_that_cant_be_undone_is_not_cached(store: HttpStore, oracle: Any, tmp_path: Path) -> None:
    """It ends the fetch with its name; what came before is kept, and once the store says it right, all is well."""
    path, _ = store.find(MIDDLE) or (None, None)
    assert path
    plain = path.with_suffix("")
    path.rename(plain)
    store.content_encoding = "rot13"
    with pytest.raises(UnsupportedError, match="content encoding 'rot13' is not one of"):
        sample_points(store.url, oracle.points(), cache=tmp_path / "cache")
    store.content_encoding = "x-gzip"
    store.clear()
    _, status = sample_points(store.url, oracle.points(), cache=tmp_path / "cache", return_status=True)
    assert {"ok", "missing_chunk"} == set(status)
    assert MIDDLE in {request.path for request in store.requests}


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_bomb_is_bounded(tmp_path: Path, encoding: Any) -> None:
    """A small chunk that would expand to 300 MB is corrupt, and is never expanded."""
    info = write_volume(tmp_path, np.zeros((8, 8, 8), np.uint64), chunk_size=(8, 8, 8))
    bomb = compress_bytes(bytes(300 << 20), encoding)
    (tmp_path / chunk_name(info["scales"][0], (0, 0, 0))).write_bytes(bomb)
    with HttpStore(tmp_path, content_encoding=encoding) as store:
        code = ("import resource, sys, voxelprobe\n"
                "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
                "import voxelprobe.sampling; before = peak()\n"
                "try: voxelprobe.sample_points(sys.argv[1], [1, 2, 3])\n"
                "except voxelprobe.CorruptDataError as error: print(error, peak() - before, sep='|')\n")
        said = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=True)
    message, grown_kib = said.stdout.split("|")
    assert "chunk 0-8_0-8_0-8" in message
    assert "expected at most" in message
    assert int(grown_kib) < 120 << 10
