"""Volumes, outputs and whole runs on S3 (moto's server on the loopback), and volumes in memory, through cloud-files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe import AuthorizationError, InputError, TransportError, sample_points
from voxelprobe.storage import Folder
from voxelprobe.transport.cloud import open_cloud_files, translate_error
from voxelprobe.transport.protocol import StoredObject
from voxelprobe.transport.sources import open_source
from voxelprobe.volume.url import parse_location

SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip",
            "data_encoding": "gzip"}
BODY = bytes(range(256)) * 10


@pytest.fixture
def oracle(known: Callable[..., Any]) -> Any:
    return known()


@pytest.mark.parametrize("compress", [None, "gzip", "br", "zstd"])
def test_volume_on_s3(tmp_path: Path, oracle: Any, s3: Any, compress: Any) -> None:
    """Labels come out of chunks on S3 under each Content-Encoding; points in a chunk it lacks are missing."""
    oracle.write(tmp_path, encoding="compressed_segmentation", compress=compress, skip_chunks=[(1, 1, 1)])
    cloudpath = s3.upload(tmp_path, "a/seg")
    points = oracle.points()
    missing = ((points - oracle.offset) // oracle.chunk_size == 1).all(axis=1)
    labels, status = sample_points(f"precomputed://{cloudpath}", points, return_status=True)
    np.testing.assert_array_equal(status == "missing_chunk", missing)
    np.testing.assert_array_equal(labels[~missing].data, oracle.at(points)[~missing])


def test_shards_on_s3(tmp_path: Path, oracle: Any, s3: Any) -> None:
    """Shards on S3 are read by range, also at a shard that is absent, and out of a cache folder."""
    oracle.write(tmp_path / "seg", sharding=SHARDING)
    cloudpath = s3.upload(tmp_path / "seg", "seg")
    for _ in range(2):
        oracle.check(cloudpath, cache=tmp_path / "cache")
    s3.client.delete_object(Bucket=s3.bucket, Key="seg/4_4_40/1.shard")
    _, status = sample_points(cloudpath, oracle.points(), return_status=True)
    assert set(status) == {"ok", "missing_chunk"}


@pytest.mark.parametrize("start_end", [
    (0, 9), (2550, 2600), (2560, 2570), (5, None), (None, 3), (7, 7), (None, None), (-20, None), (-9999, None),
])
def test_ranges_on_s3(s3: Any, start_end: Any) -> None:
    """A range gives bytes [start, end), fewer where the object ends and none past it, as on every other store."""
    s3.client.put_object(Bucket=s3.bucket, Key="d/x", Body=BODY)
    source = open_source(parse_location(f"{s3.url}/d"), threads=1)
    start, end = start_end
    expected = BODY[start or 0 : end]
    # Where the range begins past the end, moto doesn't say how long the object is.
    size = None if start_end == (None, None) or not expected else len(BODY)
    assert source.fetch("x", start, end) == StoredObject(expected, None, size)
    assert source.fetch("y", start, end) in (None, StoredObject(b"", None))
    assert source.fetch("y") is None


def test_s3_without_what_was_named(oracle: Any, s3: Any) -> None:
    """No object is an InputError that there is no volume; no bucket is an error that names the URL and the bucket."""
    with pytest.raises(InputError, match=f"no volume at {s3.url}/none: expected a file named info"):
        sample_points(f"{s3.url}/none", oracle.offset)
    nowhere = f"s3://http://{s3.address}/no-such-bucket/seg"
    with pytest.raises(TransportError, match=f"{nowhere}/info: .*NoSuchBucket"):
        sample_points(nowhere, oracle.offset)


@pytest.mark.usefixtures("s3", "quick_retries")
def test_no_server_behind_the_endpoint_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint where nobody listens is a TransportError with the URL and the number of tries."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own, in each of ours
    with pytest.raises(TransportError, match=r"s3://http://127\.0\.0\.1:9/dead/seg/info: .*\(tried 6 times\)"):
        sample_points("s3://http://127.0.0.1:9/dead/seg", [1, 2, 3])


def test_one_bucket_name_at_two_endpoints(tmp_path: Path, oracle: Any, s3: Any, serve: Any) -> None:
    """A bucket of the same name at another endpoint is read there; for writing it is an error, with both endpoints.

    cloud-files would write to the first one.
    """
    oracle.write(tmp_path / "seg")
    oracle.check(s3.upload(tmp_path / "seg", "seg"))
    other = serve(lambda path, number: (404, {}, b"<Error><Code>NoSuchKey</Code></Error>"))
    with pytest.raises(InputError, match=f"no volume at s3://{other.url}/{s3.bucket}/seg"):
        sample_points(f"s3://{other.url}/{s3.bucket}/seg", oracle.offset)
    assert other.paths
    oracle.check(f"{s3.url}/seg")
    open_cloud_files(f"{s3.url}/seg")
    with pytest.raises(InputError, match=f"opened a bucket {s3.bucket} at http://{s3.address}"):
        open_cloud_files(f"s3://{other.url}/{s3.bucket}/seg")


def run_python(code: str, *arguments: str, **environment: str | None) -> str:
    """Return what a fresh Python says: cloud-files keeps credentials and pools as long as a process lives."""
    env = {name: value for name, value in (os.environ | environment).items() if value is not None}
    command = [sys.executable, "-c", code, *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    return said.stdout.strip() + said.stderr


SAMPLE = ("import sys, voxelprobe\n"
          "try: print(voxelprobe.sample_points(sys.argv[1], [13, 7, 101]))\n"
          "except voxelprobe.VoxelProbeError as error: print(type(error).__name__, error)")


def test_keys_from_the_environment_need_no_session_token(tmp_path: Path, oracle: Any, s3: Any) -> None:
    """AWS_ACCESS_KEY_ID without AWS_SESSION_TOKEN, on which cloud-files ends in a KeyError, is enough."""
    oracle.write(tmp_path, compress="gzip")
    cloudpath = s3.upload(tmp_path, "seg")
    assert run_python(SAMPLE, cloudpath, AWS_SESSION_TOKEN=None) == f"[{oracle.array[0, 0, 0]}]"


def test_keys_from_a_secret_of_the_bucket(tmp_path: Path, oracle: Any, s3: Any) -> None:
    """BUCKET-aws-secret.json below CLOUD_VOLUME_DIR serves where the environment has no keys."""
    oracle.write(tmp_path / "seg", compress="gzip")
    cloudpath = s3.upload(tmp_path / "seg", "seg")
    secret = tmp_path / f"home/secrets/{s3.bucket}-aws-secret.json"
    secret.parent.mkdir(parents=True)
    none = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "CLOUD_VOLUME_DIR": str(tmp_path / "home")}
    secret.write_text(json.dumps({"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}))
    assert run_python(SAMPLE, cloudpath, **none) == f"[{oracle.array[0, 0, 0]}]"


@pytest.mark.parametrize(("status", "requests"), [(401, 1), (403, 1), (503, 1)])
def test_refusals_of_s3_are_final(
    s3: Any, serve: Callable[..., Any], quick_retries: None, status: int, requests: int
) -> None:
    """401 and 403 are an AuthorizationError after one request, which names the secrets; a 503 is none."""
    denied = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
    server = serve(lambda path, number: (status, {"Content-Type": "application/xml"}, denied))
    source = open_source(parse_location(f"s3://{server.url}/denied-{status}/seg"), threads=1, attempts=1)
    expected = AuthorizationError if status < 500 else TransportError
    with pytest.raises(expected, match=rf"seg/info: .*{status}.*aws-secret\.json" if status < 500 else "tried 1 times"):
        source.fetch("info")
    assert len(server.paths) == requests


@pytest.mark.parametrize("name", ["NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"])
def test_missing_credentials_are_said(name: str) -> None:
    """What botocore and google's client raise without credentials is an AuthorizationError."""
    error = translate_error(type(name, (Exception,), {})("missing"), "gs://b/x")
    assert isinstance(error, AuthorizationError)
    assert str(error).startswith("gs://b/x: ")


