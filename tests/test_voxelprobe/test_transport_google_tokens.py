"""Tokens for Google Cloud Storage: a server that makes them, and one before the emulator that wants them."""

from __future__ import annotations

import base64
import json
import logging
import os
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from voxelprobe import AuthorizationError, TransportError
from voxelprobe.testing.loopback import LoopbackServer
from voxelprobe.transport.addresses import parse_address
from voxelprobe.transport.gcs import GcsSource
from voxelprobe.transport.protocol import Request, StoredObject
from voxelprobe.transport.sources import open_source
from voxelprobe.volume.url import parse_location

BODY = bytes(range(256)) * 10
SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip",
            "data_encoding": "gzip"}
pytestmark = pytest.mark.usefixtures("quick_retries", "fresh_gcs")


class TokenServer(LoopbackServer):
    """Makes the tokens hush-1, hush-2, … for who asks with a signed assertion or a refresh token."""

    def __init__(self) -> None:
        server = self
        self.asked: list[dict[str, list[str]]] = []
        self.seconds = 3600
        self.status = 200

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.asked.append(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))
                said: dict[str, Any] = {"error": "invalid_grant", "error_description": "hush", "refresh_token": "hush"}
                if server.status == 200:
                    token = f"hush-{len(server.asked)}"
                    said = {"access_token": token, "expires_in": server.seconds, "token_type": "Bearer"}
                self.send_response(server.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
                pass

        super().__init__(Handler)


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    server = TokenServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def private_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption()).decode()


@pytest.fixture
def service_account(tokens: TokenServer, private_key: str) -> dict[str, str]:
    return {"type": "service_account", "project_id": "p", "private_key_id": "k", "private_key": private_key,
            "client_email": "reader@example.invalid", "token_uri": f"{tokens.url}/token"}


