"""The server double, held to what was seen on real servers (the golden table)."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import urllib3

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.graph_info import Version
from voxelprobe.testing.graph_model import ChunkedGraph, GraphLayout
from voxelprobe.testing.graph_server import GraphServer

LAYOUT = GraphLayout((64, 64, 16), 5, (7, 3, 100))
LAYER2_CREATED, CREATED, SPLIT, MERGE = 900.0, 1000.0, 2000.25, 3000.5
# Supervoxels: A and B of one object in one chunk, C of it in another, D and E of another object.
A, B, C, D, E = (int(LAYOUT.encode(1, chunk, segment)[0])
                 for chunk, segment in [((0, 0, 0), 1), ((0, 0, 0), 2), ((5, 1, 0), 1), ((0, 0, 0), 3), ((2, 2, 2), 1)])
UNKNOWN = [int(LAYOUT.encode(1, (1, 1, 1), segment)[0]) for segment in (7, 8)]
OPTIONS = {"data_dir": "gs://bucket/ws", "watershed_info": {"type": "segmentation", "scales": [{"key": "8_8_40"}]}}


@dataclasses.dataclass(frozen=True)
class Edited:
    """A graph with a split (A off) and a merge (A with D and E), and its roots by hand."""

    graph: ChunkedGraph
    first: int
    second: int
    off: int
    rest: int
    joined: int


def edit_graph() -> Edited:
    graph = ChunkedGraph.from_supervoxels([E, D, C, B, A], ["q", "q", "p", "p", "p"], layout=LAYOUT, created=CREATED,
                                          layer2_created=LAYER2_CREATED)
    first, second = (int(graph.roots_at([node], CREATED)[0]) for node in (A, D))
    off, rest = graph.split(first, [A], at=SPLIT)
    return Edited(graph, first, second, off, rest, graph.merge([off, second], at=MERGE))


@pytest.fixture(scope="module")
def edited() -> Edited:
    return edit_graph()


@pytest.fixture(params=[2, 3])
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


@pytest.fixture
def server(edited: Edited, version: Version) -> Iterator[GraphServer]:
    with GraphServer(edited.graph, version=version, **OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as pool:
        yield pool


@pytest.fixture
def call(server: GraphServer, http: urllib3.PoolManager) -> Callable[..., Any]:
    def request(method: str, name: str, body: Any = None, headers: dict[str, str] | None = None, **query: Any) -> Any:
        text = "&".join(f"{key}={value}" for key, value in query.items())
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        url = f"{server.url}/segmentation/api/v1/table/probe/{name}?{text}"
        return http.request(method, url, body=data, headers=headers)

    return request


@pytest.fixture
def ask(call: Callable[..., Any]) -> Callable[..., list[int]]:
    def roots(ids: list[int], timestamp: float = 5000, **query: Any) -> list[int]:
        answer = call("POST", "roots_binary", np.array(ids, "<u8").tobytes(), timestamp=timestamp, **query)
        assert answer.status == 200
        return np.frombuffer(answer.data, "<u8").tolist()

    return roots


# The golden table: what is asked of it, and what versions 2 and 3 answer.
GOLDEN: dict[str, Callable[[Edited], tuple[list[int], float, list[int], list[int]]]] = {
    "0 anywhere": lambda e: ([A, 0, C, 0], 1500, [e.first, 0, e.first, 0], [e.first, 0, e.first, 0]),
    "0 alone": lambda e: ([0, 0], 1500, [0, 0], [0, 0]),
    "unknown beside known": lambda e: ([UNKNOWN[0], A], 1500, [0, e.first], [0, e.first]),
    "unknown only": lambda e: (UNKNOWN, 1500, UNKNOWN, [0, 0]),
    "unknown and 0": lambda e: ([0, UNKNOWN[0]], 1500, [0, UNKNOWN[0]], [0, 0]),
    "before the graph": lambda e: ([A, D], 899.999, [A, D], [0, 0]),
    "a root": lambda e: ([e.joined], 5000, [e.joined], [e.joined]),
    "an outdated root": lambda e: ([e.first, A], 5000, [e.first, e.joined], [e.first, e.joined]),
    "a root that is not there": lambda e: ([(5 << 56) + 99], 1500, [(5 << 56) + 99], [(5 << 56) + 99]),
    "middle of ingest": lambda e: ([A, B, C], 950, layer2(e, [A, B, C]), [0, 0, 0]),
    "middle of ingest, one unknown": lambda e: ([A, UNKNOWN[0]], 950, [*layer2(e, [A]), 0], [0, 0]),
    "the future": lambda e: ([A, B, C], 4e9, [e.joined, e.rest, e.rest], [e.joined, e.rest, e.rest]),
    "repeats, any order": lambda e: ([E, A, A, B, E], 1500, [e.second, e.first, e.first, e.first, e.second],
                                     [e.second, e.first, e.first, e.first, e.second]),
    "a millisecond before the split": lambda e: ([A, B], SPLIT - 0.001, [e.first] * 2, [e.first] * 2),
    "the split's own millisecond": lambda e: ([A, B], SPLIT, [e.off, e.rest], [e.off, e.rest]),
    "less than a millisecond before": lambda e: ([A], SPLIT - 0.0001, [e.first], [e.first]),
    "the merge": lambda e: ([A, B, C, D, E], MERGE, [e.joined, e.rest, e.rest, e.joined, e.joined],
                            [e.joined, e.rest, e.rest, e.joined, e.joined]),
}


def layer2(edited: Edited, ids: list[int]) -> list[int]:
    nodes = edited.graph.roots_at(ids, LAYER2_CREATED, stop_layer=2)
    assert (LAYOUT.layers(nodes) == 2).all()
    return nodes.tolist()


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_table(edited: Edited, version: Version, ask: Callable[..., list[int]], case: str) -> None:
    """Each line of the golden table is answered as the real servers of both versions do."""
    ids, timestamp, *answers = GOLDEN[case](edited)
    assert ask(ids, timestamp) == answers[version - 2]


def test_empty_body_is_answered_with_none(call: Callable[..., Any]) -> None:
    """No ids give 200 and an empty body."""
    answer = call("POST", "roots_binary", b"")
    assert (answer.status, answer.data) == (200, b"")


@pytest.mark.parametrize(("body", "query"), [(b"1234567", {}), (bytes(8), {"stop_layer": 6}),
                                             (bytes(8), {"stop_layer": "root"}), (b"\x1f\x8b", {})])
def test_server_errors_are_json_with_a_traceback(call: Callable[..., Any], body: bytes, query: dict[str, Any]) -> None:
    """A body that is no whole number of ids, and a layer that isn't there, are 500 with a traceback."""
    answer = call("POST", "roots_binary", body, **query)
    assert answer.status == 500
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["traceback"]