def test_volume_in_memory(tmp_path: Path, oracle: Any) -> None:
    """A mem:// volume that this process wrote is read like one in a bucket."""
    from cloudfiles import CloudFiles

    oracle.write(tmp_path, sharding=SHARDING)
    files = CloudFiles("mem://bucket/seg", progress=False)
    files.put("x", BODY)
    source = open_source(parse_location("mem://bucket/seg"), threads=1)
    for start, end in ((0, 9), (2550, 2600), (5, None), (2560, 2570), (None, None)):
        assert source.fetch("x", start, end) == StoredObject(BODY[start or 0 : end], None)
    for start in (-20, -9999):
        assert source.fetch("x", start) == StoredObject(BODY[start:], None, len(BODY))
    assert source.fetch("y") is None
    for path in tmp_path.rglob("*"):
        if path.is_file():
            files.put(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    oracle.check("precomputed://mem://bucket/seg")
    oracle.check("mem://bucket/seg/")


def test_an_output_folder_on_s3(tmp_path: Path, s3: Any) -> None:
    """A file of a folder on S3 appears whole by one PUT, and is read, measured and downloaded again."""
    folder = Folder(parse_location(f"{s3.url}/runs/a"), tmp_path / "scratch")
    with pytest.raises(ZeroDivisionError), folder.new_file("labels/g 0.bin") as path:
        path.write_bytes(BODY[: 1 // 0])
    assert (s3.names(), folder.read_bytes("labels/g 0.bin"), folder.size("labels/g 0.bin")) == ([], None, None)
    with folder.new_file("labels/g 0.bin") as path:
        path.write_bytes(BODY)
        assert s3.names() == []
    assert s3.names() == ["runs/a/labels/g 0.bin"]
    assert (folder.read_bytes("labels/g 0.bin"), folder.size("labels/g 0.bin")) == (BODY, len(BODY))
    other = Folder(parse_location(f"{s3.url}/runs/a"), tmp_path / "other")
    assert other.local_copy("labels/g 0.bin").read_bytes() == BODY
    kept = sorted(path.name for path in (tmp_path / "other/labels").iterdir())
    assert kept == [".g 0.bin.version", "g 0.bin"], "the copy, and of which version of the object it is"
    with pytest.raises(InputError, match=r"no file at s3://.*/runs/a/none"):
        other.local_copy("none")
    folder.write_bytes("empty", b"")
    assert (folder.read_bytes("empty"), folder.size("empty")) == (b"", 0)


def test_a_refused_output_is_said(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output to a bucket that isn't there is a TransportError that names the file, and leaves nothing half-made."""
    from cloudfiles.interfaces import S3Interface

    monkeypatch.setattr(S3Interface.put_file.retry, "wait", lambda state: 0)  # it waits a minute before it says so
    folder = Folder(parse_location(f"s3://http://{s3.address}/no-such-bucket/out"), tmp_path)
    with pytest.raises(TransportError, match=r"no-such-bucket/out/x.parquet: .*NoSuchBucket"):
        folder.write_bytes("x.parquet", BODY)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_run_on_s3(tmp_path: Path, oracle: Any, s3: Any) -> None:
    """With volume, points, output and workspace on S3 the command makes the table; again, it has nothing to do."""
    oracle.write(tmp_path / "seg", encoding="compressed_segmentation", compress="gzip")
    points = oracle.points()
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({axis: points[:, i] for i, axis in enumerate("xyz")}), tmp_path / "tables/p.parquet")
    volume, tables = s3.upload(tmp_path / "seg", "seg"), s3.upload(tmp_path / "tables", "tables")
    command = [str(Path(sys.executable).parent / "luigi"), "--module", "pipeline", "SamplePoints", "--volume", volume,
               "--points", f"{tables}/p.parquet", "--output", f"{tables}/out.parquet", "--workspace", f"{s3.url}/work"]
    (tmp_path / "cwd").mkdir()
    env = os.environ | {"TMPDIR": str(tmp_path / "cwd"), "HOME": str(tmp_path / "cwd")}
    ends = []
    for _ in range(2):
        said = subprocess.run(command, cwd=tmp_path / "cwd", env=env, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        ends.append({key: s3.client.head_object(Bucket=s3.bucket, Key=key)["ETag"] for key in s3.names()})
    assert "nothing to do" in said.stderr
    assert ends[0] == ends[1]
    body = s3.client.get_object(Bucket=s3.bucket, Key="tables/out.parquet")["Body"].read()
    table = pq.read_table(pa.BufferReader(body))
    assert table.column_names == ["x", "y", "z", "label", "status"]
    np.testing.assert_array_equal(table["label"].to_numpy(), oracle.at(points))
    assert set(table["status"].to_pylist()) == {"ok"}
    assert any(key.startswith("work/runs/") for key in ends[0])
