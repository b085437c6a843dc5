"""The graph server's client: what goes over the wire, and what becomes of every answer."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from voxelprobe.errors import AuthorizationError, InputError, TransportError
from voxelprobe.graphene.client import GZIP_BYTES, GraphClient
from voxelprobe.graphene.refusals import TooLargeError
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.graphene.tokens import Token
from voxelprobe.graphene.url import parse_graphene_url
from voxelprobe.testing.loopback import LoopbackServer, reset_connection
from voxelprobe.transport.protocol import RetryableError

SECRET = "0123456789abcdef0123456789abcdef"
AT = Timestamp(1706695200123)
IDS = np.array([2**64 - 1, 2**53 + 1, 72057594037927937, 0, 7, 2**53 + 1], np.uint64)


@dataclass
class Sent:
    """A request as it arrived, with its body as it was sent and as it is meant."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    raw: bytes
    body: bytes = b""


@dataclass
class Reply:
    """An answer; `cut` leaves bytes away from the body's end, `act` is stall or reset."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    act: str = ""


class FakeServer(LoopbackServer):
    """A server whose answers a function gives."""

    def __init__(self, script: Callable[[Sent], Reply]) -> None:
        server = self
        self.sent: list[Sent] = []
        self.connections = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = urlsplit(self.path)
                body = gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw
                server.sent.append(Sent(self.command, parts.path, parse_qs(parts.query), self.headers, raw, body))
                reply = script(server.sent[-1])
                if reply.act == "stall":
                    server.closing.wait(20)
                    return
                if reply.act == "reset":
                    reset_connection(self)
                    return
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body[: len(reply.body) - reply.cut])
                if reply.cut or "Connection" in reply.headers:
                    self.close_connection = True

            do_GET = do_POST = answer  # noqa: N815 -- the base class calls them so

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
                pass

        super().__init__(Handler)


Start = Callable[..., tuple[GraphClient, FakeServer]]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def make(
            script: Callable[[Sent], Reply] | Reply, *, token: str | None = SECRET, read_timeout_seconds: float = 10.0
        ) -> tuple[GraphClient, FakeServer]:
            server = FakeServer((lambda sent: script) if isinstance(script, Reply) else script)
            stack.callback(server.stop)
            client = GraphClient(
                parse_graphene_url(f"graphene://{server.url}/segmentation/table/fly_v31"),
                token=None if token is None else Token(token, "/home/me/cave-secret.json"),
                connections=2,
                connect_timeout_seconds=5.0,
                read_timeout_seconds=read_timeout_seconds,
            )
            stack.callback(client.close)
            return client, server

        yield make


def plus_one(sent: Sent) -> Reply:
    """Answer each id with the next one, as the real server labels it: text/html."""
    return Reply(body=(np.frombuffer(sent.body, "<u8") + np.uint64(1)).tobytes(), headers={"Content-Type": "text/html"})


def test_roots_request(start: Start) -> None:
    """Ids go as little-endian uint64 with the time in unix seconds, the token, and nothing that asserts roots."""
    client, server = start(plus_one)
    roots = client.fetch_roots(IDS, timestamp=AT)
    assert (roots.dtype, roots.flags.writeable) == (np.uint64, True)
    np.testing.assert_array_equal(roots, IDS + np.uint64(1))
    (sent,) = server.sent
    assert (sent.method, sent.path) == ("POST", "/segmentation/api/v1/table/fly_v31/roots_binary")
    assert sent.query == {"timestamp": ["1706695200.123"]}
    assert sent.raw == b"".join(int(i).to_bytes(8, "little") for i in IDS)
    assert sent.headers["Authorization"] == f"Bearer {SECRET}"
    assert sent.headers["Accept-Encoding"] == "gzip"
    assert sent.headers["Content-Encoding"] is None
    assert (client.traffic.requests, client.traffic.bytes) == (1, 8 * len(IDS))


def test_stop_layer_is_sent(start: Start) -> None:
    """A layer goes along when one is wanted."""
    client, server = start(plus_one)
    client.fetch_roots(IDS, timestamp=AT, stop_layer=2)
    assert server.sent[0].query == {"timestamp": ["1706695200.123"], "stop_layer": ["2"]}


def test_without_a_token(start: Start) -> None:
    """A server that asks for no token gets none."""
    client, server = start(plus_one, token=None)
    assert len(client.fetch_roots(IDS, timestamp=AT)) == len(IDS)
    assert server.sent[0].headers["Authorization"] is None


def test_memory_of_the_ids_does_not_matter(start: Start) -> None:
    """Ids with gaps in memory, as columns of a table may be, are the same ids."""
    client, _ = start(plus_one)
    ids = np.repeat(IDS, 2)[::2]
    np.testing.assert_array_equal(client.fetch_roots(ids, timestamp=AT), IDS + np.uint64(1))


def test_no_ids_no_request(start: Start) -> None:
    """Nothing to ask for is answered here."""
    client, server = start(plus_one)
    assert client.fetch_roots(IDS[:0], timestamp=AT).dtype == np.uint64
    assert client.is_latest(IDS[:0], AT).dtype == np.bool_
    assert not server.sent


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_other_dtypes_are_refused(start: Start, dtype: type) -> None:
    """Ids are never converted from signed numbers or floats."""
    client, server = start(plus_one)
    for call in (lambda: client.fetch_roots(np.ones(3, dtype), timestamp=AT),  # type: ignore[arg-type]
                 lambda: client.is_latest(np.ones(3, dtype), AT)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="uint64"):
            call()
    assert not server.sent


@pytest.mark.parametrize(("count", "packed"), [(GZIP_BYTES // 8 - 1, False), (GZIP_BYTES // 8, True), (30_000, True)])
def test_gzip_both_ways(start: Start, count: int, packed: bool) -> None:
    """Large questions go gzipped and small ones plain; a gzipped answer is the same answer."""

    def script(sent: Sent) -> Reply:
        body = plus_one(sent).body
        return Reply(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})

    client, server = start(script)
    ids = np.arange(count, dtype=np.uint64) * np.uint64(3) + np.uint64(2**56)
    np.testing.assert_array_equal(client.fetch_roots(ids, timestamp=AT), ids + np.uint64(1))
    assert (server.sent[0].headers["Content-Encoding"] == "gzip") is packed
    assert (len(server.sent[0].raw) < 8 * count) is packed


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("difference", [-8, -1, 1, 8, -8 * len(IDS), 100_000])
def test_length_of_the_answer(start: Start, difference: int, encoding: str) -> None:
    """An answer that isn't eight bytes an id is no answer, however long, and the next one is read from its start."""
    first = [True]

    def script(sent: Sent) -> Reply:
        body = plus_one(sent).body
        if first.pop() if first else False:
            body = (body + bytes(max(0, difference)))[: len(body) + difference]
        return Reply(body=gzip.compress(body) if encoding else body, headers={"Content-Encoding": encoding})

    client, _ = start(script)
    with pytest.raises(RetryableError, match=rf"expected {8 * len(IDS)} bytes"):
        client.fetch_roots(IDS, timestamp=AT)
    np.testing.assert_array_equal(client.fetch_roots(IDS, timestamp=AT), IDS + np.uint64(1))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=bytes(48), cut=20),
        Reply(body=bytes(48), cut=48),
        Reply(act="reset"),
        Reply(body=b"\x1f\x8b no gzip at all", headers={"Content-Encoding": "gzip"}),
        Reply(body=gzip.compress(bytes(48))[:-9], headers={"Content-Encoding": "gzip"}),
        Reply(body=gzip.compress(bytes(48))[:-1], headers={"Content-Encoding": "gzip"}),
        Reply(body=gzip.compress(bytes(48)) + b"and more", headers={"Content-Encoding": "gzip"}),
        Reply(body=gzip.compress(bytes(48))[:-8] + bytes(8), headers={"Content-Encoding": "gzip"}),
        Reply(body=b"<html>log in</html>" * 10),
    ],
)
def test_damaged_answers(start: Start, reply: Reply) -> None:
    """A body that ends early, a reset, damaged gzip, and a page in place of ids are asked for again."""
    client, _ = start(reply)
    with pytest.raises(RetryableError) as caught:
        client.fetch_roots(IDS, timestamp=AT)
    assert not isinstance(caught.value, TooLargeError)


