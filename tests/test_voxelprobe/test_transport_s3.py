"""Objects in S3: signatures, regions, refusals and checksums; moto's server, which checks signatures when told to."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import logging
import os
import re
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe import AuthorizationError, InputError, TransportError, sample_points
from voxelprobe.transport import s3 as module
from voxelprobe.transport.addresses import parse_address
from voxelprobe.transport.protocol import Request, RetryableError, StoredObject
from voxelprobe.transport.s3 import S3Source, locate_object
from voxelprobe.transport.signing import sign_get
from voxelprobe.transport.sources import open_source
from voxelprobe.volume.url import parse_location

BODY = bytes(range(256)) * 10
SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip",
            "data_encoding": "gzip"}
NAMES = ["a", "a b", "a+b", "é/日本", "a%b", "a=b&c", "a//b", "a/../b", "./a", "~x", "x!*'()", "a?b#c", "a;b,c:d@e",
         "a\\b|c", "%2F", "0-64_0-64_0-64"]
pytestmark = pytest.mark.usefixtures("quick_retries", "nothing_learnt")


@pytest.fixture
def nothing_learnt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has asked no bucket yet, on a machine without credentials or roles."""
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
def keys(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    values = {"AWS_ACCESS_KEY_ID": "AKIDHUSH", "AWS_SECRET_ACCESS_KEY": "hush/key+", "AWS_SESSION_TOKEN": "hush-token="}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return values


@pytest.fixture
def guarded(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Moto with a user who may read the bucket, whose keys are in the environment; called, it begins to check them."""
    import boto3
    from moto.core.authorization import enable_iam_authentication

    options = {"endpoint_url": f"http://{s3.address}", "aws_access_key_id": "key", "aws_secret_access_key": "secret",
               "region_name": "us-east-1"}
    iam = boto3.client("iam", **options)
    iam.create_user(UserName=s3.bucket)
    policy = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}
    iam.put_user_policy(UserName=s3.bucket, PolicyName="read", PolicyDocument=json.dumps(policy))
    made = iam.create_access_key(UserName=s3.bucket)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
    checking = enable_iam_authentication()
    started: list[Any] = []

    def start() -> None:
        checking.__enter__()
        started.append(checking)

    yield start
    for guard in started:
        guard.__exit__(None, None, None)
    iam.close()


def open_s3(url: str) -> S3Source:
    return S3Source(url, parse_address(url))


def test_signature_of_the_specification() -> None:
    """The example of Amazon's specification, GET of the first ten bytes of an object, gets the signature it prints."""
    fields = sign_get("examplebucket.s3.amazonaws.com", "/test.txt", {"range": "bytes=0-9"}, time="20130524T000000Z",
                      access_key="AKIAIOSFODNN7EXAMPLE", secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                      region="us-east-1")
    assert fields[-1].endswith("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


@given(key=st.text(min_size=1).filter(lambda key: key.isprintable()), token=st.none() | st.text("aZ0/+=", min_size=1),
       start=st.none() | st.integers(-99, 99))
def test_signatures_are_botocores(key: str, token: str | None, start: int | None) -> None:
    """Whatever the object is called, with a range and a session's token or without, botocore signs it the same."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    with pytest.MonkeyPatch.context() as patch, closing(open_s3("s3://http://h.example:90/bucket")) as source:
        patch.setenv("AWS_ACCESS_KEY_ID", "AK")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "s/+")
        patch.setenv("AWS_SESSION_TOKEN", token or "")
        source._find_credentials()
        ask = source.ask(Request(key, start))
    sent = dict(field.split(": ", 1) for field in ask.fields)
    signed = re.search("SignedHeaders=([^,]*)", sent["Authorization"])
    request = AWSRequest("GET", ask.url, headers={name: sent[name] for name in signed[1].split(";") if name != "host"})
    request.context["timestamp"] = sent["x-amz-date"]
    signer = S3SigV4Auth(Credentials("AK", "s/+"), "s3", "us-east-1")
    canonical = signer.canonical_request(request)
    expected = signer.signature(signer.string_to_sign(request, canonical), request)
    assert sent["Authorization"].endswith(f"Signature={expected}")
    assert unquote(urlsplit(ask.url).path) == f"/bucket/{key}"


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "ap-northeast-3", "cn-north-1", "us-gov-west-1"])
@pytest.mark.parametrize("bucket", ["bucket", "b-1", "dots.in.it", "Upper_Case", "a" * 63])
@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_requests_go_where_boto3_sends_them(region: str, bucket: str, endpoint: str) -> None:
    """The server and the path of an object are boto3's: its own host for a bucket, or the path of another server."""
    import boto3

    client = boto3.client("s3", region_name=region, aws_access_key_id="a", aws_secret_access_key="b",
                          endpoint_url=endpoint or None)
    client.meta.events.register("before-send.s3", lambda request, **_: asked.append(request.url) or 1 / 0)
    asked: list[str] = []
    with pytest.raises(ZeroDivisionError):
        client.get_object(Bucket=bucket, Key="a/b c+é")
    client.close()
    server, path = locate_object(bucket, "a/b c+é", region, endpoint)
    # For the oldest region boto3 has a name without one; both are its servers.
    assert asked[0].replace("s3.amazonaws.com", "s3.us-east-1.amazonaws.com") == server + path


@pytest.mark.parametrize("name", NAMES)
def test_signatures_open_a_guarded_bucket(s3: Any, guarded: Any, name: str) -> None:
    """A server that checks signatures gives objects of any name, and ranges of them, for the keys of a user."""
    s3.client.put_object(Bucket=s3.bucket, Key=f"d/{name}", Body=BODY)
    guarded()
    with closing(open_source(parse_location(f"{s3.url}/d"), threads=1)) as source:
        assert source.fetch(name) == StoredObject(BODY, None)
        assert source.fetch(name, 5, 9) == StoredObject(BODY[5:9], None, len(BODY))
        assert source.fetch(name, -9) == StoredObject(BODY[-9:], None, len(BODY))


def test_wrong_keys_are_refused(s3: Any, guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret key that isn't the user's, and a user that there isn't, are refused, and the message says the code."""
    s3.client.put_object(Bucket=s3.bucket, Key="x", Body=BODY)
    guarded()
    right = os.environ["AWS_SECRET_ACCESS_KEY"]
    for name, value, code in (("AWS_SECRET_ACCESS_KEY", right[::-1], "SignatureDoesNotMatch"),
                              ("AWS_ACCESS_KEY_ID", "AKIANOBODY", "InvalidAccessKeyId")):
        monkeypatch.setenv(name, value)
        with closing(open_s3(s3.url)) as source, pytest.raises(AuthorizationError, match=f"403 {code}") as caught:
            source.fetch("x")
        assert "sent the credentials of the environment's AWS_ACCESS_KEY_ID" in str(caught.value)
        assert right[::-1] not in str(caught.value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", right)


def test_a_role_with_a_session_token(s3: Any, guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of a role open a guarded bucket with their session's token, and not with another."""
    import boto3

    options = {"endpoint_url": f"http://{s3.address}", "aws_access_key_id": "key", "aws_secret_access_key": "secret",
               "region_name": "us-east-1"}
    trust = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}}
    allow = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}
    with closing(boto3.client("iam", **options)) as iam, closing(boto3.client("sts", **options)) as sts:
        role = iam.create_role(RoleName=s3.bucket, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        iam.put_role_policy(RoleName=s3.bucket, PolicyName="read", PolicyDocument=json.dumps(allow))
        made = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="session")["Credentials"]
    s3.client.put_object(Bucket=s3.bucket, Key="x", Body=BODY)
    guarded()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
    for token in (made["SessionToken"], made["SessionToken"][::-1]):
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
        with closing(open_s3(s3.url)) as source:
            if token == made["SessionToken"]:
                assert source.fetch("x") == StoredObject(BODY, None)
            else:
                with pytest.raises(AuthorizationError, match="400 InvalidToken"):
                    source.fetch("x")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("public", [False, True])
def test_volumes_of_private_and_public_buckets(
    tmp_path: Path, oracle: Any, s3: Any, guarded: Any, monkeypatch: pytest.MonkeyPatch, sharded: bool, public: bool
) -> None:
    """A volume of a private bucket is read with keys and not without, one of a public bucket with none."""
    layout = {"sharding": SHARDING} if sharded else {"encoding": "compressed_segmentation", "compress": "gzip"}
    oracle.write(tmp_path / "seg", **layout)
    cloudpath = s3.upload(tmp_path / "seg", "seg")
    if public:
        for key in s3.names():
            s3.client.put_object_acl(Bucket=s3.bucket, Key=key, ACL="public-read")
    else:
        guarded()
        oracle.check(cloudpath)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if public:
        oracle.check(cloudpath)
    else:
        with pytest.raises(AuthorizationError, match=r"sent no credentials; they are looked for in .*botocore looks"):
            oracle.check(cloudpath)


def test_a_profile_of_botocore_opens_what_refuses_strangers(s3: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Where a bucket refuses a request without keys, those of AWS_PROFILE are sent, from then on at once."""
    s3.client.put_object(Bucket=s3.bucket, Key="x", Body=BODY)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = AK\naws_secret_access_key = hush\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    for retries in (1, 0):
        with closing(open_source(parse_location(s3.url), threads=1)) as source:
            assert source.fetch("x") == StoredObject(BODY, None)
            assert source.traffic.retries == retries
    monkeypatch.setenv("AWS_PROFILE", "other")
    module._credentials_of_botocore.cache_clear()
    with closing(open_s3(s3.url)) as source, pytest.raises(AuthorizationError, match=r"botocore .*: ProfileNotFound"):
        source.fetch("x")


@pytest.mark.parametrize(("status", "headers", "body"), [
    (301, {"x-amz-bucket-region": "eu-west-3"}, b"<Error><Code>PermanentRedirect</Code></Error>"),
    (307, {"x-amz-bucket-region": "eu-west-3", "Location": "http://127.0.0.1:9/"}, b"<Code>TemporaryRedirect</Code>"),
    (400, {}, b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>"),
])
def test_the_region_that_is_said_is_asked(serve: Any, keys: Any, status: int, headers: Any, body: bytes) -> None:
    """A bucket elsewhere says its region: requests are signed for that from then on, also by the next source."""
    server = serve(lambda path, number: (status, headers, body) if number == 0 else (200, {}, BODY))
    for _ in range(2):
        with closing(open_source(parse_location(f"s3://{server.url}/b"), threads=1)) as source:
            assert source.fetch("x") == StoredObject(BODY, None)
    regions = [re.search("/[0-9]{8}/([^/]*)/s3/", sent["Authorization"])[1] for sent in server.headers]
    assert regions == ["us-east-1", "eu-west-3", "eu-west-3"]


@pytest.mark.parametrize("region", ["eu-west-3", "x.example/", "", "A"])
def test_regions_have_an_end(serve: Any, keys: Any, region: str) -> None:
    """A server that always names a region, and one that names what is none, are a TransportError, not a loop."""
    server = serve(lambda path, number: (301, {"x-amz-bucket-region": region}, b""))
    with closing(open_source(parse_location(f"s3://{server.url}/b"), threads=1)) as source:
        message = r"region eu-west-3 \(tried 6 times\)" if region == "eu-west-3" else "answer of 200, found 301"
        with pytest.raises(TransportError, match=message):
            source.fetch("x")


def test_redirects_are_not_followed(serve: Any, keys: Any) -> None:
    """Neither keys nor a session's token go to a server that an answer names."""
    other = serve(lambda path, number: (200, {}, BODY))
    server = serve(lambda path, number: (302, {"Location": f"{other.url}/x"}, b""))
    expected = f"s3://{server.url}/b/x: expected an answer of 200, found 302"
    with closing(open_s3(f"s3://{server.url}/b")) as source, pytest.raises(TransportError, match=expected):
        source.fetch("x")
    assert server.headers[0]["x-amz-security-token"] == keys["AWS_SESSION_TOKEN"]
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


def test_a_refused_chunk_is_no_absent_one(serve: Any, keys: Any) -> None:
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


def test_many_at_once(s3: Any, guarded: Any) -> None:
    """Requests under way together are signed each for its own, and get each its own answer."""
    for number in range(40):
        s3.client.put_object(Bucket=s3.bucket, Key=f"{number}", Body=gzip.compress(b"%d" % number, mtime=0),
                             ContentEncoding="gzip")
    guarded()
    ended: dict[Any, Any] = {}
    with closing(open_s3(s3.url)) as source, closing(source.open_transfers(limit=8)) as transfers:
        for number in range(40):
            transfers.start(number, Request(str(number)))
            transfers.start(-number - 1, Request(f"{number}", -4))
        transfers.start("none", Request("none"))
        while len(ended) < 81:
            ended |= dict(transfers.wait(None))
    assert ended["none"] is None
    for number in range(40):
        packed = gzip.compress(b"%d" % number, mtime=0)
        assert gzip.decompress(ended[number].content) == b"%d" % number
        assert ended[-number - 1] == StoredObject(packed[-4:], "gzip", len(packed))


def test_sources_of_forked_processes(s3: Any, guarded: Any) -> None:
    """A process that has read from a bucket may fork; a child opens sources of its own."""
    s3.client.put_object(Bucket=s3.bucket, Key="x", Body=BODY)
    guarded()
    with closing(open_s3(s3.url)) as source:
        assert source.fetch("x") == StoredObject(BODY, None)
    if (child := os.fork()) == 0:
        code = 1
        try:
            with closing(open_s3(s3.url)) as source:
                code = int(source.fetch("x") != StoredObject(BODY, None))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("status", "code"), [
    (403, "SignatureDoesNotMatch"), (403, "AccessDenied"), (400, "ExpiredToken"), (400, "InvalidRequest"), (500, ""),
    (301, ""), (404, "NoSuchBucket"), (200, ""),
])
def test_nothing_secret_is_said(serve: Any, keys: Any, caplog: Any, status: int, code: str) -> None:
    """Whatever goes wrong: no key, no token and no signature is in the error, its traceback, or the log."""
    echo = b"<Message>" + "".join(keys.values()).encode() + b"</Message>"
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