@pytest.mark.parametrize("damage", [lambda body: bytes(8), lambda body: body[:-9], lambda body: b"",
                                    lambda body: body[:12] + bytes([body[12] ^ 0xFF]) + body[13:]])
def test_damaged_gzip_is_a_server_error(call: Callable[..., Any], damage: Callable[[bytes], bytes]) -> None:
    """A body that says gzip and is none, or a damaged one, is 500; an empty one is empty."""
    body = damage(gzip.compress(np.arange(1000, dtype="<u8").tobytes()))
    assert call("POST", "roots_binary", body, {"Content-Encoding": "gzip"}).status == (500 if body else 200)


@pytest.mark.parametrize("text", ["2020-01-01T00:00:00Z", "now", "", "nan"])
def test_timestamps_are_unix_seconds(call: Callable[..., Any], text: str) -> None:
    """Any timestamp that is no number of seconds is 400, in JSON."""
    answer = call("POST", "roots_binary", np.array([A], "<u8").tobytes(), timestamp=text)
    assert (answer.status, answer.json()["code"]) == (400, 400)


def test_without_a_timestamp_now_is_meant(edited: Edited, call: Callable[..., Any]) -> None:
    """No timestamp asks for the current state."""
    answer = call("POST", "roots_binary", np.array([A, B], "<u8").tobytes())
    assert np.frombuffer(answer.data, "<u8").tolist() == [edited.joined, edited.rest]
    assert answer.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("layer", [1, 2, 3, 4, 5])
