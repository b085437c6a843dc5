"""Roots and what is already there: after a kill, a damaged chunk or another time, only the rest is asked for."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.volumes import write_volume

# Groups are made of whole graph chunks here: no supervoxel is in two of them.
SHAPE, CHUNK = (80, 64, 48), (16, 16, 16)
CREATED = 1_600_000_000.0
DAMAGED = "8_8_40/16-32_16-32_0-16.gz"


class World(NamedTuple):
    """A watershed, a server of its graph, and points in all of it."""

    labels: Any
    graph: ChunkedGraph
    server: GraphServer
    folder: Path
    voxels: Any
    points: Path

    @property
    def truth(self) -> Any:
        """Return the supervoxel under each point."""
        return self.labels[tuple(self.voxels.T)]

    @property
    def unique(self) -> set[int]:
        """Return the supervoxels that have to be asked for."""
        return set(self.truth.tolist()) - {0}

    def asked(self) -> list[int]:
        """Return every supervoxel that the server was asked for."""
        return [int(one) for call in self.server.calls("roots_binary") for one in call.ids]

    def check(self, path: Path, at: float = CREATED) -> None:
        """The table has the truth."""
        table = pq.read_table(path)
        assert table["supervoxel_id"].to_pylist() == self.truth.tolist()
        assert table["root_id"].to_pylist() == self.graph.roots_at(self.truth, at).tolist()


@pytest.fixture
def world(tmp_path: Path, write_points: Any) -> Iterator[World]:
    few = np.random.default_rng(1).integers(0, 40, [n // 4 for n in SHAPE])
    segmentation = few.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64)
    watershed = graphene_watershed(segmentation, CHUNK)
    write_volume(tmp_path / "ws", watershed.labels, chunk_size=CHUNK, resolution=(8, 8, 40), compress="gzip")
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    voxels = np.random.default_rng(2).integers(0, SHAPE, (5000, 3))
    with GraphServer(graph, data_dir=tmp_path / "ws") as server:
        yield World(watershed.labels, graph, server, tmp_path / "ws", voxels,
                    write_points(tmp_path / "p.npy", voxels))


def count_kept(folder: Path) -> int:
    """Return how many ids' roots a run has: a group that is done has its file, one under way a file a batch."""
    batches, groups = folder.glob("roots/2*/*.parts/[0-9]*.npy"), folder.glob("roots/2*/group-*.json")
    return (sum(np.load(path).shape[1] for path in batches)
            + sum(json.loads(path.read_text())["facts"]["asked"] for path in groups))


@pytest.mark.parametrize(("answered", "workers", "timestamp"), [(4, 1, None), (9, 2, CREATED)])
def test_killed_in_resolve(answered: int, workers: int, timestamp: float | None, world: World, cli: Any,
                           other_cli: Any, wait_until: Any) -> None:
    """Killed with -9 in resolve, the same command asks for the rest, at the same time, and ends with the same table."""
    command: dict[str, Any] = {"volume": world.server.cloudpath, "points": world.points, "workers": workers}
    command |= {} if timestamp is None else {"timestamp": timestamp}
    world.server.fail("*roots_binary", Fault("stall", seconds=600), times=None, skip=answered)
    process = cli.start(**command, graphene_batch_size=100)
    wait_until(lambda: len(world.server.calls("roots_binary")) > answered, "a request that stalls", pause=0.01)
    calls = world.server.calls("roots_binary")
    sent = sum(len(call.ids) for call in calls[:answered])
    wait_until(lambda: count_kept(cli.run_folder) == sent, "the answered batches to be kept", pause=0.01)
    assert world.server.peak_in_flight <= 2
    assert cli.kill(process).code == -signal.SIGKILL
    assert not list(cli.run_folder.glob("result*"))
    kept, moments = {int(one) for call in calls[:answered] for one in call.ids}, {calls[0].query["timestamp"]}
    world.server.heal()
    world.server.clear()
    outcome = cli.run(**command, graphene_batch_size=70)
    assert outcome.code == 0, outcome.err
    asked = world.asked()
    assert len(asked) == len(set(asked))
    assert set(asked) == world.unique - kept
    assert {call.query["timestamp"] for call in world.server.calls("roots_binary")} == moments
    (result,) = cli.run_folder.glob("result*.parquet")
    world.check(result)
    assert list(cli.run_folder.glob("roots/**/*.parts")) == list(cli.run_folder.rglob(".tmp-*")) == []
    seconds = float(moments.pop())
    assert other_cli.run(**command | {"timestamp": seconds, "workers": 1}).code == 0
    assert (other_cli.run_folder / result.name).read_bytes() == result.read_bytes()


