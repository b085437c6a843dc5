"""The graph server's client: what goes over the wire, and what comes back where nothing is wrong."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from typing import Any

import numpy as np
import pytest

from voxelprobe.errors import TransportError
from voxelprobe.graphene.client import GZIP_BYTES
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.testing.scripted_graph_server import SECRET, MakeClient, Reply, Sent, plus_one

AT = Timestamp(1706695200123)
IDS = np.array([2**64 - 1, 2**53 + 1, 72057594037927937, 0, 7, 2**53 + 1], np.uint64)


def test_roots_request(graph_client: MakeClient) -> None:
    """Ids go as little-endian uint64 with the time in unix seconds, the token, and nothing that asserts roots."""
    client, server = graph_client(plus_one)
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


def test_stop_layer_is_sent(graph_client: MakeClient) -> None:
    """A layer goes along when one is wanted."""
    client, server = graph_client(plus_one)
    client.fetch_roots(IDS, timestamp=AT, stop_layer=2)
    assert server.sent[0].query == {"timestamp": ["1706695200.123"], "stop_layer": ["2"]}


def test_without_a_token(graph_client: MakeClient) -> None:
    """A server that asks for no token gets none."""
    client, server = graph_client(plus_one, token=None)
    assert len(client.fetch_roots(IDS, timestamp=AT)) == len(IDS)
    assert server.sent[0].headers["Authorization"] is None


def test_memory_of_the_ids_does_not_matter(graph_client: MakeClient) -> None:
    """Ids with gaps in memory, as columns of a table may be, are the same ids."""
    client, _ = graph_client(plus_one)
    ids = np.repeat(IDS, 2)[::2]
    np.testing.assert_array_equal(client.fetch_roots(ids, timestamp=AT), IDS + np.uint64(1))


def test_no_ids_no_request(graph_client: MakeClient) -> None:
    """Nothing to ask for is answered here."""
    client, server = graph_client(plus_one)
    assert client.fetch_roots(IDS[:0], timestamp=AT).dtype == np.uint64
    assert client.is_latest(IDS[:0], AT).dtype == np.bool_
    assert not server.sent


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_other_dtypes_are_refused(graph_client: MakeClient, dtype: type) -> None:
    """Ids are never converted from signed numbers or floats."""
    client, server = graph_client(plus_one)
    for call in (lambda: client.fetch_roots(np.ones(3, dtype), timestamp=AT),  # type: ignore[arg-type]
                 lambda: client.is_latest(np.ones(3, dtype), AT)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="uint64"):
            call()
    assert not server.sent


@pytest.mark.parametrize(("count", "packed"), [(GZIP_BYTES // 8 - 1, False), (GZIP_BYTES // 8, True), (30_000, True)])
def test_gzip_both_ways(graph_client: MakeClient, count: int, packed: bool) -> None:
    """Large questions go gzipped and small ones plain; a gzipped answer is the same answer."""

    def script(sent: Sent) -> Reply:
        body = plus_one(sent).body
        return Reply(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})

    client, server = graph_client(script)
    ids = np.arange(count, dtype=np.uint64) * np.uint64(3) + np.uint64(2**56)
    np.testing.assert_array_equal(client.fetch_roots(ids, timestamp=AT), ids + np.uint64(1))
    assert (server.sent[0].headers["Content-Encoding"] == "gzip") is packed
    assert (len(server.sent[0].raw) < 8 * count) is packed


def test_connections_are_kept(graph_client: MakeClient) -> None:
    """Answers of every kind leave the connection usable: no request costs a new one without need."""
    replies = iter([200, 500, 403, 200, 429, 200])

    def script(sent: Sent) -> Reply:
        status = next(replies)
        return plus_one(sent) if status == 200 else Reply(status, b'{"message": "no"}')

    client, server = graph_client(script)
    for _ in range(6):
        with contextlib.suppress(TransportError):
            client.fetch_roots(IDS, timestamp=AT)
    assert (len(server.sent), server.connections) == (6, 1)


def test_info(graph_client: MakeClient) -> None:
    """The info comes from the table's address, whole."""
    body = gzip.compress(b'{"graph": {"n_layers": 9}}')
    client, server = graph_client(Reply(body=body, headers={"Content-Encoding": "gzip"}))
    assert client.fetch_info() == {"graph": {"n_layers": 9}}
    assert (server.sent[0].method, server.sent[0].path) == ("GET", "/segmentation/table/fly_v31/info")
    assert server.sent[0].headers["Authorization"] == f"Bearer {SECRET}"


def test_latest_ids_are_exact(graph_client: MakeClient) -> None:
    """Ids above 2^53 are the same integers in the JSON that the server parses, in their order, with repeats."""
    seen: list[Any] = []

    def script(sent: Sent) -> Reply:
        seen.append(json.loads(sent.body))
        return Reply(body=json.dumps({"is_latest": [i % 2 == 1 for i in seen[-1]["node_ids"]]}).encode())

    client, server = graph_client(script)
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


def test_threads_share_a_client(graph_client: MakeClient) -> None:
    """Calls from several threads at once get their own answers."""
    client, server = graph_client(plus_one)
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