def test_bomb_is_not_unpacked(start: Start) -> None:
    """A small answer that unpacks to gigabytes is cut off at the length that was expected."""
    import tracemalloc

    bomb = gzip.compress(bytes(200 << 20), 9)
    client, _ = start(Reply(body=bomb, headers={"Content-Encoding": "gzip"}))
    tracemalloc.start()
    with pytest.raises(RetryableError, match="more than"):
        client.fetch_roots(IDS, timestamp=AT)
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


def test_stalled_server(start: Start) -> None:
    """A server that says nothing is given up after the timeout, and fewer ids may pass."""
    client, _ = start(Reply(act="stall"), read_timeout_seconds=0.2)
    with pytest.raises(TooLargeError, match="no answer in time"):
        client.fetch_roots(IDS, timestamp=AT)


def test_nobody_listens(start: Start) -> None:
    """A refused connection may pass later."""
    client, server = start(plus_one)
    server.stop()
    with pytest.raises(RetryableError, match="roots_binary"):
        client.fetch_roots(IDS, timestamp=AT)


def test_connections_are_kept(start: Start) -> None:
    """Answers of every kind leave the connection usable: no request costs a new one without need."""
    replies = iter([200, 500, 403, 200, 429, 200])

    def script(sent: Sent) -> Reply:
        status = next(replies)
        return plus_one(sent) if status == 200 else Reply(status, b'{"message": "no"}')

    client, server = start(script)
    for _ in range(6):
        with contextlib.suppress(TransportError):
            client.fetch_roots(IDS, timestamp=AT)
    assert (len(server.sent), server.connections) == (6, 1)


