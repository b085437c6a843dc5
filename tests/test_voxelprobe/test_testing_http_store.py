from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from voxelprobe.testing.http_store import Fault, HttpStore, Request
from voxelprobe.testing.volumes import write_volume

BODY = bytes(range(256)) * 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HttpStore]:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/plain").write_bytes(BODY)
    (tmp_path / "a/packed.gz").write_bytes(gzip.compress(BODY, mtime=0))
    (tmp_path / "info").write_bytes(b"{}")
    with HttpStore(tmp_path) as served:
        yield served


class Client:
    """A keep-alive connection; answers are (status, headers, body)."""

    def __init__(self, store: HttpStore, timeout: float = 10) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(store.url).netloc, timeout=timeout)

    def __call__(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
        """Return the answer, or close the connection and raise."""
        try:
            self.connection.request(method, f"/{path}", headers=headers)
            answer = self.connection.getresponse()
            return answer.status, answer.headers, answer.read()
        except BaseException:
            self.connection.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


@pytest.fixture
def get(store: HttpStore) -> Iterator[Client]:
    with Client(store) as client:
        yield client


def test_an_object_comes_whole(get: Client, store: HttpStore) -> None:
    """GET gives the bytes and their MD5, HEAD the same headers and no body, and both are counted."""
    status, headers, body = get("a/plain")
    assert (status, body, headers["Content-Encoding"]) == (200, BODY, None)
    assert headers["ETag"] == f'"{hashlib.md5(BODY).hexdigest()}"'
    status, headers, body = get("a/plain", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(BODY)), b"")
    assert store.requests == [Request("GET", "a/plain", None), ("HEAD", "a/plain", None)]
    assert store.bytes_sent == len(BODY)


def test_a_length_that_is_wrong(get: Client, store: HttpStore) -> None:
    """The whole body comes with the length of half of it; a client that believes that has half."""
    store.fail("a/plain", Fault("wrong_length"))
    status, headers, body = get("a/plain")
    assert (status, headers["Content-Length"], body) == (200, str(len(BODY) // 2), BODY[: len(BODY) // 2])


def test_checksums_are_told(tmp_path: Path) -> None:
    """With `checksums` the MD5 of the stored bytes is said to be that, also of a body that a fault damaged."""
    (tmp_path / "plain").write_bytes(BODY)
    with HttpStore(tmp_path, checksums=True) as store, Client(store) as get:
        store.fail("plain", Fault("flipped"))
        for damaged in (True, False):
            _, headers, body = get("plain")
            assert base64.b64decode(headers["Content-MD5"]) == hashlib.md5(BODY).digest()
            assert (hashlib.md5(body).digest() != hashlib.md5(BODY).digest()) == damaged


def test_connections_are_kept_alive(get: Client, store: HttpStore) -> None:
    """Many requests, also failed ones, use one connection."""
    get("a/plain")
    socket = get.connection.sock
    assert [get(path)[0] for path in ("a/packed", "none", "info")] == [200, 404, 200]
    assert get.connection.sock is socket


def test_a_compressed_object_is_asked_for_by_its_name(get: Client) -> None:
    """NAME.gz is served as NAME with Content-Encoding, and by its own name as it is."""
    status, headers, body = get("a/packed")
    assert (status, headers["Content-Encoding"], gzip.decompress(body)) == (200, "gzip", BODY)
    assert get("a/packed.gz")[1]["Content-Encoding"] is None


@pytest.mark.parametrize(("header", "begin", "end"), [
    ("bytes=0-9", 0, 10), ("bytes=100-", 100, len(BODY)), ("bytes=-7", len(BODY) - 7, len(BODY)),
    ("bytes=5-999999", 5, len(BODY)), ("bytes=-999999", 0, len(BODY)), ("bytes=3-3", 3, 4),
])
def test_a_range_comes_alone(get: Client, store: HttpStore, header: str, begin: int, end: int) -> None:
    """A byte range gives 206, those bytes, and says where they are."""
    status, headers, body = get("a/plain", Range=header)
    assert (status, body) == (206, BODY[begin:end])
    assert headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(BODY)}"
    assert (store.requests[-1].range, store.bytes_sent) == (header, end - begin)


@pytest.mark.parametrize(("header", "status"), [
    (f"bytes={len(BODY)}-", 416), ("bytes=-0", 416), ("bytes=9-3", 200), ("bytes=0-1,5-6", 200), ("lines=1-2", 200),
])
def test_other_ranges(get: Client, header: str, status: int) -> None:
    """A range past the end gives 416 with the length; what isn't a single range gives the whole object."""
    found, headers, body = get("a/plain", Range=header)
    assert found == status
    assert headers["Content-Range"] == (f"bytes */{len(BODY)}" if status == 416 else None)
    assert body == (b"" if status == 416 else BODY)


def test_ranges_can_be_ignored(tmp_path: Path) -> None:
    """With ranges=False a range gives 200 and the whole object."""
    (tmp_path / "x").write_bytes(BODY)
    with HttpStore(tmp_path, ranges=False) as store, Client(store) as get:
        assert get("x", Range="bytes=0-9")[::2] == (200, BODY)


def test_nothing_outside_the_folder_is_served(tmp_path: Path) -> None:
    """A path that leads out of the folder is no object."""
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "inner").mkdir()
    with HttpStore(tmp_path / "inner") as store, Client(store) as get:
        assert [get(path)[0] for path in ("../secret", "%2e%2e/secret", "")] == [404, 404, 404]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_planned_status_heals(get: Client, store: HttpStore, status: int) -> None:
    """The status comes `times` times after `skip` good answers, with Retry-After, on that path alone."""
    store.fail("a/*", Fault("status", status=status, retry_after=3), times=2, skip=1)
    answers = [get("a/plain") for _ in range(4)]
    assert [answer[0] for answer in answers] == [200, status, status, 200]
    assert [answer[1]["Retry-After"] for answer in answers] == [None, "3", "3", None]
    store.fail("a/plain", Fault("status"), times=None)
    assert [get(path)[0] for path in ("a/plain", "info", "a/plain")] == [503, 200, 503]
    store.heal()
    assert get("a/plain")[0] == 200


