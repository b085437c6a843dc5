"""Objects in S3: what its answers mean, their checksums and codes, and where a bucket is; moto's server and scripts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
import traceback
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from voxelprobe import AuthorizationError, InputError, TransportError, sample_points
from voxelprobe.transport.addresses import parse_address
from voxelprobe.transport.protocol import Request, RetryableError, StoredObject
from voxelprobe.transport.s3 import S3Source
from voxelprobe.transport.sources import open_source
from voxelprobe.volume.url import parse_location

BODY = bytes(range(256)) * 10
pytestmark = pytest.mark.usefixtures("quick_retries", "fresh_s3")


def open_s3(url: str) -> S3Source:
    return S3Source(url, parse_address(url))


def test_redirects_are_not_followed(serve: Any, s3_keys: Any) -> None:
    """Neither keys nor a session's token go to a server that an answer names."""
    other = serve(lambda path, number: (200, {}, BODY))
    server = serve(lambda path, number: (302, {"Location": f"{other.url}/x"}, b""))
    expected = f"s3://{server.url}/b/x: expected an answer of 200, found 302"
    with closing(open_s3(f"s3://{server.url}/b")) as source, pytest.raises(TransportError, match=expected):
        source.fetch("x")
    assert server.headers[0]["x-amz-security-token"] == s3_keys["AWS_SESSION_TOKEN"]
    assert other.paths == []


def checksums(body: bytes) -> dict[str, dict[str, str]]:
    md5, b64 = hashlib.md5(body).hexdigest(), lambda digest: base64.b64encode(digest).decode()
    crc32, crc32c = zlib.crc32(body), google_crc32c.value(body)
    return {
        "etag": {"ETag": f'"{md5}"'}, "etag upper": {"ETag": f'"{md5.upper()}"'},
        "etag encrypted": {"ETag": f'"{md5}"', "x-amz-server-side-encryption": "AES256"},
        "crc32": {"x-amz-checksum-crc32": b64(crc32.to_bytes(4, "big")), "ETag": '"x"'},
        "crc32c": {"x-amz-checksum-crc32c": b64(crc32c.to_bytes(4, "big"))},
        "sha256": {"x-amz-checksum-sha256": b64(hashlib.sha256(body).digest())},
    }


@pytest.mark.parametrize("which", checksums(b""))
def test_the_stores_checksum_is_held(serve: Any, which: str) -> None:
    """A body that contradicts its ETag or its checksum is asked for again; one that always does is an error."""
    damaged = BODY[:99] + b"\xff" + BODY[100:]
    server = serve(lambda path, number: (200, checksums(BODY)[which], damaged if number != 1 else BODY))
    with closing(open_source(parse_location(f"s3://{server.url}/b"), threads=1)) as source:
        assert source.fetch("x") == StoredObject(BODY, None)
        assert len(server.paths) == 2
        assert server.headers[0]["x-amz-checksum-mode"] == "ENABLED"
        with pytest.raises(TransportError, match=r"b/x: the store says (crc32c?|MD5|SHA-256) .* the body received has"):
            source.fetch("x")


