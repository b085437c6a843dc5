"""How often a sharded volume's store is asked, and what damaged shards do."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe import CorruptDataError, TransportError, sample_points
from voxelprobe.cache.disk import DiskCache
from voxelprobe.fetching import fetch_chunks
from voxelprobe.opening import open_volume
from voxelprobe.planning import order_by_chunk
from voxelprobe.testing.http_store import Fault, HttpStore
from voxelprobe.transport.http import HttpSource
from voxelprobe.transport.protocol import StoredObject
from voxelprobe.transport.sources import RetryingSource

SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip",
            "data_encoding": "gzip"}
pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def oracle(known: Callable[..., Any]) -> Any:
    return known()


@pytest.fixture
def sharded(tmp_path: Path, oracle: Any) -> Iterator[HttpStore]:
    oracle.write(tmp_path / "sharded", sharding=SHARDING)
    with HttpStore(tmp_path / "sharded") as served:
        yield served


def shard_requests(store: HttpStore) -> dict[str, list[str]]:
    """Return the ranges asked of each shard."""
    ranges: dict[str, list[str]] = {}
    for request in store.requests:
        if request.path.endswith(".shard"):
            ranges.setdefault(request.path, []).append(str(request.range))
    return ranges


def test_a_shard_costs_three_requests(sharded: HttpStore, oracle: Any) -> None:
    """Sharded: the index, the minishard indices together, and the neighbouring chunks together, each once a shard."""
    oracle.check(sharded.url)
    asked = shard_requests(sharded)
    assert len(asked) == len(list((sharded.folder / "4_4_40").iterdir())) == 8
    for ranges in asked.values():
        assert ranges.count("bytes=0-63") == 1
        assert len(ranges) == len(set(ranges)) == 3


def test_a_shard_that_is_not_there_costs_one(sharded: HttpStore, oracle: Any) -> None:
    """An absent shard is asked for once; all of its chunks are missing, and no other's."""
    whole = sample_points(sharded.url, oracle.points())
    (sharded.folder / "4_4_40/1.shard").unlink()
    sharded.clear()
    labels, status = sample_points(sharded.url, oracle.points(), return_status=True)
    assert len(shard_requests(sharded)["4_4_40/1.shard"]) == 1
    assert 0 < (status == "missing_chunk").sum() < len(status)
    np.testing.assert_array_equal(labels[status == "ok"].data, whole[status == "ok"].data)


@pytest.mark.parametrize(("gap_bytes", "requests"), [(100, 1), (40_000, 27)])
def test_far_chunks_are_asked_for_apart(tmp_path: Path, oracle: Any, gap_bytes: int, requests: int) -> None:
    """Chunks of one shard share a request over a small gap, and have one each over a large one."""
    oracle.write(tmp_path, sharding=SHARDING | {"shard_bits": 0, "minishard_bits": 0}, gap_bytes=gap_bytes)
    with HttpStore(tmp_path) as store:
        oracle.check(store.url)
        (ranges,) = shard_requests(store).values()
        assert len(ranges) - 2 == len(set(ranges)) - 2 == requests


def test_few_chunks_of_a_shard_cost_few_bytes(tmp_path: Path, oracle: Any) -> None:
    """Of a shard with a wanted chunk here and there, little more is transferred than those chunks."""
    oracle.write(tmp_path, sharding=SHARDING | {"shard_bits": 0, "minishard_bits": 0, "data_encoding": "raw"})
    corners = np.array(list(np.ndindex(3, 3, 1))) * (16, 16, 8) + oracle.offset
    with HttpStore(tmp_path) as store:
        np.testing.assert_array_equal(sample_points(store.url, corners).data, oracle.at(corners))
        (ranges,) = shard_requests(store).values()
        lengths = [int(last) - int(first) + 1 for first, last in (text[6:].split("-") for text in ranges)]
        needed = 45 * 40 * 8 * 8  # edge chunks are smaller
        assert needed <= sum(lengths[2:]) <= 1.25 * needed