def test_a_reset_is_a_reset(get: Client, store: HttpStore) -> None:
    """The client sees the connection reset, and the next request is answered."""
    store.fail("info", Fault("reset"))
    with pytest.raises(ConnectionResetError) as caught:
        get("info")
    assert not isinstance(caught.value, http.client.RemoteDisconnected)
    assert get("info")[0] == 200


def test_a_short_body_is_announced_longer(get: Client, store: HttpStore) -> None:
    """Half of the body comes under the whole body's Content-Length."""
    store.fail("a/plain", Fault("short_body"))
    with pytest.raises(http.client.IncompleteRead) as caught:
        get("a/plain")
    assert caught.value.partial == BODY[: len(BODY) // 2]
    assert get("a/plain")[2] == BODY


def test_silent_damage_has_the_announced_length(get: Client, store: HttpStore) -> None:
    """Truncated and flipped bodies look complete; only the ETag tells."""
    store.fail("a/plain", Fault("truncated"))
    store.fail("a/plain", Fault("flipped"))
    (_, _, cut), (_, headers, flipped) = get("a/plain"), get("a/plain")
    assert cut == BODY[: len(BODY) // 2]
    assert [i for i in range(len(BODY)) if BODY[i] != flipped[i]] == [len(BODY) // 2]
    assert (len(flipped), headers["ETag"]) == (len(BODY), f'"{hashlib.md5(BODY).hexdigest()}"')


@pytest.mark.parametrize("kind", ["stall", "stall_body"])
def test_a_stall_is_a_time_out_and_ends(store: HttpStore, kind: Any) -> None:
    """An impatient client times out; a patient one gets the whole object."""
    store.fail("a/plain", Fault(kind, seconds=60))
    store.fail("a/plain", Fault(kind, seconds=0.05))
    with Client(store, timeout=0.2) as impatient, pytest.raises(TimeoutError):
        impatient("a/plain")
    with Client(store) as patient:
        assert patient("a/plain")[2] == BODY


def test_closing_ends_stalls_and_threads(tmp_path: Path) -> None:
    """The end of the block waits for no stall and leaves no thread."""
    (tmp_path / "x").write_bytes(BODY)
    before = threading.active_count()
    seen: list[BaseException] = []

    def ask(store: HttpStore) -> None:
        with Client(store) as get:
            try:
                get("x")
            except OSError as error:
                seen.append(error)

    with HttpStore(tmp_path) as store, Client(store) as idle:
        idle("x")
        store.fail("x", Fault("stall", seconds=600), times=None)
        asking = threading.Thread(target=ask, args=(store,))
        asking.start()
        while len(store.requests) < 2:
            time.sleep(0.001)
        began = time.monotonic()
    asking.join(5)
    assert time.monotonic() - began < 5
    assert len(seen) == 1
    assert threading.active_count() == before


def test_a_callable_decides_first(tmp_path: Path) -> None:
    """`fault_for` sees each request and may damage it."""
    (tmp_path / "x").write_bytes(BODY)

    def refuse_ranges(request: Request) -> Fault | None:
        return Fault("status", status=500) if request.range else None

    with HttpStore(tmp_path, fault_for=refuse_ranges) as store, Client(store) as get:
        assert [get("x")[0], get("x", Range="bytes=0-1")[0]] == [200, 500]


def test_basic_auth_is_demanded(tmp_path: Path) -> None:
    """Without the right user and password every answer is 401."""
    (tmp_path / "x").write_bytes(BODY)
    with HttpStore(tmp_path, require_basic_auth=("me", "pass")) as store, Client(store) as get:
        assert [get("x")[0], get("x", Authorization="Basic bWU6bm8=")[0], get("none")[0]] == [401, 401, 401]
        assert get("x", Authorization="Basic bWU6cGFzcw==")[0] == 200


def test_many_threads_are_counted_exactly(tmp_path: Path) -> None:
    """Requests, bytes and the most at one time add up under load, and latency overlaps."""
    (tmp_path / "x").write_bytes(BODY)

    def ask(store: HttpStore) -> None:
        with Client(store) as get:
            for _ in range(5):
                get("x")

    with HttpStore(tmp_path, latency_seconds=0.02) as store:
        threads = [threading.Thread(target=ask, args=(store,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(store.requests), store.bytes_sent) == (80, 80 * len(BODY))
        assert 2 <= store.peak_in_flight <= 16
        store.clear()
        assert (store.requests, store.bytes_sent, store.peak_in_flight) == ([], 0, 0)


@pytest.mark.parametrize("suffixes", [True, False])
@pytest.mark.parametrize("compress", [None, "gzip", "br", "zstd"])
def test_cloudvolume_and_tensorstore_read_a_served_volume(tmp_path: Path, compress: Any, suffixes: bool) -> None:
    """A volume is read over HTTP as it was written, whichever way it says that it is compressed."""
    import tensorstore
    from cloudvolume import CloudVolume

    array = np.arange(20 * 20 * 20, dtype="uint64").reshape(20, 20, 20) // 50
    write_volume(tmp_path, array, encoding="compressed_segmentation", chunk_size=(16, 16, 16), voxel_offset=(3, 4, 5),
                 compress=compress, suffixes=suffixes, skip_chunks=[(1, 1, 1)])
    array[16:, 16:, 16:] = 0
    with HttpStore(tmp_path, content_encoding=None if suffixes else compress) as store:
        volume = CloudVolume(f"precomputed://{store.url}", fill_missing=True, progress=False)
        np.testing.assert_array_equal(np.asarray(volume[:])[..., 0], array)
        if compress in (None, "gzip"):  # The ones that TensorStore's HTTP client undoes.
            spec = {"driver": "neuroglancer_precomputed", "kvstore": f"{store.url}/"}
            np.testing.assert_array_equal(tensorstore.open(spec, open=True).result()[..., 0].read().result(), array)
