"""Signed requests to S3: for which server, region and keys; botocore signs the same, and moto's server checks it."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe import AuthorizationError, TransportError
from voxelprobe.transport import s3 as module
from voxelprobe.transport.addresses import parse_address
from voxelprobe.transport.protocol import Request, StoredObject
from voxelprobe.transport.s3 import S3Source, locate_object
from voxelprobe.transport.signing import sign_get
from voxelprobe.transport.sources import open_source
from voxelprobe.volume.url import parse_location

BODY = bytes(range(256)) * 10
SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip",
            "data_encoding": "gzip"}
NAMES = ["a", "a b", "a+b", "é/日本", "a%b", "a=b&c", "a//b", "a/../b", "./a", "~x", "x!*'()", "a?b#c", "a;b,c:d@e",
         "a\\b|c", "%2F", "0-64_0-64_0-64"]
pytestmark = pytest.mark.usefixtures("quick_retries", "fresh_s3")


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
def test_the_region_that_is_said_is_asked(serve: Any, s3_keys: Any, status: int, headers: Any, body: bytes) -> None:
    """A bucket elsewhere says its region: requests are signed for that from then on, also by the next source."""
    server = serve(lambda path, number: (status, headers, body) if number == 0 else (200, {}, BODY))
    for _ in range(2):
        with closing(open_source(parse_location(f"s3://{server.url}/b"), threads=1)) as source:
            assert source.fetch("x") == StoredObject(BODY, None)
    regions = [re.search("/[0-9]{8}/([^/]*)/s3/", sent["Authorization"])[1] for sent in server.headers]
    assert regions == ["us-east-1", "eu-west-3", "eu-west-3"]


@pytest.mark.parametrize("region", ["eu-west-3", "x.example/", "", "A"])
def test_regions_have_an_end(serve: Any, s3_keys: Any, region: str) -> None:
    """A server that always names a region, and one that names what is none, are a TransportError, not a loop."""
    server = serve(lambda path, number: (301, {"x-amz-bucket-region": region}, b""))
    with closing(open_source(parse_location(f"s3://{server.url}/b"), threads=1)) as source:
        message = r"region eu-west-3 \(tried 6 times\)" if region == "eu-west-3" else "answer of 200, found 301"
        with pytest.raises(TransportError, match=message):
            source.fetch("x")


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