@pytest.fixture
def private(gcs: Any, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The emulator behind a server that answers 401 for a request without a token, and 403 for `refused`."""

    def script(path: str, number: int) -> tuple[int, dict[str, str], bytes]:
        sent = server.headers[number]
        if not str(sent["Authorization"]).startswith("Bearer hush-"):
            return 401, {}, b"Anonymous caller does not have storage.objects.get access"
        request = urllib.request.Request(gcs.address + path, headers={
            name: value for name, value in sent.items() if name in ("Accept-Encoding", "Range")})
        try:
            with urllib.request.urlopen(request) as found:
                said, body = found, found.read()
        except urllib.error.HTTPError as error:
            with error:
                said, body = error, error.read()
        return said.status, {name: value for name, value in said.headers.items()
                             if name not in ("Connection", "Date", "Content-Length")}, body

    server = serve(script)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", server.url)
    return server


def write_secret(name: str, content: Any) -> Path:
    path = Path(os.environ["CLOUD_VOLUME_DIR"]) / "secrets" / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def open_gcs(url: str) -> GcsSource:
    return GcsSource(url, parse_address(url))


@pytest.mark.parametrize("sharded", [False, True])
def test_volume_of_a_private_bucket(
    tmp_path: Path, oracle: Any, gcs: Any, private: Any, tokens: TokenServer, service_account: Any, sharded: bool
) -> None:
    """A volume is read with one token of a service account; without one the bucket refuses it."""
    layout = {"sharding": SHARDING} if sharded else {"encoding": "compressed_segmentation", "compress": "gzip"}
    oracle.write(tmp_path / "seg", **layout)
    cloudpath = gcs.upload(tmp_path / "seg", "seg")
    with pytest.raises(AuthorizationError, match=r"seg/info: .*\(401\).*sent no credentials.*google-secret\.json"):
        oracle.check(cloudpath)
    write_secret(f"{gcs.name}-google-secret.json", service_account)
    oracle.check(cloudpath)
    assert [sent["Authorization"] for sent in private.headers[-9:]] == ["Bearer hush-1"] * 9
    assert sorted(tokens.asked[0]) == ["assertion", "grant_type"]
    claims = json.loads(base64.urlsafe_b64decode(tokens.asked[0]["assertion"][0].split(".")[1] + "=="))
    assert claims["scope"] == "https://www.googleapis.com/auth/devstorage.read_only"


def test_tokens_are_renewed_before_they_end(
    gcs: Any, private: Any, tokens: TokenServer, service_account: Any
) -> None:
    """A token that ends within minutes is replaced before the next request, not after a refusal."""
    gcs.put("x", BODY)
    write_secret("google-secret.json", service_account)
    tokens.seconds = 30
    with closing(open_source(parse_location(gcs.url), threads=1)) as source:
        for _ in range(3):
            assert source.fetch("x") == StoredObject(BODY, None)
        assert source.traffic.retries == 0
    assert [sent["Authorization"] for sent in private.headers] == [f"Bearer hush-{n}" for n in (1, 2, 3)]


def test_a_token_that_is_taken_back_is_replaced(
    gcs: Any, private: Any, tokens: TokenServer, service_account: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 401 for a token that isn't new makes another; for a new one it is final."""
    gcs.put("x", BODY)
    write_secret("google-secret.json", service_account)
    with closing(open_source(parse_location(gcs.url), threads=1)) as source:
        assert source.fetch("x") == StoredObject(BODY, None)
        token = source._source._token
        token._credentials.token = "gone"
        with pytest.raises(AuthorizationError, match=r"\(401\)"):
            source.fetch("x")
        monkeypatch.setattr("voxelprobe.transport.google_tokens._NEW_SECONDS", 0)
        assert source.fetch("x") == StoredObject(BODY, None)
    assert len(tokens.asked) == 2


@pytest.mark.parametrize("kind", ["service_account", "authorized_user"])
def test_default_credentials_open_what_refuses_strangers(
    gcs: Any, private: Any, tokens: TokenServer, service_account: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, kind: str,
) -> None:
    """Where a bucket refuses a request without a token, that of Google's default credentials is sent from then on."""
    user = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "adc.json").write_text(json.dumps(service_account if kind == "service_account" else user))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "adc.json"))
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"{tokens.url}/token")
    gcs.put("x", BODY)
    for retries in (1, 0):
        with closing(open_source(parse_location(gcs.url), threads=1)) as source:
            assert source.fetch("x") == StoredObject(BODY, None)
            assert source.traffic.retries == retries
    assert len(tokens.asked) == 1


def test_an_authorized_users_secret(gcs: Any, private: Any, tokens: TokenServer) -> None:
    """A google-secret.json may be that of a user."""
    gcs.put("x", BODY)
    write_secret("google-secret.json", {"type": "authorized_user", "client_id": "c", "client_secret": "s",
                                        "refresh_token": "r", "token_uri": f"{tokens.url}/token"})
    with closing(open_gcs(gcs.url)) as source:
        source._token._credentials._token_uri = f"{tokens.url}/token"  # google-auth takes its own for a user
        assert source.fetch("x") == StoredObject(BODY, None)
    assert tokens.asked[0]["refresh_token"] == ["r"]


@pytest.mark.parametrize(("change", "message"), [
    ("{", "expected JSON"), ({"type": "hush"}, "expected a `type` of service_account or authorized_user"),
    ({"private_key": "hush"}, "expected a service_account of Google's: its key is none"),
    ({"client_email": None}, "expected a service_account of Google's: it lacks client_email"),
    ({"type": "authorized_user"}, "expected a authorized_user of .*: it lacks client_id, client_secret, refresh_token"),
])
def test_a_broken_secret_is_said(service_account: Any, change: Any, message: str) -> None:
    """A secret that can't be understood is an AuthorizationError that names it, without what it holds."""
    if isinstance(change, str):
        path = write_secret("google-secret.json", change)
    else:
        content = {name: value for name, value in (service_account | change).items() if value is not None}
        path = write_secret("google-secret.json", content)
    with pytest.raises(AuthorizationError, match=message) as caught:
        open_gcs("gs://b")
    assert str(caught.value).startswith(f"{path}: ")
    said = "".join(traceback.format_exception(caught.value))
    assert "hush" not in said
    assert service_account["private_key"][40:80] not in said