def test_spans_stay_within_their_limit(sharded: HttpStore, oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is longer than the limit, or than the one piece that it is for."""
    oracle.check(sharded.url)
    assert len(shard_requests(sharded)["4_4_40/0.shard"]) == 3
    sharded.clear()
    monkeypatch.setattr("voxelprobe.fetching_shards.MAX_SPAN_BYTES", 300)
    oracle.check(sharded.url)
    ranges = shard_requests(sharded)["4_4_40/0.shard"]
    lengths = [int(last) - int(first) + 1 for first, last in (text[6:].split("-") for text in ranges)]
    # Its index, four minishard indices of two chunks each, and eight chunks.
    assert len(lengths) > 8
    assert sum(length > 300 for length in lengths) <= 8


@pytest.mark.parametrize("content", [b"", b"short", bytes(64) + b"x", b"\xff" * 64, b"\x01" * 500])
def test_a_broken_shard_costs_its_own_chunks(sharded: HttpStore, oracle: Any, content: bytes) -> None:
    """A shard whose index is damaged gives no labels, right ones elsewhere, and no crash."""
    (sharded.folder / "4_4_40/1.shard").write_bytes(content)
    labels, status = sample_points(sharded.url, oracle.points(), return_status=True)
    assert set(status) <= {"ok", "corrupt_chunk", "missing_chunk"}
    good = status == "ok"
    assert 0 < good.sum() < len(good)
    np.testing.assert_array_equal(labels[good].data, oracle.at(oracle.points())[good])


@pytest.mark.parametrize("data_encoding", ["raw", "gzip"])
def test_what_shards_have_no_sound_bytes_for_is_not_cached(tmp_path: Path, oracle: Any, data_encoding: str) -> None:
    """Chunks of a broken shard are reported by their numbers, and fetched anew when it is mended; others are kept.

    What is kept is a chunk's range of the shard, with the encoding of its data.
    """
    oracle.write(tmp_path / "sharded", sharding=SHARDING | {"data_encoding": data_encoding})
    volume = open_volume(str(tmp_path / "sharded"))
    cache = DiskCache(tmp_path / "cache", budget_bytes=1 << 30).of_scale("v", "f")
    chunks = np.arange(27)
    jobs = order_by_chunk(chunks, chunks, np.zeros(27, np.int64), volume.regions)

    def fetch() -> Any:
        return fetch_chunks(volume, jobs, cache, threads=4, missing_is_error=True, progress=lambda count, size: None)

    path = tmp_path / "sharded/4_4_40/1.shard"
    good = path.read_bytes()
    path.write_bytes(b"short")
    report = fetch()
    assert (report.chunks, report.fetched, report.cached) == (27, 27, 0)
    lost = set(report.corrupt)
    assert 0 < len(lost) < 27
    path.write_bytes(good)
    report = fetch()
    assert (report.fetched, report.cached, report.corrupt) == (len(lost), 27 - len(lost), {})
    shards = b"".join(shard.read_bytes() for shard in path.parent.iterdir())
    for region, chunk in zip(volume.regions.numbers(chunks).tolist(), chunks.tolist(), strict=True):
        stored = cache.read(region, [chunk])[chunk]
        assert stored.encoding == (None if data_encoding == "raw" else data_encoding)
        assert stored.content in shards
        assert stored.content[:2] == b"\x1f\x8b" or data_encoding == "raw"


def test_a_shard_compressed_as_a_whole_is_said(tmp_path: Path, oracle: Any) -> None:
    """A shard stored as `.shard.gz`, as CloudVolume does by default, has no ranges to read: that is the message."""
    oracle.write(tmp_path, sharding=SHARDING)
    for path in (tmp_path / "4_4_40").iterdir():
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with pytest.raises(CorruptDataError, match="expected bytes as they are, found them sent as gzip"):
        sample_points(str(tmp_path), oracle.points())


@pytest.mark.parametrize("data_encoding", ["raw", "gzip"])
@pytest.mark.parametrize("damage", ["index", "chunk"])
def test_a_promise_of_2_to_the_62_bytes_is_not_believed(
    tmp_path: Path, oracle: Any, damage: str, data_encoding: str
) -> None:
    """Of an index that says a minishard's index or a chunk is huge, the chunks are corrupt; nothing is allocated."""
    oracle.write(tmp_path, sharding=SHARDING | {"data_encoding": data_encoding, "minishard_index_encoding": "raw"})
    path = tmp_path / "4_4_40/0.shard"
    content = bytearray(path.read_bytes())
    begin, end = np.frombuffer(content, "<u8", 2).tolist()
    at = 8 if damage == "index" else 64 + begin + (end - begin) // 3 * 2  # sizes are the index's last third
    content[at : at + 8] = (2**62).to_bytes(8, "little")
    path.write_bytes(content)
    labels, status = sample_points(str(tmp_path), oracle.points(), return_status=True)
    good = status == "ok"
    assert set(status) == {"ok", "corrupt_chunk"}
    np.testing.assert_array_equal(labels[good].data, oracle.at(oracle.points())[good])


@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize("fault", [Fault("status", 503), Fault("reset"), Fault("short_body")])
def test_passing_faults_of_shards_are_mended(sharded: HttpStore, oracle: Any, fault: Fault, skip: int) -> None:
    """Every passing fault of a shard's index, its minishard indices or its chunks is mended by asking once more."""
    sharded.fail("*/0.shard", fault, skip=skip)
    oracle.check(sharded.url)


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_short_ranges_are_asked_for_again(sharded: HttpStore, oracle: Any, skip: int) -> None:
    """A range that comes with fewer bytes than its Content-Range says is not believed."""
    sharded.fail("*/0.shard", Fault("truncated"), skip=skip)
    oracle.check(sharded.url)


def test_a_flipped_byte_in_a_shard_is_fetched_again(sharded: HttpStore, oracle: Any) -> None:
    """Gzipped data whose check fails is read once more before it is called corrupt."""
    sharded.fail("*/0.shard", Fault("flipped"), skip=2)
    oracle.check(sharded.url)


@pytest.mark.parametrize("wrong", ["bytes 11-20/256", "bytes 10-18/256", "bytes 10-19", "", None])
def test_a_range_from_another_place_is_not_believed(serve: Callable[..., Any], wrong: str | None) -> None:
    """A 206 whose Content-Range is missing or isn't what was asked is asked for again, and never used."""
    body = bytes(range(256))

    def script(path: str, number: int) -> tuple[int, dict[str, str], bytes]:
        described = wrong if number == 0 or path == "/bad" else "bytes 10-19/256"
        return 206, {} if described is None else {"Content-Range": described}, body[10:20]

    server = serve(script)
    source = RetryingSource(HttpSource(server.url), sleep=lambda seconds: None)
    assert source.fetch("x", 10, 20) == StoredObject(body[10:20], None, 256)
    assert server.headers[0]["Range"] == "bytes=10-19"
    assert len(server.paths) == 2
    with pytest.raises(TransportError, match=r"bad: asked for bytes from 10, got 10 bytes described as"):
        source.fetch("bad", 10, 20)
    source.close()