PAGE = b"<html><body>Bad gateway</body></html>"


@pytest.mark.parametrize(
    ("status", "body", "error", "retryable"),
    [
        (400, b'{"error": "invalid_table_id", "message": "no such table"}', InputError, False),
        (401, b'{"error": "invalid_token"}', AuthorizationError, False),
        (403, b'{"error": "missing_permission"}', AuthorizationError, False),
        (403, b'{"error": "missing_tos"}', AuthorizationError, False),
        (404, PAGE, InputError, False),
        (405, PAGE, TransportError, False),
        (204, b"", TransportError, False),
        (408, PAGE, RetryableError, True),
        (413, PAGE, TooLargeError, True),
        (429, b"{}", RetryableError, True),
        (500, b'{"message": "Traceback"}', TooLargeError, True),
        (502, PAGE, RetryableError, True),
        (503, PAGE, RetryableError, True),
        (504, PAGE, TooLargeError, True),
    ],
)
def test_statuses(start: Start, status: int, body: bytes, error: type[Exception], retryable: bool) -> None:
    """Each status is the error that says what to do next; the message names the table and the server's own word."""
    client, server = start(Reply(status, body))
    for call in (lambda: client.fetch_roots(IDS, timestamp=AT), lambda: client.is_latest(IDS, AT), client.fetch_info):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert isinstance(caught.value, RetryableError) is retryable
        message = str(caught.value)
        assert str(status) in message
        assert "fly_v31" in message
        for word in ("invalid_table_id", "invalid_token", "missing_permission", "missing_tos"):
            assert (word in message) is (word.encode() in body)
    assert len(server.sent) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_refusals_name_the_files(
    start: Start, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A refusal says which files a token is looked for in, and which one it came from."""
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path))
    for token in (SECRET, None):
        client, server = start(Reply(status, b"{}"), token=token)
        with pytest.raises(AuthorizationError) as caught:
            client.fetch_roots(IDS, timestamp=AT)
        host = server.url.removeprefix("http://")
        assert f"{tmp_path}/secrets/{host}-cave-secret.json" in str(caught.value)
        assert f"{tmp_path}/secrets/cave-secret.json" in str(caught.value)
        assert ("/home/me/cave-secret.json" in str(caught.value)) is (token is not None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(start: Start, status: int) -> None:
    """A redirect leads to no second request, with the token or without; one to a log-in page is a refusal."""
    _, elsewhere = start(plus_one)
    address = f"{elsewhere.url}/sticky_auth?redirect=x&secret={SECRET}"
    client, server = start(Reply(status, b"", {"Location": address}))
    kind = TransportError if status in (301, 308) else AuthorizationError
    for call in (lambda: client.fetch_roots(IDS, timestamp=AT), lambda: client.is_latest(IDS, AT), client.fetch_info):
        with pytest.raises(TransportError) as caught:
            call()
        assert type(caught.value) is kind
        assert elsewhere.url.removeprefix("http://") in str(caught.value)
        assert SECRET not in str(caught.value)
    assert (len(server.sent), len(elsewhere.sent)) == (3, 0)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("0.5", 0.5, 0.5), (formatdate(4102444800, usegmt=True), 1e6, 1e10),
     (formatdate(0, usegmt=True), 0, 0)],
)
def test_retry_after(start: Start, header: str, least: float, most: float) -> None:
    """What the server asks to wait is in the error, from seconds and from a date."""
    for status in (429, 503, 504):
        client, _ = start(Reply(status, b"", {"Retry-After": header}))
        with pytest.raises(RetryableError) as caught:
            client.fetch_roots(IDS, timestamp=AT)
        assert caught.value.wait_seconds is not None
        assert least <= caught.value.wait_seconds <= most


@pytest.mark.parametrize("header", ["soon", "-1", "", "1e400", "nan"])
def test_retry_after_that_says_nothing(start: Start, header: str) -> None:
    """A Retry-After that can't be read is none."""
    client, _ = start(Reply(429, b"", {"Retry-After": header}))
    with pytest.raises(RetryableError) as caught:
        client.fetch_roots(IDS, timestamp=AT)
    assert caught.value.wait_seconds is None


def test_info(start: Start) -> None:
    """The info comes from the table's address, whole."""
    body = gzip.compress(b'{"graph": {"n_layers": 9}}')
    client, server = start(Reply(body=body, headers={"Content-Encoding": "gzip"}))
    assert client.fetch_info() == {"graph": {"n_layers": 9}}
    assert (server.sent[0].method, server.sent[0].path) == ("GET", "/segmentation/table/fly_v31/info")
    assert server.sent[0].headers["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("body", "error"),
    [(b"<html>", RetryableError), (b'{"a": 1', RetryableError), (b"", RetryableError), (b"[" * 100_000, RetryableError),
     (b"\xff\xfe{", RetryableError), (b"[1]", InputError), (b"null", InputError)],
)
def test_damaged_info(start: Start, body: bytes, error: type[Exception]) -> None:
    """An info that isn't JSON, or isn't an object, is one of our errors."""
    client, _ = start(Reply(body=body))
    with pytest.raises(error):
        client.fetch_info()


def test_latest_ids_are_exact(start: Start) -> None:
    """Ids above 2^53 are the same integers in the JSON that the server parses, in their order, with repeats."""
    seen: list[Any] = []

    def script(sent: Sent) -> Reply:
        seen.append(json.loads(sent.body))
        return Reply(body=json.dumps({"is_latest": [i % 2 == 1 for i in seen[-1]["node_ids"]]}).encode())

    client, server = start(script)
    latest = client.is_latest(IDS, AT)
    assert latest.dtype == np.bool_
    assert latest.tolist() == [True, True, True, False, True, True]
    assert seen == [{"node_ids": [2**64 - 1, 2**53 + 1, 72057594037927937, 0, 7, 2**53 + 1]}]
    assert (server.sent[0].path, server.sent[0].query) == (
        "/segmentation/api/v1/table/fly_v31/is_latest_roots", {"timestamp": ["1706695200.124"]})
    many = np.arange(2**63, 2**63 + 50_000, dtype=np.uint64)
    assert client.is_latest(many, AT).tolist() == [False, True] * 25_000
    assert server.sent[1].headers["Content-Encoding"] == "gzip"
    assert seen[1]["node_ids"] == many.tolist()


@pytest.mark.parametrize(
    "answer", [{"is_latest": [True]}, {"is_latest": [True] * 7}, {"is_latest": [1, 0, 1, 0, 1, 0]}, {}, [True] * 6,
               None, {"is_latest": "true"}, {"is_latest": {"a": 1}}]
)
def test_damaged_latest(start: Start, answer: Any) -> None:
    """An answer that isn't true or false for each id is asked for again."""
    client, _ = start(Reply(body=json.dumps(answer).encode()))
    with pytest.raises(RetryableError):
        client.is_latest(IDS, AT)


def leaky(sent: Sent) -> list[Reply]:
    """Return answers of a server that repeats the token wherever it can."""
    spill = sent.headers["Authorization"] or ""
    said = json.dumps({"error": spill, "message": f"the header was {spill}"}).encode()
    long = json.dumps({"error": "x" * 140 + spill, "message": spill.replace("3", "3\0")}).encode()
    escaped = b'{"error": "' + "".join(f"\\u{ord(c):04x}" for c in spill).encode() + b'"}'
    headers = {"Location": f"https://login/{spill}", "Retry-After": spill}
    answers = [Reply(status, body, headers) for status in (302, 307, 301, 400, 401, 403, 404, 405, 413, 429, 500, 503)
               for body in (said, escaped, long, spill.encode())]
    return [*answers, Reply(body=spill.encode()), Reply(body=said), Reply(act="reset"), Reply(body=said, cut=5)]


def test_token_is_never_told(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """The token is in no message, traceback, log or pickle, even when the server repeats it in its answers."""
    count = [0]
    client, server = start(lambda sent: leaky(sent)[count[0]])
    told: list[str] = [repr(client), str(vars(client))]
    with caplog.at_level(logging.DEBUG):
        while count[0] < 52:
            for call in (lambda: client.fetch_roots(IDS, timestamp=AT), lambda: client.is_latest(IDS, AT),
                         client.fetch_info):
                try:
                    call()
                except (TransportError, InputError) as error:
                    told += traceback.format_exception(error)
                    told += [repr(error), repr(pickle.dumps(error)), str(vars(error))]
            count[0] += 1
    assert len(server.sent) == 156
    assert caplog.text
    assert SECRET not in "".join(told) + caplog.text + "".join(str(record.__dict__) for record in caplog.records)


def test_too_large_survives_pickling() -> None:
    """The error crosses process borders with its kind and wait."""
    error = pickle.loads(pickle.dumps(TooLargeError("t: the server answered 413", 3.0)))
    assert (type(error), str(error), error.wait_seconds) == (TooLargeError, "t: the server answered 413", 3.0)


def test_threads_share_a_client(start: Start) -> None:
    """Calls from several threads at once get their own answers."""
    client, server = start(plus_one)
    wrong: list[int] = []

    def ask(first: int) -> None:
        for n in range(20):
            ids = np.arange(first + n, first + n + 50, dtype=np.uint64)
            if not np.array_equal(client.fetch_roots(ids, timestamp=AT), ids + np.uint64(1)):
                wrong.append(first)

    threads = [threading.Thread(target=ask, args=(k * 1000,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert client.traffic.requests == len(server.sent) == 120