@pytest.mark.parametrize(("status", "seen"), [
    (401, "refused"), (403, "refused"), (500, "answered"), (302, "found 302"),
])
def test_nothing_secret_is_said(
    serve: Any, service_account: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, status: int, seen: str
) -> None:
    """Whatever the store answers, no token is in the error, its traceback or the log; nor does one go elsewhere."""
    other = serve(lambda path, number: (200, {}, BODY))
    server = serve(lambda path, number: (
        status, {"Location": f"{other.url}/x"}, server.headers[0]["Authorization"].encode()))
    monkeypatch.setenv("API_ENDPOINT_OVERRIDE", server.url)
    path = write_secret("b-google-secret.json", service_account)
    caplog.set_level(logging.DEBUG)
    with closing(open_source(parse_location("gs://b"), threads=1)) as source, \
            pytest.raises(TransportError, match=seen) as caught:
        source.fetch("x")
    assert server.headers[0]["Authorization"] == "Bearer hush-1"
    assert other.paths == []
    assert "hush" not in "".join([repr(caught.value), caplog.text, *traceback.format_exception(caught.value)])
    if status in (401, 403):
        for part in (f"sent the credentials of {path}", "either it may not be read, or there is none"):
            assert part in str(caught.value)


@pytest.mark.parametrize(("status", "error", "message"), [
    (400, AuthorizationError, "no token for it: invalid_grant"), (200, AuthorizationError, "no token for it: "),
    (None, TransportError, r"the server that makes tokens doesn't answer \(tried 6 times\)"),
])
def test_a_token_that_is_not_to_be_had(
    tokens: TokenServer, service_account: Any, caplog: Any, status: Any, error: Any, message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A token server that refuses, answers nonsense or isn't there is said with the secret's file, and no more."""
    caplog.set_level(logging.DEBUG, "voxelprobe")
    if status is None:
        service_account["token_uri"] = "http://127.0.0.1:9/"
        monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda seconds: None)
    elif status == 200:
        tokens.seconds = "hush"  # type: ignore[assignment]
    else:
        tokens.status = status
    path = write_secret("google-secret.json", service_account)
    with closing(open_source(parse_location("gs://b"), threads=1)) as source:
        with pytest.raises(error, match=message) as caught:
            source.fetch("x")
        with closing(source.open_transfers(limit=2)) as transfers:
            transfers.start("key", Request("x"))
            ended: list[Any] = []
            while not ended:
                ended = transfers.wait(None)
    assert str(path) in str(caught.value)
    assert type(ended[0][1]) is error
    assert "hush" not in "".join([repr(caught.value), caplog.text, *traceback.format_exception(caught.value)])


def test_many_at_once(gcs: Any, private: Any, tokens: TokenServer, service_account: Any) -> None:
    """Requests under way together share a token, and get each its own answer; children of a fork make their own."""
    write_secret("google-secret.json", service_account)
    for number in range(20):
        gcs.put(f"{number}", b"%d" % number)
    with closing(open_gcs(gcs.url)) as source, closing(source.open_transfers(limit=8)) as transfers:
        for number in range(20):
            transfers.start(number, Request(f"{number}"))
        ended: dict[Any, Any] = {}
        while len(ended) < 20:
            ended |= dict(transfers.wait(None))
    assert ended == {number: StoredObject(b"%d" % number, None) for number in range(20)}
    assert len(tokens.asked) == 1
    if (child := os.fork()) == 0:
        code = 1
        try:
            with closing(open_gcs(gcs.url)) as source:
                code = int(source.fetch("7") != StoredObject(b"7", None))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
