"""Volumes over HTTP: what a server may do wrong, and what becomes of it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from voxelprobe import AuthorizationError, InputError, TransportError, UnsupportedError, sample_points
from voxelprobe.testing.http_store import Fault, HttpStore
from voxelprobe.testing.volumes import chunk_name
from voxelprobe.transport.curl import MAX_REDIRECTS
from voxelprobe.transport.http import HttpSource
from voxelprobe.transport.protocol import RetryableError, StoredObject
from voxelprobe.transport.sources import RetryingSource

SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip",
            "data_encoding": "gzip"}
BODY = np.random.default_rng(0).bytes(3000)
pytestmark = pytest.mark.usefixtures("quick_retries")


CHUNK_NAME = "4_4_40/29-45_23-39_109-117"


def test_chunk_name_is_one(store: HttpStore) -> None:
    """The chunk that these tests damage is there."""
    info = json.loads((store.folder / "info").read_text())
    assert chunk_name(info["scales"][0], (1, 1, 1)) == CHUNK_NAME
    assert (store.folder / f"{CHUNK_NAME}.gz").is_file()


@pytest.mark.parametrize("compress", [None, "gzip", "br", "zstd"])
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation", "crackle", "compresso"])
def test_content_encodings(tmp_path: Path, oracle: Any, encoding: str, compress: Any) -> None:
    """Labels come out of chunks sent with each Content-Encoding; CloudVolume reads the same over HTTP."""
    from cloudvolume import CloudVolume

    oracle.write(tmp_path, encoding=encoding, compress=compress, suffixes=False)
    with HttpStore(tmp_path, content_encoding=compress) as store:
        oracle.check(store.url)
        if compress == "gzip":
            whole = CloudVolume(f"precomputed://{store.url}", progress=False)[:]
            np.testing.assert_array_equal(np.asarray(whole)[..., 0], oracle.array)


@pytest.mark.parametrize("ranges", [True, False])
def test_shards(tmp_path: Path, oracle: Any, ranges: bool) -> None:
    """Shards are read by range; from a server that ignores Range the answers are the same."""
    oracle.write(tmp_path, sharding=SHARDING)
    with HttpStore(tmp_path, ranges=ranges) as store:
        oracle.check(store.url)
        assert all(request.range for request in store.requests if request.path.endswith(".shard"))


@pytest.mark.parametrize("fault", [
    Fault("status", 429, retry_after=0), Fault("status", 429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    Fault("status", 408), Fault("status", 500), Fault("status", 502), Fault("status", 503, retry_after=0.01),
    Fault("reset"), Fault("short_body"), Fault("truncated"), Fault("flipped"),
], ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.retry_after}")
@pytest.mark.parametrize("path", ["info", CHUNK_NAME])
def test_passing_faults_are_mended(store: HttpStore, oracle: Any, path: str, fault: Fault) -> None:
    """Every passing fault of the info or a chunk is mended by asking once more, and the labels are right."""
    if path == "info" and fault.kind in ("truncated", "flipped"):
        pytest.skip("nothing in a plain info says so")
    store.fail(path, fault, times=1)
    oracle.check(store.url)
    assert [request.path for request in store.requests].count(path) == 2


def test_a_permanent_fault_ends_the_call(store: HttpStore, oracle: Any) -> None:
    """A lasting 500 is a TransportError that names the URL, the answer and the number of tries."""
    store.fail(CHUNK_NAME, Fault("status", 500), times=None)
    url = re.escape(f"{store.url}/{CHUNK_NAME}")
    with pytest.raises(TransportError, match=rf"{url}: the server answered 500 \(tried 6 times\)"):
        sample_points(store.url, oracle.points())
    assert [request.path for request in store.requests].count(CHUNK_NAME) == 6


def test_no_server_is_said() -> None:
    """A port where nobody listens is a TransportError with the URL."""
    with pytest.raises(TransportError, match=r"http://127\.0\.0\.1:9/x/info: .*tried 6 times"):
        sample_points("http://127.0.0.1:9/x", [1, 2, 3])


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("path", ["info", CHUNK_NAME])
def test_refusals_are_final(store: HttpStore, oracle: Any, path: str, status: int) -> None:
    """401 and 403 are an AuthorizationError after one request, which says where credentials are looked for."""
    store.fail(path, Fault("status", status), times=None)
    with pytest.raises(AuthorizationError, match=rf"{path}: the server answered {status}.*http-secret\.json"):
        sample_points(store.url, oracle.points())
    assert [request.path for request in store.requests].count(path) == 1


@pytest.mark.parametrize("status", [400, 405, 410, 418])
def test_other_refusals_are_final(store: HttpStore, oracle: Any, status: int) -> None:
    """Another answer that no repetition mends ends the call, and is never taken for an absent chunk."""
    store.fail(CHUNK_NAME, Fault("status", status), times=None)
    with pytest.raises(TransportError, match=f"expected an answer of 200, found {status}"):
        sample_points(store.url, oracle.points())
    assert [request.path for request in store.requests].count(CHUNK_NAME) == 1


def test_404(store: HttpStore, oracle: Any) -> None:
    """A chunk that the server doesn't know is missing_chunk; a volume that it doesn't know is an InputError."""
    (store.folder / f"{CHUNK_NAME}.gz").unlink()
    labels, status = sample_points(store.url, [[29, 23, 109], [28, 23, 109]], return_status=True)
    assert status.tolist() == ["missing_chunk", "ok"]
    assert labels.tolist() == [None, oracle.array[15, 16, 8]]
    with pytest.raises(InputError, match=f"no volume at {store.url}/none"):
        sample_points(f"{store.url}/none", [1, 2, 3])


@pytest.mark.parametrize("kind", ["stall", "stall_body"])
def test_stalls_end_by_the_read_timeout(store: HttpStore, kind: Any) -> None:
    """A server that goes silent is given up after the read timeout, and asked again."""
    store.fail(CHUNK_NAME, Fault(kind, seconds=60))
    waits: list[float] = []
    source = RetryingSource(HttpSource(store.url, read_timeout_seconds=1), sleep=waits.append)
    assert source.fetch(CHUNK_NAME) == StoredObject((store.folder / f"{CHUNK_NAME}.gz").read_bytes(), "gzip")
    assert len(waits) == 1
    source.close()


def _digests(body: bytes) -> list[dict[str, str]]:
    crc = base64.b64encode(google_crc32c.value(body).to_bytes(4, "big")).decode()
    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    return [{"x-goog-hash": f"crc32c={crc},md5={md5}"}, {"x-goog-hash": f"crc32c={crc}"}, {"x-goog-hash": f"md5={md5}"},
            {"Content-MD5": md5}, {"x-goog-hash": f"crc32c={crc}", "Content-MD5": md5}]


@pytest.mark.parametrize("which", range(5))
def test_the_stores_checksum_is_held(serve: Callable[..., Any], which: int) -> None:
    """A body that contradicts x-goog-hash or Content-MD5 is asked for again; one that always does is an error."""
    headers = _digests(BODY)[which]
    damaged = BODY[:99] + b"\0" + BODY[100:]
    server = serve(lambda path, number: (200, headers, damaged if path == "/bad" or number == 0 else BODY))
    source = RetryingSource(HttpSource(server.url), sleep=lambda seconds: None)
    assert source.fetch("x") == StoredObject(BODY, None)
    assert len(server.paths) == 2
    with pytest.raises(TransportError, match=r"bad: the store says (crc32c|MD5) .* the body received has"):
        source.fetch("bad")
    source.close()


def test_checksums_are_of_the_stored_bytes(serve: Callable[..., Any]) -> None:
    """A gzipped object's checksum is that of its compressed bytes, which is how they are asked for."""
    packed = gzip.compress(BODY)
    server = serve(lambda path, number: (200, {"Content-Encoding": "gzip"} | _digests(packed)[0], packed))
    source = RetryingSource(HttpSource(server.url))
    assert source.fetch_stripped("x") == BODY
    assert "gzip" in server.headers[0]["Accept-Encoding"]
    source.close()


