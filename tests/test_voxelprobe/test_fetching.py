"""How often a store is asked: each chunk once, and what came is kept."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe import InputError, TransportError, sample_points
from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.memory import MemoryCache
from voxelprobe.fetching import FetchReport, fetch_chunks, stream
from voxelprobe.opening import Volume, open_volume
from voxelprobe.planning import ChunkJobs, locate_points, order_by_chunk
from voxelprobe.testing.http_store import Fault, HttpStore
from voxelprobe.testing.volumes import chunk_name, compress_bytes, write_volume

CHUNKS = 27
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
    voxels = np.asarray(points, np.int64)
    located = locate_points(voxels, np.ones(len(voxels), np.bool_), volume.grid)
    return order_by_chunk(np.arange(len(voxels)), located.chunks, located.places, volume.regions)


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
    assert [request.path for request in store.requests] == ["info", "4_4_40/29-45_23-39_109-117"]


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
    failing = "4_4_40/29-45_23-39_109-117"
    store.fail(failing, Fault("status", 500), times=None)
    with pytest.raises(TransportError, match="answered 500"):
        sample_points(store.url, oracle.points(), cache=tmp_path / "cache")
    came = {request.path for request in store.requests} - {"info", failing}
    store.heal()
    store.clear()
    sample_points(store.url, oracle.points(), cache=tmp_path / "cache")
    asked = [request.path for request in store.requests if request.path != "info"]
    assert failing in asked
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


def test_a_corrupt_chunk_is_not_cached(store: HttpStore, oracle: Any, tmp_path: Path) -> None:
    """A chunk that came damaged twice is reported by its number and fetched anew by the next call."""
    volume = open_volume(store.url)
    cache = DiskCache(tmp_path / "cache", budget_bytes=1 << 30).of_scale(volume.url, volume.scale.fingerprint)
    store.fail("4_4_40/29-45_23-39_109-117", Fault("flipped"), times=2)
    report = fetch(volume, oracle.points(), cache)
    (number,) = report.corrupt
    assert volume.grid.positions(np.array([number])).tolist() == [[1, 1, 1]]
    report = fetch(volume, oracle.points(), cache)
    assert (report.fetched, report.corrupt) == (1, {})


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


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_stream_gives_every_result_of_a_bounded_number_under_way(threads: int) -> None:
    """Results come once each, and items are taken no further ahead than twice the threads."""
    taken, given = [], []

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            assert len(taken) - len(given) <= 2 * threads + 1
            yield item

    for result in stream(lambda item: item * 10, items(), threads=threads):
        given.append(result)
    assert sorted(given) == [item * 10 for item in range(40)]


def test_stream_ends_at_the_first_error() -> None:
    """The first exception is raised as it is; nothing further is begun, and no thread is left."""
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError):
        list(stream(work, range(1000), threads=2))
    assert len(begun) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_a_consumer_that_stops_leaves_no_thread() -> None:
    """Closing the stream early ends its threads."""
    results = stream(lambda item: item, range(1000), threads=4)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
