"""Client and resolving against the server double: its graph's roots, whatever goes wrong on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe.arrays import UInt64
from voxelprobe.errors import AuthorizationError, InputError, TransportError
from voxelprobe.graphene.client import GraphClient
from voxelprobe.graphene.ids import GraphLayout, parse_graph
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.graphene.tokens import find_token
from voxelprobe.graphene.url import parse_graphene_url
from voxelprobe.resolving import ResolvedRoots, find_latest_roots, resolve_roots
from voxelprobe.testing.faults import Fault
from voxelprobe.testing.graph_layout import GraphLayout as DoubleLayout
from voxelprobe.testing.graph_model import ChunkedGraph
from voxelprobe.testing.graph_server import GraphServer

LAYOUT = DoubleLayout((64, 64, 16), 5, (7, 3, 100))
LAYER2, CREATED, SPLIT, MERGE = 1_600_000_000.0, 1_600_000_100.0, 1_600_000_200.25, 1_600_000_300.5
OPTIONS: dict[str, Any] = {"data_dir": "gs://bucket/ws", "watershed_info": {"scales": []}}
TIMES = [CREATED, SPLIT - 0.001, SPLIT, MERGE - 0.001, MERGE, MERGE + 1e6]


def build_graph() -> tuple[ChunkedGraph, UInt64]:
    """Return a graph of 40 objects with a split and a merge, and its supervoxels in no order."""
    rng = np.random.default_rng(3)
    chunks = rng.integers(0, 8, (900, 3))
    ids = np.unique(LAYOUT.encode(1, chunks, rng.integers(1, 1000, 900)))
    objects = rng.integers(0, 40, len(ids))
    graph = ChunkedGraph.from_supervoxels(ids, objects, layout=LAYOUT, created=CREATED, layer2_created=LAYER2)
    first, second = (int(graph.roots_at(ids[objects == n][:1], CREATED)[0]) for n in (0, 1))
    off, _ = graph.split(first, ids[objects == 0][:3], at=SPLIT)
    graph.merge([off, second], at=MERGE)
    return graph, rng.permutation(ids)


@pytest.fixture(scope="module")
def world() -> tuple[ChunkedGraph, UInt64]:
    return build_graph()


@pytest.fixture(params=[2, 3])
def server(world: tuple[ChunkedGraph, UInt64], request: pytest.FixtureRequest) -> Iterator[GraphServer]:
    with GraphServer(world[0], version=request.param, **OPTIONS) as double:
        yield double


Resolve = Callable[..., ResolvedRoots]


@pytest.fixture
def resolve(server: GraphServer) -> Iterator[Resolve]:
    with closing(client_of(server)) as client:
        layout = parse_graph(client.fetch_info(), server.cloudpath)

        def run(ids: UInt64, at: float, *, stop_layer: int | None = None, batch_size: int = 100) -> ResolvedRoots:
            stamp = Timestamp(round(at * 1000))
            return resolve_roots(
                ids, fetch=lambda piece: client.fetch_roots(piece, timestamp=stamp, stop_layer=stop_layer),
                layout=layout, stop_layer=stop_layer, batch_size=batch_size, concurrency=3, attempts=4,
                sleep=lambda seconds: None,
            )

        yield run


def client_of(server: GraphServer, read_timeout_seconds: float = 10.0) -> GraphClient:
    """Return a client with the token that is found for the server."""
    url = parse_graphene_url(server.cloudpath)
    return GraphClient(url, token=find_token(url.host), connections=3, read_timeout_seconds=read_timeout_seconds)


def test_info_of_the_double(server: GraphServer) -> None:
    """The double's info is a layout that decodes its ids as it does."""
    with closing(client_of(server)) as client:
        layout = parse_graph(client.fetch_info(), server.cloudpath)
    assert (layout.chunk_size, layout.n_layers) == (LAYOUT.chunk_size, LAYOUT.n_layers)
    assert isinstance(layout, GraphLayout)
    chunks = np.array([[3, 1, 900], [0, 0, 0], [7, 1000, 5]])
    ids = LAYOUT.encode(1, chunks, [5, 6, 7])
    np.testing.assert_array_equal(layout.chunks_of(ids), chunks)
    assert layout.layers_of(LAYOUT.encode(3, (1, 1, 1), [4])).tolist() == [3]
    voxels = np.random.default_rng(4).integers((7, 3, 100), 5000, (50, 3))
    np.testing.assert_array_equal(layout.expected_chunks(voxels, LAYOUT.voxel_offset), LAYOUT.chunks_of_voxels(voxels))


@pytest.mark.parametrize("at", TIMES)
@pytest.mark.parametrize("stop_layer", [None, 2, 3])
def test_roots_at_times(
    server: GraphServer, resolve: Resolve, world: tuple[ChunkedGraph, UInt64], at: float, stop_layer: int | None
) -> None:
    """Around a split and a merge the roots are the graph's, to the millisecond; each supervoxel is sent once."""
    graph, ids = world
    found = resolve(np.tile(ids, 2), at, stop_layer=stop_layer)
    np.testing.assert_array_equal(found.roots, np.tile(graph.roots_at(ids, at, stop_layer=stop_layer), 2))
    assert found.resolved.all()
    assert server.ids_asked == found.asked == len(ids)


