"""What a graph server refuses: the error each status becomes, what it says, and that it never tells the token."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest

from voxelprobe.errors import AuthorizationError, InputError, TransportError
from voxelprobe.graphene.refusals import TooLargeError
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.testing.scripted_graph_server import SECRET, MakeClient, Reply, Sent, plus_one
from voxelprobe.transport.protocol import RetryableError

AT = Timestamp(1706695200123)
IDS = np.array([2**64 - 1, 2**53 + 1, 72057594037927937, 0, 7, 2**53 + 1], np.uint64)
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
def test_statuses(graph_client: MakeClient, status: int, body: bytes, error: type[Exception], retryable: bool) -> None:
    """Each status is the error that says what to do next; the message names the table and the server's own word."""
    client, server = graph_client(Reply(status, body))
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
    graph_client: MakeClient, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A refusal says which files a token is looked for in, and which one it came from."""
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path))
    for token in (SECRET, None):
        client, server = graph_client(Reply(status, b"{}"), token=token)
        with pytest.raises(AuthorizationError) as caught:
            client.fetch_roots(IDS, timestamp=AT)
        host = server.url.removeprefix("http://")
        assert f"{tmp_path}/secrets/{host}-cave-secret.json" in str(caught.value)
        assert f"{tmp_path}/secrets/cave-secret.json" in str(caught.value)
        assert ("/home/me/cave-secret.json" in str(caught.value)) is (token is not None)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(graph_client: MakeClient, status: int) -> None:
    """A redirect leads to no second request, with the token or without; one to a log-in page is a refusal."""
    _, elsewhere = graph_client(plus_one)
    address = f"{elsewhere.url}/sticky_auth?redirect=x&secret={SECRET}"
    client, server = graph_client(Reply(status, b"", {"Location": address}))
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
def test_retry_after(graph_client: MakeClient, header: str, least: float, most: float) -> None:
    """What the server asks to wait is in the error, from seconds and from a date."""
    for status in (429, 503, 504):
        client, _ = graph_client(Reply(status, b"", {"Retry-After": header}))
        with pytest.raises(RetryableError) as caught:
            client.fetch_roots(IDS, timestamp=AT)
        assert caught.value.wait_seconds is not None
        assert least <= caught.value.wait_seconds <= most


@pytest.mark.parametrize("header", ["soon", "-1", "", "1e400", "nan"])
def test_retry_after_that_says_nothing(graph_client: MakeClient, header: str) -> None:
    """A Retry-After that can't be read is none."""
    client, _ = graph_client(Reply(429, b"", {"Retry-After": header}))
    with pytest.raises(RetryableError) as caught:
        client.fetch_roots(IDS, timestamp=AT)
    assert caught.value.wait_seconds is None


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


def test_token_is_never_told(graph_client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    """The token is in no message, traceback, log or pickle, even when the server repeats it in its answers."""
    count = [0]
    client, server = graph_client(lambda sent: leaky(sent)[count[0]])
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