def test_stop_layer(edited: Edited, ask: Callable[..., list[int]], layer: int) -> None:
    """`stop_layer` gives the node of that layer in the chunk that holds the supervoxel, and its root is the same."""
    for timestamp in (CREATED, SPLIT, MERGE):
        nodes = np.array(ask([A, B, C, D, E], timestamp, stop_layer=layer), np.uint64)
        assert (LAYOUT.layers(nodes) == layer).all()
        below = LAYOUT.chunks(np.array([A, B, C, D, E], np.uint64), 1) >> max(0, layer - 2)
        np.testing.assert_array_equal(LAYOUT.chunks(nodes, layer), below)
        assert ask(nodes.tolist(), timestamp) == edited.graph.roots_at([A, B, C, D, E], timestamp).tolist()


def test_gzip_both_ways(edited: Edited, server: GraphServer, http: urllib3.PoolManager) -> None:
    """Bodies may come gzipped, and answers are where the client takes that, only there."""
    url = f"{server.url}/segmentation/api/v1/table/probe/roots_binary?timestamp=1500"
    body = np.array([A, D], "<u8").tobytes()
    want = np.array([edited.first, edited.second], "<u8").tobytes()
    for sent, accepted in itertools.product(["gzip", None], ["gzip;q=1, identity;q=0.1", "identity", "gzip;q=0", None]):
        headers = {"Content-Encoding": sent} if sent else {}
        headers |= {"Accept-Encoding": accepted} if accepted else {}
        answer = http.request("POST", url, body=gzip.compress(body) if sent else body, headers=headers,
                              decode_content=False)
        packed = accepted is not None and accepted.startswith("gzip;q=1")
        assert answer.headers.get("Content-Encoding") == ("gzip" if packed else None)
        assert (gzip.decompress(answer.data) if packed else answer.data) == want
        assert server.requests[-1].ids.tolist() == [A, D]
        assert server.requests[-1].encoding == sent


def test_roots_in_json(edited: Edited, call: Callable[..., Any]) -> None:
    """`roots` and `node/ID/root` answer as `roots_binary`, in JSON with whole numbers."""
    assert call("POST", "roots", {"node_ids": [A, 0]}, timestamp=1500).json() == {"root_ids": [edited.first, 0]}
    assert call("GET", f"node/{A}/root", timestamp=1500).json() == {"root_id": edited.first}


def test_is_latest_roots(edited: Edited, call: Callable[..., Any]) -> None:
    """Outdated, unknown and future roots and 0 are not the latest; an edit counts from the millisecond after it."""
    ids = {"node_ids": [edited.first, edited.second, edited.off, edited.joined, (5 << 56) + 99, 0, A]}
    for at, latest in {1500.0: (1, 1, 0, 0), SPLIT: (1, 1, 0, 0), SPLIT + 0.001: (0, 1, 1, 0),
                       MERGE + 0.001: (0, 0, 0, 1), 4e9: (0, 0, 0, 1)}.items():
        answer = call("POST", "is_latest_roots", ids, timestamp=at).json()
        assert answer == {"is_latest": [*map(bool, latest), False, False, False]}


def test_delta_roots(edited: Edited, version: Version, call: Callable[..., Any]) -> None:
    """An old root stands once for each new one; an interval without edits fails on version 2."""
    both = call("GET", "delta_roots", timestamp_past=1500, timestamp_future=5000).json()
    assert both == {"old_roots": [edited.first, edited.first, edited.off, edited.second],
                    "new_roots": [edited.off, edited.rest, edited.joined]}
    one = call("GET", "delta_roots", timestamp_past=SPLIT, timestamp_future=MERGE).json()
    assert one["new_roots"] == [edited.off, edited.rest] + [edited.joined] * (version == 3)
    assert call("GET", "delta_roots", timestamp_past=1, timestamp_future=2).status == {2: 500, 3: 200}[version]
    assert call("GET", "delta_roots").status == 400