def test_what_has_no_root(resolve: Resolve, world: tuple[ChunkedGraph, UInt64]) -> None:
    """Unknown ids have no root, alone (version 2 echoes them) and beside known ones; roots are their own, even old."""
    graph, ids = world
    unknown = LAYOUT.encode(1, (9, 9, 9), range(1, 8))
    assert not resolve(unknown, MERGE).resolved.any()
    mixed = resolve(np.concatenate([unknown, ids[:20], np.zeros(2, np.uint64)]), MERGE)
    assert mixed.resolved.tolist() == [False] * 7 + [True] * 22
    assert mixed.roots[:7].tolist() == [0] * 7
    old = graph.roots_at(ids[:5], CREATED)
    assert resolve(old, MERGE).roots.tolist() == old.tolist()


@pytest.mark.parametrize("at", [LAYER2 - 1, LAYER2 + 1])
def test_before_the_graph(resolve: Resolve, world: tuple[ChunkedGraph, UInt64], at: float) -> None:
    """Before the graph (echoes) and in the middle of its ingest (layer 2) nothing has a root."""
    found = resolve(world[1], at)
    assert not found.resolved.any()
    assert not found.roots.any()


@pytest.mark.parametrize(
    "fault",
    [Fault("status", 413), Fault("status", 500), Fault("status", 504), Fault("status", 429, retry_after=1),
     Fault("status", 502), Fault("status", 503), Fault("reset"), Fault("short_body"), Fault("truncated")],
)
def test_faults_that_pass(
    server: GraphServer, resolve: Resolve, world: tuple[ChunkedGraph, UInt64], fault: Fault
) -> None:
    """After each passing fault the roots are the same."""
    graph, ids = world
    server.fail("*roots_binary", fault, times=3, skip=1)
    np.testing.assert_array_equal(resolve(ids, MERGE).roots, graph.roots_at(ids, MERGE))
    assert server.ids_answered == len(ids)


@pytest.mark.parametrize(
    ("status", "error"), [(302, AuthorizationError), (401, AuthorizationError), (403, AuthorizationError),
                          (404, InputError), (400, InputError), (502, TransportError), (500, TransportError)]
)
def test_faults_that_stay(
    server: GraphServer, resolve: Resolve, world: tuple[ChunkedGraph, UInt64], status: int, error: type[Exception]
) -> None:
    """What stays is the error that says what to do, soon for what no other try mends."""
    server.fail("*roots_binary", Fault("status", status), times=None)
    with pytest.raises(error, match=str(status)):
        resolve(world[1], MERGE)
    if status < 500:
        assert len(server.calls("roots_binary")) <= 3


def test_body_limit(server: GraphServer, resolve: Resolve, world: tuple[ChunkedGraph, UInt64]) -> None:
    """Behind a proxy with a limit the requests shrink until they pass it."""
    graph, ids = world
    server.max_body_bytes = 500
    np.testing.assert_array_equal(resolve(ids, MERGE, batch_size=10_000).roots, graph.roots_at(ids, MERGE))
    assert server.ids_answered == len(ids)


def test_slow_server(server: GraphServer, world: tuple[ChunkedGraph, UInt64]) -> None:
    """A stall in the middle of an answer ends with the timeout."""
    server.fail("*roots_binary", Fault("stall_body", seconds=30))
    with closing(client_of(server, read_timeout_seconds=0.2)) as client:
        begin = time.monotonic()
        with pytest.raises(TransportError, match="no answer in time"):
            client.fetch_roots(world[1], timestamp=Timestamp(1_600_000_500_000))
        assert time.monotonic() - begin < 5


def test_latest_roots(server: GraphServer, world: tuple[ChunkedGraph, UInt64]) -> None:
    """Roots that an edit replaced are found, at the edit's time and not before."""
    graph, ids = world
    roots = np.unique(graph.roots_at(ids, CREATED))
    with closing(client_of(server)) as client:
        layout = parse_graph(client.fetch_info(), server.cloudpath)
        for at, outdated in ((SPLIT - 0.001, 0), (SPLIT, 1), (MERGE, 2)):
            stamp = Timestamp(round(at * 1000))
            latest = find_latest_roots(
                roots, ask=partial(client.is_latest, timestamp=stamp), layout=layout,
                batch_size=7, concurrency=2, sleep=lambda seconds: None)
            # What a refresh rests on: the latest are those that supervoxels have as roots at that time.
            np.testing.assert_array_equal(latest, np.isin(roots, graph.roots_at(ids, at)))
            assert np.count_nonzero(~latest) == outdated


def test_tokens(world: tuple[ChunkedGraph, UInt64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that asks for a token is satisfied by its file's; without it or with another, the file is named."""
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path))
    (tmp_path / "secrets").mkdir()
    with GraphServer(world[0], token="cafe0123", **OPTIONS) as server:
        path = tmp_path / "secrets" / f"{server.url.removeprefix('http://')}-cave-secret.json"
        for content, passes in ((None, False), ('{"token": "beef4567"}', False), ('{"token": "cafe0123"}', True)):
            if content is not None:
                path.write_text(content)
            with closing(client_of(server)) as client:
                if passes:
                    assert "graph" in client.fetch_info()
                    continue
                calls: list[Callable[[], object]] = [
                    client.fetch_info, partial(client.fetch_roots, world[1], timestamp=Timestamp(0))]
                for call in calls:
                    with pytest.raises(AuthorizationError) as caught:
                        call()
                    assert str(path) in str(caught.value)
                    assert "beef4567" not in str(caught.value)