def test_redirects_are_followed(store: HttpStore, serve: Callable[..., Any], oracle: Any) -> None:
    """A server that sends on to another is followed, with the range of a shard kept."""
    server = serve(lambda path, number: (302, {"Location": store.url + path}, b""))
    oracle.check(server.url)
    source = HttpSource(server.url)
    info = (store.folder / "info").read_bytes()
    assert source.fetch("info", 3, 9) == StoredObject(info[3:9], None, len(info))
    source.close()


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(("start", "end"), [
    (0, 9), (2990, 3100), (3000, 3010), (5, None), (None, 3), (-20, None), (-3000, None), (-9999, None), (-1, None),
])
def test_ranges(tmp_path: Path, ranges: bool, start: Any, end: Any) -> None:
    """A range gives bytes [start, end), fewer where the object ends; -n the last n; with it the whole's size."""
    (tmp_path / "x").write_bytes(BODY)
    size = len(BODY) if ranges else None
    with HttpStore(tmp_path, ranges=ranges) as store, closing(HttpSource(store.url)) as source:
        assert source.fetch("x", start, end) == StoredObject(BODY[start:end], None, size)
        assert source.fetch("y", start, end) is None


@pytest.mark.parametrize("described", [
    "bytes 2980-2999/3000", "bytes 2979-2998/3000", "bytes 2980-2999/*", "bytes 0-19/3000", "bytes 2981-2999/3000",
    "bytes 2980-2999/" + "3" * 5000, "bytes 2980-2999/2999", "bytes */3000",
])
def test_the_last_bytes_are_the_last(serve: Callable[..., Any], described: str) -> None:
    """The last n bytes are believed only where the answer's Content-Range says that they are those."""
    server = serve(lambda path, number: (206, {"Content-Range": described}, BODY[-20:]))
    with closing(HttpSource(server.url)) as source:
        if described == "bytes 2980-2999/3000":
            assert source.fetch("x", -20) == StoredObject(BODY[-20:], None, 3000)
        else:
            with pytest.raises(RetryableError, match="asked for bytes from -20, got 20 bytes described as"):
                source.fetch("x", -20)
    assert server.headers[0]["Range"] == "bytes=-20"