def test_timestamps_of_roots(edited: Edited, call: Callable[..., Any]) -> None:
    """Roots have the time of their making; asked for the latest, the time of their end, or the time asked about."""
    ids = {"node_ids": [edited.first, edited.off, edited.joined]}
    assert call("POST", "root_timestamps", ids).json() == {"timestamp": [CREATED, SPLIT, MERGE]}
    assert call("POST", "root_timestamps", ids, latest=True, timestamp=5000).json()["timestamp"] == [SPLIT, MERGE, 5000]
    assert call("POST", "root_timestamps", {"node_ids": [edited.first, 5]}).status == 500
    assert call("POST", "root_timestamps", {"node_ids": [5]}).json() == {"timestamp": []}


def test_oldest_timestamp(call: Callable[..., Any], server: GraphServer) -> None:
    """The oldest time is half a second before the first edit; a graph never edited has none."""
    assert call("GET", "oldest_timestamp").json() == {"iso": "1970-01-01 00:33:19.750000+00:00"}
    server.api.graph = ChunkedGraph.from_supervoxels([A], [1], layout=LAYOUT, created=CREATED)
    assert call("GET", "oldest_timestamp").status == 500


def test_info(server: GraphServer, version: Version, http: urllib3.PoolManager) -> None:
    """The info is the watershed's with the graph's section; only version 3 speaks of OCDBT."""
    info = http.request("GET", f"{server.url}/segmentation/table/probe/info").json()
    assert info["scales"] == [{"key": "8_8_40"}]
    assert info["data_dir"] == "gs://bucket/ws"
    assert info["chunks_start_at_voxel_offset"] is True
    assert info["app"] == {"supported_api_versions": [0, 1]}
    graph = info["graph"]
    assert ("ocdbt_seg" in graph, "ocdbt_path" in graph) == (version == 3, version == 3)
    assert (graph["chunk_size"], graph["n_layers"], graph["n_bits_for_layer_id"], graph["cv_mip"]) == (
        [64, 64, 16], 5, 8, 0)
    assert graph["spatial_bit_masks"] == {"1": 10, "2": 10, "3": 9, "4": 8, "5": 7}


def test_auth(edited: Edited, http: urllib3.PoolManager) -> None:
    """Without a token a redirect to a login page, with a bad one 401, then an unknown table 400, a refusal 403."""
    with GraphServer(edited.graph, token="abc123", refusal="missing_permission", **OPTIONS) as server:
        url = f"{server.url}/segmentation/table/probe/info"
        away = http.request("GET", url, redirect=False)
        assert away.status == 302
        assert http.request("GET", away.headers["Location"]).headers["Content-Type"].startswith("text/html")
        bad = http.request("GET", url, headers={"Authorization": "Bearer wrong"})
        assert (bad.status, bad.json()["error"]) == (401, "invalid_token")
        good = {"Authorization": "Bearer abc123"}
        other = http.request("GET", url.replace("probe", "other"), headers=good)
        assert (other.status, other.json()["error"]) == (400, "invalid_table_id")
        for refusal in ("missing_permission", "missing_tos"):
            server.api.refusal = refusal
            refused = http.request("GET", url, headers=good)
            assert (refused.status, refused.json()["error"]) == (403, refusal)
        server.api.refusal = None
        assert http.request("GET", url, headers=good).status == 200
        assert [request.authorized for request in server.requests] == [False, False, *[True] * 5]


@pytest.mark.parametrize(("fault", "kind", "found"), [
    (Fault("status", 500), "application/json", b"traceback"),
    *((Fault("status", status), "text/html", str(status).encode()) for status in (413, 502, 503, 504)),
    (Fault("status", 429, retry_after=2), "text/html", b"Too Many"),
    (Fault("status", 302), "text/html", b"302"),
], ids=lambda value: str(getattr(value, "status", "")))
def test_faulty_answers(server: GraphServer, call: Callable[..., Any], fault: Fault, kind: str, found: bytes) -> None:
    """Planned failures come as a real server or the proxy before it sends them, then it heals."""
    body = np.array([A], "<u8").tobytes()
    server.fail("*roots_binary", fault)
    answer = call("POST", "roots_binary", body, redirect=False)
    assert answer.status == fault.status
    assert answer.headers["Content-Type"].startswith(kind)
    assert found in answer.data
    assert answer.headers.get("Retry-After") == ("2" if fault.retry_after else None)
    assert ("Location" in answer.headers) == (fault.status == 302)
    assert call("POST", "roots_binary", body).status == 200
    assert (server.ids_asked, server.ids_answered) == (2, 1)