@pytest.mark.parametrize("headers", [
    {"ETag": f'"{"0" * 32}-2"'}, {"ETag": '"1-"'}, {"ETag": '"some-other"'}, {"ETag": f'W/"{"0" * 32}"'},
    {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption": "aws:kms"},
    {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"},
    {"x-amz-checksum-crc32c": "AAAAAA==-2"}, {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="},
], ids=str)
def test_what_is_no_checksum_of_the_body_is_none(serve: Any, headers: dict[str, str]) -> None:
    """An ETag of parts, or of an object encrypted by a key, and a checksum of checksums, aren't held against it."""
    server = serve(lambda path, number: (200, headers, BODY))
    with closing(open_s3(f"s3://{server.url}/b")) as source:
        assert source.fetch("x") == StoredObject(BODY, None)


def test_a_real_multipart_object_is_read(s3: Any) -> None:
    """An object put in parts, whose ETag is of its parts, and one with a crc32c of its own are read as they are."""
    body = BODY * 2100
    s3.client.upload_fileobj(io.BytesIO(body), s3.bucket, "parts", Config=_in_parts())
    assert "-" in s3.client.head_object(Bucket=s3.bucket, Key="parts")["ETag"]
    said = base64.b64encode(google_crc32c.value(BODY).to_bytes(4, "big")).decode()
    s3.client.put_object(Bucket=s3.bucket, Key="sum", Body=BODY, ChecksumAlgorithm="CRC32C", ChecksumCRC32C=said)
    with closing(open_s3(s3.url)) as source:
        assert source.fetch("parts").content == body
        assert source.fetch("sum") == StoredObject(BODY, None)


def _in_parts() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=1 << 20, multipart_chunksize=5 << 20, use_threads=False)


@pytest.mark.parametrize(("said", "encoding"), [
    ("aws-chunked", None), ("aws-chunked,gzip", "gzip"), ("gzip, aws-chunked", "gzip"), ("identity", None), ("", None),
    ("br", "br"), ("gzip, br", "gzip, br"),
])
def test_encodings_of_the_transport_are_passed_over(serve: Any, said: str, encoding: str | None) -> None:
    """What S3 keeps of how an object was sent to it is no encoding of the object."""
    server = serve(lambda path, number: (200, {"Content-Encoding": said}, BODY))
    with closing(open_s3(f"s3://{server.url}/b")) as source:
        assert source.fetch("x") == StoredObject(BODY, encoding)


def answer(code: str, more: bytes = b"") -> bytes:
    return b"<?xml version='1.0'?><Error><Code>%s</Code>%s</Error>" % (code.encode(), more)


def test_busy_stores_are_asked_again(serve: Any) -> None:
    """503 SlowDown is retryable after as long as the store asks; its code is in the message."""
    server = serve(lambda path, number: (503, {"Retry-After": "7"}, answer("SlowDown")))
    expected = r"b/x \(SlowDown\): the server answered 503"
    with closing(open_s3(f"s3://{server.url}/b")) as source, pytest.raises(RetryableError, match=expected) as caught:
        source.fetch("x")
    assert caught.value.wait_seconds == 7.0


def test_what_is_absent(serve: Any) -> None:
    """404 is no such object if S3 says so; where the bucket lacks, or a gateway doesn't know better, it is an error."""
    said = {"/b/x": answer("NoSuchKey"), "/b/y": b"default backend - 404", "/b/z": answer("NoSuchBucket")}
    server = serve(lambda path, number: (404, {}, said[path]))
    with closing(open_s3(f"s3://{server.url}/b")) as source:
        assert source.fetch("x") is None
        with pytest.raises(RetryableError, match="b/y: expected 404 to be NoSuchKey, found no reason"):
            source.fetch("y")
        with pytest.raises(TransportError, match=f"b/z: there is no bucket b at {server.url} "):
            source.fetch("z")


def test_a_refused_chunk_is_no_absent_one(serve: Any, s3_keys: Any) -> None:
    """A 403 for a chunk ends the run: the message says that it may also be absent, and what to allow."""
    server = serve(lambda path, number: (403, {}, answer("AccessDenied")))
    with closing(open_s3(f"s3://{server.url}/b/seg")) as source, pytest.raises(AuthorizationError) as caught:
        source.fetch("4_4_40/0-64")
    for part in (f"s3://{server.url}/b/seg/4_4_40/0-64: ", "either it may not be read, or there is none",
                 "s3:ListBucket", "b-aws-secret.json, ", "the environment (AWS_ACCESS_KEY_ID"):
        assert part in str(caught.value)


def test_ended_keys_are_read_again(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a session's token has ended, the secret's file is read again; if it is the same, that is an error."""
    path = tmp_path / "secrets/aws-secret.json"
    path.parent.mkdir()
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path))

    def write(token: str) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": token}
        path.write_text(json.dumps(keys))

    def script(path: str, number: int) -> tuple[int, dict[str, str], bytes]:
        fresh = server.headers[number]["x-amz-security-token"] == "new"
        return (200, {}, BODY) if fresh else (400, {}, answer("ExpiredToken"))

    server = serve(script)
    write("old")
    with closing(open_source(parse_location(f"s3://{server.url}/b"), threads=1)) as source:
        with pytest.raises(AuthorizationError, match=f"400 ExpiredToken.*sent the credentials of {path}"):
            source.fetch("x")
        write("new")
        ended: dict[Any, Any] = {}
        with closing(source.open_transfers(limit=4)) as transfers:
            for key in range(4):
                transfers.start(key, Request("x"))
            while len(ended) < 4:
                ended |= dict(transfers.wait(None))
        assert list(ended.values()) == [StoredObject(BODY, None)] * 4


@pytest.mark.parametrize(("status", "code"), [
    (403, "SignatureDoesNotMatch"), (403, "AccessDenied"), (400, "ExpiredToken"), (400, "InvalidRequest"), (500, ""),
    (301, ""), (404, "NoSuchBucket"), (200, ""),
])
def test_nothing_secret_is_said(serve: Any, s3_keys: Any, caplog: Any, status: int, code: str) -> None:
    """Whatever goes wrong: no key, no token and no signature is in the error, its traceback, or the log."""
    echo = b"<Message>" + "".join(s3_keys.values()).encode() + b"</Message>"
    server = serve(lambda path, number: (status, {"ETag": f'"{"0" * 32}"'}, answer(code, echo)))
    caplog.set_level(logging.DEBUG)
    location = parse_location(f"s3://{server.url}/b")
    with closing(open_source(location, threads=1)) as source, pytest.raises(TransportError) as caught:
        source.fetch("x")
    signature = re.search("Signature=(.*)", server.headers[0]["Authorization"])[1]
    said = [str(caught.value), repr(caught.value), caplog.text, *traceback.format_exception(caught.value), repr(source)]
    for secret in ("hush", "AKIDHUSH", signature):
        assert secret not in "".join(said)


def test_the_endpoint_of_the_environment(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_ENDPOINT_URL, which botocore and so cloud-files obeys, is where a bucket is, unless it is to be ignored."""
    server = serve(lambda path, number: (200, {}, BODY))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    with closing(open_s3("s3://b/d")) as source:
        assert source.fetch("x") == StoredObject(BODY, None)
    assert server.paths == ["/b/d/x"]
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    with closing(open_s3("s3://lab/d")) as source:
        assert source.ask(Request("x")).url == "https://lab.s3.us-east-1.amazonaws.com/d/x"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "false")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "127.0.0.1:9")
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL: expected https://SERVER"):
        open_s3("s3://b/d")


def test_an_alias_is_another_server_with_secrets_of_its_own(serve: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A bucket named by an alias of cloud-files' is asked for at its server, signed with the alias's keys."""
    from cloudfiles import paths

    server = serve(lambda path, number: (404, {}, answer("NoSuchKey")))
    (tmp_path / "secrets").mkdir()
    keys = {"AWS_ACCESS_KEY_ID": "LABKEY", "AWS_SECRET_ACCESS_KEY": "b"}
    (tmp_path / "secrets/lab-secret.json").write_text(json.dumps(keys))
    monkeypatch.setenv("CLOUD_FILES_DIR", str(tmp_path))
    paths.add_alias("lab", f"s3://{server.url}/")
    paths.extract.cache_clear()
    try:
        with pytest.raises(InputError, match="no volume at lab://b/seg"):
            sample_points("precomputed://lab://b/seg", [1, 2, 3])
    finally:
        paths.remove_alias("lab")
    assert server.paths[0] == "/b/seg/info"
    assert "Credential=LABKEY/" in server.headers[0]["Authorization"]
