"""Damaged answers of a graph server, and none: what comes back is an error that asks again, never other ids."""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import pytest

from voxelprobe.errors import InputError
from voxelprobe.graphene.refusals import TooLargeError
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.testing.scripted_graph_server import MakeClient, Reply, Sent, plus_one
from voxelprobe.transport.protocol import RetryableError

AT = Timestamp(1706695200123)
IDS = np.array([2**64 - 1, 2**53 + 1, 72057594037927937, 0, 7, 2**53 + 1], np.uint64)


@pytest.mark.parametrize("encoding", ["", "gzip"])
@pytest.mark.parametrize("difference", [-8, -1, 1, 8, -8 * len(IDS), 100_000])
def test_length_of_the_answer(graph_client: MakeClient, difference: int, encoding: str) -> None:
    """An answer that isn't eight bytes an id is no answer, however long, and the next one is read from its start."""
    first = [True]

    def script(sent: Sent) -> Reply:
        body = plus_one(sent).body
        if first.pop() if first else False:
            body = (body + bytes(max(0, difference)))[: len(body) + difference]
        return Reply(body=gzip.compress(body) if encoding else body, headers={"Content-Encoding": encoding})

    client, _ = graph_client(script)
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
def test_damaged_answers(graph_client: MakeClient, reply: Reply) -> None:
    """A body that ends early, a reset, damaged gzip, and a page in place of ids are asked for again."""
    client, _ = graph_client(reply)
    with pytest.raises(RetryableError) as caught:
        client.fetch_roots(IDS, timestamp=AT)
    assert not isinstance(caught.value, TooLargeError)


def test_bomb_is_not_unpacked(graph_client: MakeClient) -> None:
    """A small answer that unpacks to gigabytes is cut off at the length that was expected."""
    import tracemalloc

    bomb = gzip.compress(bytes(200 << 20), 9)
    client, _ = graph_client(Reply(body=bomb, headers={"Content-Encoding": "gzip"}))
    tracemalloc.start()
    with pytest.raises(RetryableError, match="more than"):
        client.fetch_roots(IDS, timestamp=AT)
    assert tracemalloc.get_traced_memory()[1] < 30 << 20
    tracemalloc.stop()


def test_stalled_server(graph_client: MakeClient) -> None:
    """A server that says nothing is given up after the timeout, and fewer ids may pass."""
    client, _ = graph_client(Reply(act="stall"), read_timeout_seconds=0.2)
    with pytest.raises(TooLargeError, match="no answer in time"):
        client.fetch_roots(IDS, timestamp=AT)


def test_nobody_listens(graph_client: MakeClient) -> None:
    """A refused connection may pass later."""
    client, server = graph_client(plus_one)
    server.stop()
    with pytest.raises(RetryableError, match="roots_binary"):
        client.fetch_roots(IDS, timestamp=AT)


@pytest.mark.parametrize(
    ("body", "error"),
    [(b"<html>", RetryableError), (b'{"a": 1', RetryableError), (b"", RetryableError), (b"[" * 100_000, RetryableError),
     (b"\xff\xfe{", RetryableError), (b"[1]", InputError), (b"null", InputError)],
)
def test_damaged_info(graph_client: MakeClient, body: bytes, error: type[Exception]) -> None:
    """An info that isn't JSON, or isn't an object, is one of our errors."""
    client, _ = graph_client(Reply(body=body))
    with pytest.raises(error):
        client.fetch_info()


@pytest.mark.parametrize(
    "answer", [{"is_latest": [True]}, {"is_latest": [True] * 7}, {"is_latest": [1, 0, 1, 0, 1, 0]}, {}, [True] * 6,
               None, {"is_latest": "true"}, {"is_latest": {"a": 1}}]
)
def test_damaged_latest(graph_client: MakeClient, answer: Any) -> None:
    """An answer that isn't true or false for each id is asked for again."""
    client, _ = graph_client(Reply(body=json.dumps(answer).encode()))
    with pytest.raises(RetryableError):
        client.is_latest(IDS, AT)