def test_broken_answers(server: GraphServer, ask: Callable[..., list[int]], edited: Edited) -> None:
    """Connections are reset, bodies cut short, answers damaged and stalled as planned."""
    for kind in ("reset", "short_body"):
        server.fail("*roots_binary", Fault(kind))
        with pytest.raises(urllib3.exceptions.ProtocolError):
            ask([A, B])
    for kind in ("stall", "stall_body"):
        server.fail("*roots_binary", Fault(kind, seconds=0.02))
        assert ask([A, B], 1500) == [edited.first] * 2
    server.fail("*roots_binary", Fault("truncated"))
    assert ask([A, B], 1500) == [edited.first]
    server.fail("*roots_binary", Fault("flipped"), times=None)
    assert ask([A, B], 1500) != [edited.first] * 2
    server.heal()
    assert ask([A, B], 1500) == [edited.first] * 2
    assert (server.ids_asked, server.ids_answered) == (14, 6)


def test_body_limit(server: GraphServer, call: Callable[..., Any]) -> None:
    """Bodies above the limit, as they were sent, are refused by the proxy; below it they pass."""
    body = np.full(1000, A, "<u8").tobytes()
    server.max_body_bytes = 7999
    refused = call("POST", "roots_binary", body)
    assert (refused.status, refused.headers["Content-Type"][:9]) == (413, "text/html")
    assert call("POST", "roots_binary", gzip.compress(body), {"Content-Encoding": "gzip"}).status == 200
    server.max_body_bytes = 8000
    assert call("POST", "roots_binary", body).status == 200


def test_counters(server: GraphServer, ask: Callable[..., list[int]]) -> None:
    """Every call is recorded with its ids, and the most at once."""
    server.latency_seconds = 0.05
    threads = [threading.Thread(target=ask, args=([A, n],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 < server.peak_in_flight <= 3
    assert sorted(request.ids.tolist() for request in server.calls("roots_binary")) == [[A, n] for n in range(3)]
    assert server.calls("roots_binary")[0].query == {"timestamp": "5000"}
    assert (server.ids_asked, server.bytes_received, server.bytes_sent) == (6, 48, 48)
    server.clear()
    assert (server.ids_asked, server.calls("roots_binary"), server.peak_in_flight) == (0, [], 0)


def test_closing_doesnt_wait_for_stalled_calls(edited: Edited) -> None:
    """The end of the with block ends what is stalled, at once."""
    with GraphServer(edited.graph, latency_seconds=60, **OPTIONS) as server:
        url = f"{server.url}/segmentation/table/probe/info"

        def ask() -> None:
            with pytest.raises(urllib3.exceptions.HTTPError):
                urllib3.request("GET", url, retries=False)
            lost.set()

        lost = threading.Event()
        asking = threading.Thread(target=ask)
        asking.start()
        while not server.requests:
            time.sleep(0.001)
    asking.join(5)
    assert lost.is_set()


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/", 404), ("GET", "/segmentation/table/probe/roots_binary", 404),
    ("GET", "/segmentation/api/version", 200), ("GET", "/segmentation/api/v1/table/probe/info", 404),
    ("GET", "/segmentation/api/v1/table/probe/roots_binary", 405), ("GET", "/segmentation/api/v1/table/probe/no", 404)])
def test_other_paths(server: GraphServer, http: urllib3.PoolManager, method: str, path: str, status: int) -> None:
    """What the server doesn't have is not found."""
    assert http.request(method, server.url + path).status == status


@pytest.mark.parametrize("at", [CREATED, MERGE])
def test_edits_that_make_no_sense_are_refused(at: float) -> None:
    """Edits come after the last one, of current roots, and split off some of a root's own supervoxels."""
    edited = edit_graph()
    with pytest.raises(ValueError, match="forward in time"):
        edited.graph.merge([edited.joined, edited.rest], at=at)
    with pytest.raises(ValueError, match="current roots"):
        edited.graph.merge([edited.first, edited.rest], at=4000)
    for parts in ([B, C], [A], [], [B, A]):
        with pytest.raises(ValueError, match="to split root"):
            edited.graph.split(edited.rest, parts, at=4000)
