"""The time of roots on the command line: what is refused, what is warned of, and what makes a result the same one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK = (32, 32, 16), (16, 16, 16)
CREATED, SPLIT = 1_600_000_000.0, 1_650_000_000.125
# The processes' own zone, which is no one's UTC.
BERLIN = {"TZ": "Europe/Berlin"}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Any:
    few = np.random.default_rng(1).integers(0, 10, [n // 4 for n in SHAPE])
    segmentation = few.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64)
    watershed = graphene_watershed(segmentation, CHUNK)
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    root = int(graph.roots[0])
    graph.split(root, graph.members(root)[:1], at=SPLIT)
    folder = tmp_path_factory.mktemp("graphene") / "ws"
    info = write_volume(folder, watershed.labels, chunk_size=CHUNK, resolution=(8, 8, 40))
    return watershed.labels, graph, folder, info


@pytest.fixture
def store(truth: Any) -> Iterator[HttpStore]:
    with HttpStore(truth[2]) as served:
        yield served


@pytest.fixture
def server(truth: Any, store: HttpStore) -> Iterator[GraphServer]:
    with GraphServer(truth[1], data_dir=store.url, watershed_info=truth[3]) as double:
        yield double


@pytest.fixture(scope="module")
def voxels() -> Any:
    return np.argwhere(np.ones(SHAPE))[::7]


@pytest.fixture(scope="module")
def points(voxels: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> Path:
    return Path(write_points(tmp_path_factory.mktemp("points") / "p.npy", voxels))


REFUSED = {
    "no zone": ("2022-04-15T05:20:00.125", ("names no zone", "read as UTC it is 1650000000.125 "
                "(2022-04-15T05:20:00.125Z)", "zone 1649992800.125 (2022-04-15T03:20:00.125Z)")),
    "the future": ("2999-01-01T00:00:00Z", ("is in the future", "the server would answer with its present state")),
    "milliseconds": ("1650000000125", ("these look like milliseconds",)),
    "no time": ("yesterday", ("expected a time as in 2024-01-31T10:00:00Z",)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_times_that_are_refused(kind: str, server: GraphServer, store: HttpStore, points: Path, cli: Any) -> None:
    """A time that could mean two moments, or none that is past, ends the run before a chunk is fetched."""
    written, expected = REFUSED[kind]
    outcome = cli.run(volume=server.cloudpath, points=points, timestamp=written, env=BERLIN)
    assert outcome.code != 0
    assert "Traceback" not in outcome.err
    for text in (f"timestamp {written!r}", *expected):
        assert outcome.err.count(text) == 1, outcome.err
    assert store.requests == server.calls("roots_binary") == []


def test_one_moment_in_many_words(server: GraphServer, points: Path, voxels: Any, truth: Any, cli: Any) -> None:
    """The same instant in any words is the same result, to the millisecond, wherever the computer is."""
    labels, graph, *_ = truth
    instants = {SPLIT - 0.001: ["2022-04-15T05:20:00.124Z", "2022-04-15 07:20:00.1249+02:00", "1650000000.124"],
                SPLIT: ["1650000000.125", "2022-04-15T05:20:00.125Z"]}
    supervoxels, results = labels[tuple(voxels.T)], []
    for at, (first, *others) in instants.items():
        server.clear()
        outcome = cli.run(volume=server.cloudpath, points=points, timestamp=first, env=BERLIN)
        assert outcome.code == 0, outcome.err
        (new,) = set(cli.run_folder.glob("result*.parquet")) - set(results)
        results.append(new)
        table = pq.read_table(new)
        assert table["root_id"].to_pylist() == graph.roots_at(supervoxels, at).tolist()
        text = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert json.loads(table.schema.metadata[b"voxelprobe"])["timestamp"] == text
        assert [call.query["timestamp"] for call in server.calls("roots_binary")] == [f"{at:.3f}"]
        server.clear()
        for other in others:
            outcome = cli.run(volume=server.cloudpath, points=points, timestamp=other)
            assert f"nothing to do: {new}" in outcome.err
        assert server.calls("roots_binary") == []
    assert not pq.read_table(results[0])["root_id"].equals(pq.read_table(results[1])["root_id"])


@pytest.mark.parametrize(("age", "warned"), [(None, True), (100, True), (400, False)])
def test_a_time_that_is_not_settled(age: float | None, warned: bool, server: GraphServer, points: Path,
                                    cli: Any) -> None:
    """Within five minutes of now the run says once that edits of that time may still be written."""
    timestamp = "now" if age is None else f"{time.time() - age:.3f}"
    outcome = cli.run(volume=server.cloudpath, points=points, timestamp=timestamp)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("edits of that time may still be written") == warned