def test_now_is_one_moment_of_a_run(world: World, cli: Any) -> None:
    """`now` is the moment at which a run was first asked for it: written down, in the metadata, and kept."""
    command = {"volume": world.server.cloudpath, "points": world.points}
    outcome = cli.run(**command)
    assert outcome.code == 0, outcome.err
    pinned = json.loads((cli.run_folder / "roots/now.json").read_text())
    (result,) = cli.run_folder.glob("result*.parquet")
    assert json.loads(pq.read_schema(result).metadata[b"voxelprobe"])["timestamp"] == pinned["timestamp"]
    assert {call.query["timestamp"] for call in world.server.calls("roots_binary")} == \
        {f"{pinned['milliseconds'] / 1000:.3f}"}
    # A split since then is not seen by the same command, nor does it ask.
    world.server.clear()
    outcome = cli.run(**command, timestamp="NOW")
    assert outcome.code == 0, outcome.err
    assert "nothing to do" in outcome.err
    assert world.asked() == []
    outcome = cli.run(**command, timestamp=pinned["timestamp"])
    assert "nothing to do" in outcome.err
    assert [path.name for path in cli.run_folder.glob("result*")] == [result.name]


def test_a_chunk_that_is_corrupt(world: World, cli: Any, other_cli: Any) -> None:
    """The rest is resolved and the run ends badly; with the chunk whole again its supervoxels alone are asked for."""
    file = world.folder / DAMAGED
    inside = (world.voxels // CHUNK == (1, 1, 0)).all(axis=1)
    command = {"volume": world.server.cloudpath, "points": world.points, "timestamp": CREATED}
    assert other_cli.run(**command).code == 0
    good = file.read_bytes()
    file.write_bytes(gzip.compress(gzip.decompress(good)[:-100], mtime=0))
    world.server.clear()
    outcome = cli.run(**command)
    assert outcome.code != 0
    assert "Traceback" not in outcome.err
    assert f"1 corrupt chunk left {inside.sum()} points without a label" in outcome.err
    result = cli.run_folder / "result-20200913T122640.000Z.parquet"
    table = pq.read_table(result)
    assert table["status"].to_pylist() == ["corrupt_chunk" if bad else "ok" for bad in inside]
    roots = world.graph.roots_at(world.truth, CREATED).astype(object)
    assert table["root_id"].to_pylist() == np.where(inside, None, roots).tolist()
    of_chunk = set(world.truth[inside].tolist()) - {0}
    assert set(world.asked()) == world.unique - of_chunk
    file.write_bytes(good)
    world.server.clear()
    outcome = cli.run(**command)
    assert outcome.code == 0, outcome.err
    assert sorted(world.asked()) == sorted(of_chunk)
    assert result.read_bytes() == (other_cli.run_folder / result.name).read_bytes()


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_roots_that_were_damaged(damage: str, world: World, cli: Any) -> None:
    """Where a group's roots are gone or cut they are asked for again, with no harm to what is beside them."""
    command = {"volume": world.server.cloudpath, "points": world.points, "timestamp": CREATED}
    assert cli.run(**command).code == 0
    result = cli.run_folder / "result-20200913T122640.000Z.parquet"
    before = result.read_bytes()
    file = cli.run_folder / "roots/20200913T122640.000Z/group-001.parquet"
    content = file.read_bytes()[:-10]
    file.unlink()
    if damage == "cut":
        file.write_bytes(content)
    result.unlink()
    world.server.clear()
    outcome = cli.run(**command)
    assert outcome.code == 0, outcome.err
    assert 0 < len(world.asked()) < len(world.unique)
    assert result.read_bytes() == before
