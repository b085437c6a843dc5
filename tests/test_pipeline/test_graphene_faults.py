"""Graph servers that fail or refuse: what is got over, what ends the run at once, and what stays of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK, OFFSET = (64, 64, 48), (16, 16, 16), (100, 200, 30)
CREATED = 1_600_000_000.0
# Waits between tries are as long as the jitter has it: none at all.
NO_WAITS = """
import random
random.uniform = lambda low, high: 0.0
"""


class World(NamedTuple):
    """A watershed behind a store, its graph, and points in all of it."""

    labels: Any
    graph: ChunkedGraph
    store: HttpStore
    info: dict[str, Any]
    voxels: Any
    points: Path

    @property
    def truth(self) -> Any:
        """Return the supervoxel under each point."""
        return self.labels[tuple((self.voxels - OFFSET).T)]

    def serve(self, **options: Any) -> GraphServer:
        """Return a server of the graph."""
        return GraphServer(self.graph, data_dir=self.store.url, watershed_info=self.info, **options)

    def check(self, cli: Any, outcome: Any) -> None:
        """The command ended well and the table has the truth."""
        assert outcome.code == 0, outcome.err
        table = pq.read_table(cli.run_folder / "result-20200913T122640.000Z.parquet")
        assert table["supervoxel_id"].to_pylist() == self.truth.tolist()
        assert table["root_id"].to_pylist() == self.graph.roots_at(self.truth, CREATED).tolist()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("graphene")
    few = np.random.default_rng(1).integers(0, 40, [n // 4 for n in SHAPE])
    segmentation = few.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64)
    watershed = graphene_watershed(segmentation, CHUNK, voxel_offset=OFFSET)
    info = write_volume(folder / "ws", watershed.labels, chunk_size=CHUNK, voxel_offset=OFFSET, compress="gzip",
                        resolution=(8, 8, 40))
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    voxels = np.random.default_rng(2).integers(0, SHAPE, (3000, 3)) + OFFSET
    with HttpStore(folder / "ws") as store:
        yield World(watershed.labels, graph, store, info, voxels, write_points(folder / "p.npy", voxels))


@pytest.fixture
def server(world: World) -> Iterator[GraphServer]:
    with world.serve() as double:
        yield double


def check_refused(outcome: Any, *expected: str) -> None:
    """A command that failed says all of `expected`, once, and shows no traceback."""
    assert outcome.code not in (0, None), outcome.err
    assert "Traceback" not in outcome.err + outcome.out, outcome.err
    for text in expected:
        assert outcome.err.count(text) == 1, f"{text!r} isn't once in:\n{outcome.err}"


FAULTS = {
    "429 without a time": (Fault("status", status=429), 2),
    "500 in JSON": (Fault("status", status=500), 1),
    "502": (Fault("status", status=502), 3),
    "503": (Fault("status", status=503), 3),
    "504": (Fault("status", status=504), 1),
    "connection reset": (Fault("reset"), 2),
    "short body": (Fault("short_body"), 1),
    "truncated body": (Fault("truncated"), 1),
    "flipped byte in a gzip body": (Fault("flipped"), 1),
    "slow body": (Fault("stall_body", seconds=0.5), 1),
    "slow answer": (Fault("stall", seconds=0.5), 1),
}


@pytest.mark.parametrize(("path", "name"), [
    *(("*roots_binary", name) for name in FAULTS),
    ("*info", "503"), ("*info", "504"), ("*info", "connection reset"), ("*info", "short body"),
])
def test_passing_faults_are_got_over(name: str, path: str, world: World, server: GraphServer, cli: Any,
                                     shim: Any) -> None:
    """A fault that another try mends is tried again, and every id is answered once."""
    fault, times = FAULTS[name]
    server.fail(path, fault, times=times, skip=int(path == "*roots_binary"))
    outcome = cli.run(volume=server.cloudpath, points=world.points, timestamp=CREATED, env=shim(NO_WAITS))
    world.check(cli, outcome)
    assert server.ids_answered == len(np.unique(world.truth)) - 1
    answered_well = fault.kind.startswith("stall")
    calls = server.calls(path.removeprefix("*"))
    assert len(calls) > times or answered_well
    report = json.loads((cli.run_folder / "report.json").read_text())
    assert report["resolve"]["asked"] == server.ids_answered


def test_a_server_that_says_how_long_to_wait(world: World, server: GraphServer, cli: Any, shim: Any) -> None:
    """After 429 with Retry-After the server is left alone for that long."""
    server.fail("*roots_binary", Fault("status", status=429, retry_after=2))
    begun = time.monotonic()
    world.check(cli, cli.run(volume=server.cloudpath, points=world.points, timestamp=CREATED, env=shim(NO_WAITS)))
    assert time.monotonic() - begun >= 2
    first, second, *_ = server.calls("roots_binary")
    assert first.ids.tolist() == second.ids.tolist()


def test_bodies_that_are_too_large(world: World, cli: Any, shim: Any) -> None:
    """Where 413 says that a batch is too large it is halved until it fits, and stays so."""
    limit = 300
    with world.serve(max_body_bytes=limit) as server:
        world.check(cli, cli.run(volume=server.cloudpath, points=world.points, timestamp=CREATED, env=shim(NO_WAITS)))
        calls = server.calls("roots_binary")
        sizes = [len(call.ids) for call in calls if call.body_bytes > limit]
        assert sizes[1:4] == [sizes[0] // 2, sizes[0] // 4, sizes[0] // 8]
        # Each group finds out, and then a larger size is tried again now and then.
        assert len(sizes) < len(calls) / 3
        assert server.ids_answered == len(np.unique(world.truth)) - 1


def test_a_server_that_stays_down(world: World, server: GraphServer, cli: Any, shim: Any) -> None:
    """After all tries the run ends, with the reason, for every group; the answered batches stay for the next one."""
    server.fail("*roots_binary", Fault("status", status=503), times=None, skip=3)
    command = {"volume": server.cloudpath, "points": world.points, "timestamp": CREATED, "graphene_batch_size": 50}
    outcome = cli.run(**command, env=shim(NO_WAITS))
    url = f"{server.url}/segmentation/api/v1/table/probe/roots_binary"
    check_refused(outcome, f"{url}: the server answered 503 (tried 10 times)")
    assert "group 1 was not resolved, since group 0 failed (see above)" in outcome.err
    # Two requests at once, and none for the groups after the first that failed.
    assert len(server.calls("roots_binary")) <= 3 + 2 * 10
    assert not list(cli.run_folder.glob("result*"))
    kept = {int(one) for call in server.calls("roots_binary")[:3] for one in call.ids}
    server.heal()
    server.clear()
    world.check(cli, cli.run(**command))
    asked = [int(one) for call in server.calls("roots_binary") for one in call.ids]
    assert sorted(asked) == sorted(set(world.truth.tolist()) - {0} - kept)
    assert not list(cli.run_folder.rglob("failed-*"))


REFUSALS = {
    302: ("to log in", "-cave-secret.json", "/chunkedgraph-secret.json"), 401: ("401", "-cave-secret.json"),
    403: ("403", "-cave-secret.json"), 400: ("400", "is 'probe' the table's name?"),
    404: ("404", "is 'probe' the table's name?"),
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_ends_the_run_at_once(status: int, world: World, server: GraphServer, cli: Any) -> None:
    """A refusal is not tried again, nor by another group, and the message says what would mend it."""
    server.fail("*roots_binary", Fault("status", status=status), times=None)
    outcome = cli.run(volume=server.cloudpath, points=world.points, timestamp=CREATED)
    check_refused(outcome, f"/roots_binary: the server answered {status}")
    for text in REFUSALS[status]:
        assert text in outcome.err
    if status < 400 or status in (401, 403):
        assert f"{cli.home}/.cloudvolume/secrets/{server.url.removeprefix('http://')}-cave-secret.json" in outcome.err
    assert "group 1 was not resolved, since group 0 failed (see above)" in outcome.err
    assert [request.path.rsplit("/", 1)[1] for request in server.requests] == ["info", "roots_binary"]


def test_a_watershed_of_another_graph(world: World, cli: Any, tmp_path: Path) -> None:
    """Supervoxels that aren't of their points' graph chunks end the run, with their share, before it asks."""
    write_volume(tmp_path / "ws", np.roll(world.labels, 5, axis=0), chunk_size=CHUNK, voxel_offset=OFFSET,
                 resolution=(8, 8, 40))
    with GraphServer(world.graph, data_dir=tmp_path / "ws") as server:
        outcome = cli.run(volume=server.cloudpath, points=world.points, timestamp=CREATED)
        check_refused(outcome, "of the graph chunk that their point is in", "the graph server was not asked")
        # 5 of 16 columns of each chunk have another's labels.
        share = re.search(r"([0-9.]+)% of [0-9,]+ supervoxels of group 0", outcome.err)
        assert share is not None
        assert 20 < float(share[1]) < 40
        assert server.calls("roots_binary") == []


def test_supervoxels_that_may_have_been_split(world: World, cli: Any) -> None:
    """A graph whose info has ocdbt_seg is read, and the run says once that its labels are those of the original."""
    with world.serve(ocdbt_seg=True) as server:
        outcome = cli.run(volume=server.cloudpath, points=world.points, timestamp=CREATED, workers=2)
        world.check(cli, outcome)
        assert outcome.err.count("ocdbt_seg is true") == 1
        assert world.store.url in outcome.err