def test_redirects_have_an_end(serve: Callable[..., Any]) -> None:
    """More than five redirects are a TransportError at once, not a loop."""
    server = serve(lambda path, number: (302, {"Location": f"/{number}"}, b""))
    with pytest.raises(TransportError, match=f"info: more than {MAX_REDIRECTS} redirects"):
        sample_points(server.url, [1, 2, 3])
    assert len(server.paths) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_credentials_do_not_follow_to_another_host(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    """A redirect to another host, or another port of this one, doesn't take the password with it."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/http-secret.json").write_text(json.dumps({"user": "ann", "password": "b"}))
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path))
    other = serve(lambda path, number: (200, {}, BODY))
    elsewhere = other.url.replace("127.0.0.1", host)
    server = serve(lambda path, number: (302, {"Location": f"{elsewhere}/x"}, b""))
    source = HttpSource(server.url)
    assert source.fetch("x") == StoredObject(BODY, None)
    assert server.headers[0]["Authorization"] == "Basic YW5uOmI="
    assert other.headers[0]["Authorization"] is None
    source.close()


def test_an_unknown_content_encoding_is_said(serve: Callable[..., Any]) -> None:
    """A body in an encoding that nobody knows is an error with its name, never a label."""
    server = serve(lambda path, number: (200, {"Content-Encoding": "snappy"}, b"xx"))
    with pytest.raises(UnsupportedError, match="'snappy' is not one of"):
        sample_points(server.url, [1, 2, 3])


def test_passwords_come_from_http_secret(tmp_path: Path, oracle: Any) -> None:
    """User and password of http-secret.json below CLOUD_VOLUME_DIR open a volume that is closed without them."""
    oracle.write(tmp_path / "seg", compress="gzip")
    (tmp_path / "home/secrets").mkdir(parents=True)
    (tmp_path / "home/secrets/http-secret.json").write_text(json.dumps({"user": "ann", "password": "b:c €"}))
    code = "import sys, voxelprobe; print(voxelprobe.sample_points(sys.argv[1], [13, 7, 101]))"
    with HttpStore(tmp_path / "seg", require_basic_auth=("ann", "b:c €")) as store:
        with pytest.raises(AuthorizationError, match="answered 401"):
            sample_points(store.url, [13, 7, 101])
        store.clear()
        said = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=False,
                              env=os.environ | {"CLOUD_VOLUME_DIR": str(tmp_path / "home")})
        assert said.stdout.strip() == f"[{oracle.array[0, 0, 0]}]", said.stderr
        assert len(store.requests) == 2


@pytest.mark.parametrize(("content", "message"), [("{", "expected JSON"), ("[1]", "expected a JSON object"),
                                                  ('{"user": "ann"}', r"expected .*, found \['user'\]")])
def test_a_broken_secret_is_said(tmp_path: Path, content: str, message: str) -> None:
    """A secret's file that can't be understood is an AuthorizationError that names it, without its content."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/http-secret.json").write_text(content)
    code = "import voxelprobe\ntry: voxelprobe.sample_points('http://127.0.0.1:9/x', [1, 2, 3])\n" \
           "except voxelprobe.AuthorizationError as error: print(error)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env=os.environ | {"CLOUD_VOLUME_DIR": str(tmp_path)})
    assert re.match(f"{tmp_path}/secrets/http-secret.json: {message}", said.stdout), said
