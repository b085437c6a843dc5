"""Objects in Google Cloud Storage: an emulator of it, and scripts for what that doesn't say, all on loopback."""

from __future__ import annotations

import base64
import gzip
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import google_crc32c
import numpy as np
import pytest

from voxelprobe import InputError, TransportError, sample_points
from voxelprobe.transport.addresses import parse_address
from voxelprobe.transport.gcs import GcsSource
from voxelprobe.transport.protocol import Request, StoredObject
from voxelprobe.transport.sources import open_source
from voxelprobe.volume.url import parse_location

BODY = bytes(range(256)) * 10
SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip",
            "data_encoding": "gzip"}
NAMES = ["a b", "a+b", "é/日本", "a%b", "a=b&c", "a//b", "a/../b", "~x", "x!*'()", "a?b#c", "%2F", "0-64_0-64_0-64"]
pytestmark = pytest.mark.usefixtures("quick_retries", "fresh_gcs")


def open_gcs(url: str) -> GcsSource:
    return GcsSource(url, parse_address(url))


@pytest.mark.parametrize("compress", [None, "gzip", "br", "zstd"])
def test_volume_on_gcs(tmp_path: Path, oracle: Any, gcs: Any, compress: Any) -> None:
    """Labels come out of chunks in a bucket under each Content-Encoding; points in a chunk it lacks are missing."""
    oracle.write(tmp_path / "seg", encoding="compressed_segmentation", compress=compress, skip_chunks=[(1, 1, 1)])
    cloudpath = gcs.upload(tmp_path / "seg", "a/seg")
    points = oracle.points()
    missing = ((points - oracle.offset) // oracle.chunk_size == 1).all(axis=1)
    labels, status = sample_points(f"precomputed://{cloudpath}", points, return_status=True)
    np.testing.assert_array_equal(status == "missing_chunk", missing)
    np.testing.assert_array_equal(labels[~missing].data, oracle.at(points)[~missing])


def test_shards_on_gcs(tmp_path: Path, oracle: Any, gcs: Any) -> None:
    """Shards in a bucket are read by range; where one is absent its chunks are missing."""
    oracle.write(tmp_path / "seg", sharding=SHARDING)
    cloudpath = gcs.upload(tmp_path / "seg", "seg")
    oracle.check(cloudpath)
    gcs.bucket.blob("seg/4_4_40/1.shard").delete()
    _, status = sample_points(cloudpath, oracle.points(), return_status=True)
    assert set(status) == {"ok", "missing_chunk"}


@pytest.mark.parametrize(("start", "end"), [
    (0, 9), (2550, 2600), (2560, 2570), (5, None), (None, 3), (7, 7), (None, None), (-20, None), (-9999, None),
])
def test_ranges_on_gcs(gcs: Any, start: int | None, end: int | None) -> None:
    """A range gives bytes [start, end), fewer where the object ends and none past it; and the whole object's size."""
    gcs.put("d/x", BODY)
    with closing(open_source(parse_location(f"{gcs.url}/d"), threads=1)) as source:
        expected = BODY[start or 0 : end]
        # Where the range begins past the end, the emulator doesn't say how long the object is.
        size = None if (start, end) == (None, None) or not expected else len(BODY)
        assert source.fetch("x", start, end) == StoredObject(expected, None, size)
        assert source.fetch("y", start, end) in (None, StoredObject(b"", None))
        assert source.fetch("y") is None


@pytest.mark.parametrize("name", NAMES)
def test_names(gcs: Any, name: str) -> None:
    """An object is found whatever it is called."""
    gcs.put(f"d/{name}", BODY, "br")
    with closing(open_gcs(f"{gcs.url}/d")) as source:
        assert source.fetch(name) == StoredObject(BODY, "br")
        assert unquote(source.ask(Request(name)).url.split("/o/")[1]) == f"d/{name}?alt=media"


def test_gzip_is_not_undone_on_the_way(gcs: Any) -> None:
    """An object that is stored as gzip comes as it is stored, whole and by range."""
    packed = gzip.compress(BODY, mtime=0)
    gcs.put("x", packed, "gzip")
    with closing(open_gcs(gcs.url)) as source:
        assert source.fetch("x") == StoredObject(packed, "gzip")
        assert source.fetch("x", -9) == StoredObject(packed[-9:], "gzip", len(packed))


def test_what_was_undone_on_the_way_is_refused(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that the store unpacked is an error: a range of that is a range of something else."""
    server = serve(lambda path, number: (200, {"x-goog-stored-content-encoding": "gzip"}, BODY))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    expected = "found it with its encoding undone"
    with closing(open_gcs("gs://b")) as source, pytest.raises(TransportError, match=expected):
        source.fetch("x", 0, 9)


def test_the_stores_checksum_is_held(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that contradicts x-goog-hash is asked for again; one that always does is an error."""
    crc = base64.b64encode(google_crc32c.value(BODY).to_bytes(4, "big")).decode()
    damaged = BODY[:99] + b"\xff" + BODY[100:]
    server = serve(lambda path, number: (200, {"x-goog-hash": f"crc32c={crc}"}, damaged if number != 1 else BODY))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    with closing(open_source(parse_location("gs://b"), threads=1)) as source:
        assert source.fetch("x") == StoredObject(BODY, None)
        with pytest.raises(TransportError, match=r"gs://b/x: the store says crc32c .* the body received has"):
            source.fetch("x")


def test_no_bucket_is_said(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 404 for the bucket, in the words of Google's store, is an error that names it; for an object it is none."""
    said = [b"The specified bucket does not exist.", b"No such object: b/x"]
    server = serve(lambda path, number: (404, {}, said[number]))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    with closing(open_gcs("gs://b")) as source:
        with pytest.raises(TransportError, match="gs://b/x: there is no bucket b"):
            source.fetch("x")
        assert source.fetch("x") is None


def test_an_emulators_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """STORAGE_EMULATOR_HOST without a scheme, which google's client can't use either, is said; none is Google's own."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    with closing(open_gcs("gs://b/d")) as source:
        assert source.ask(Request("x")).url == "https://storage.googleapis.com/download/storage/v1/b/b/o/d%2Fx?alt=media"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:9")
    with pytest.raises(InputError, match="STORAGE_EMULATOR_HOST: expected http://SERVER:PORT"):
        open_gcs("gs://b")
