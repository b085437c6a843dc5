"""Supervoxels and roots of the command line: the graph's truth, and CloudVolume's, before and after edits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.graph_model import ChunkedGraph, Watershed, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.segmentation import neurite_segmentation

SHAPE, OFFSET, POINTS = (192, 160, 96), (100, 203, 31), 200_000
CREATED, SPLIT, MERGE = 1_600_000_000.0, 1_650_000_000.125, 1_700_000_000.5
# CloudVolume asks for whole seconds only.
TIMES = [SPLIT - 0.125, SPLIT + 0.875, MERGE + 0.5]
CLOUD_VOLUME = """
import json, sys
from cloudvolume import CloudVolume
asked = json.load(sys.stdin)
points = [tuple(point) for point in asked["points"]]
volume = CloudVolume(asked["cloudpath"], progress=False, lru_bytes=int(1e8))
def read(**options):
    values = volume.scattered_points(points, **options)
    return [int(values[point]) for point in points]
json.dump([read(agglomerate=False)] + [read(agglomerate=True, timestamp=at) for at in asked["times"]], sys.stdout)
"""


class World(NamedTuple):
    """A watershed that CloudVolume wrote, behind a store; its graph with a split and a merge; points in all of it."""

    watershed: Watershed
    graph: ChunkedGraph
    store: HttpStore
    info: dict[str, Any]
    voxels: Any
    points: Path

    @property
    def truth(self) -> Any:
        """Return the supervoxel under each point."""
        return self.watershed.labels[tuple((self.voxels - OFFSET).T)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> Iterator[World]:
    from cloudvolume import CloudVolume

    folder = tmp_path_factory.mktemp("graphene")
    segmentation = neurite_segmentation(SHAPE, seed=3)
    watershed = graphene_watershed(segmentation, (64, 64, 32), voxel_offset=OFFSET, piece_size=(16, 16, 16))
    CloudVolume.from_numpy(watershed.labels, vol_path=f"file://{folder}/ws", resolution=(8, 8, 40),
                           voxel_offset=OFFSET, chunk_size=(32, 32, 16), layer_type="segmentation",
                           encoding="compressed_segmentation", compress="gzip")
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    roots, counts = np.unique(graph.roots_at(watershed.ids, CREATED), return_counts=True)
    large, second = (int(root) for root in roots[np.argsort(-counts)[:2]])
    off, _ = graph.split(large, graph.members(large)[::2], at=SPLIT)
    graph.merge([off, second], at=MERGE)
    voxels = np.random.default_rng(8).integers(0, SHAPE, (POINTS, 3)) + OFFSET
    with HttpStore(folder / "ws") as store:
        info = json.loads((folder / "ws/info").read_text())
        yield World(watershed, graph, store, info, voxels, write_points(folder / "p.parquet", voxels))


def times_of(*folders: Path) -> dict[str, int]:
    """Return the time of change of every file below some folders."""
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


def sample_at_times(world: World, cli: Any) -> dict[float, pa.Table]:
    """Return the results at `TIMES`, of one workspace; that each costs what it should is asserted on the way."""
    found, unique = {}, np.unique(world.truth[world.truth != 0])
    with GraphServer(world.graph, data_dir=world.store.url, watershed_info=world.info) as server:
        for at in TIMES:
            server.clear()
            world.store.clear()
            first = not found
            before = {} if first else times_of(cli.run_folder / "labels", cli.run_folder / "plan")
            output = cli.folder / f"{at}.parquet"
            outcome = cli.run(volume=server.cloudpath, points=world.points, timestamp=at, output=output, workers=2)
            assert outcome.code == 0, outcome.err
            calls = server.calls("roots_binary")
            sent = np.concatenate([call.ids for call in calls])
            # A supervoxel at the border of two groups is asked for by both.
            assert len(unique) <= len(sent) <= len(unique) * 1.05
            assert np.array_equal(np.unique(sent), unique)
            assert all((np.diff(call.ids.astype(object)) > 0).all() for call in calls)
            assert sorted({request.path.rsplit("/", 1)[1] for request in server.requests}) == ["info", "roots_binary"]
            assert len(server.calls("info")) == 1
            if not first:
                assert world.store.requests == []
                assert times_of(cli.run_folder / "labels", cli.run_folder / "plan") == before
            found[at] = pq.read_table(output)
    return found


def read_with_cloud_volume(world: World, some: Any, folder: Path) -> tuple[list[int], list[list[int]]]:
    """Return the supervoxels of some points, and their roots at `TIMES`, as CloudVolume reads them."""
    (folder / "secrets").mkdir()
    (folder / "secrets/cave-secret.json").write_text('{"token": "0123456789abcdef"}')
    own = {"HOME": str(folder), "CLOUD_VOLUME_DIR": str(folder), "CLOUD_FILES_DIR": str(folder),
           "PATH": os.environ["PATH"], "NO_PROXY": "*"}
    with GraphServer(world.graph, data_dir=world.store.folder) as server:
        asked = {"cloudpath": server.cloudpath, "points": world.voxels[some].tolist(), "times": TIMES}
        ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CLOUD_VOLUME], env=own, input=json.dumps(asked),
                               cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    supervoxels, *roots = json.loads(ended.stdout)
    return supervoxels, roots


def test_supervoxels_and_roots_around_edits(world: World, cli: Any, tmp_path: Path) -> None:
    """Around a split and a merge 200,000 points have the graph's supervoxels and roots, and CloudVolume's.

    A later time asks for each supervoxel once and for nothing else: no chunk is read and no label written again.
    """
    tables = sample_at_times(world, cli)
    for at, table in tables.items():
        assert table.column_names == ["x", "y", "z", "supervoxel_id", "root_id", "status"]
        assert table.schema.field("root_id").type == table.schema.field("supervoxel_id").type == pa.uint64()
        assert np.array_equal(table["supervoxel_id"].to_numpy(), world.truth)
        assert np.array_equal(table["root_id"].to_numpy(), world.graph.roots_at(world.truth, at))
        assert table["status"].unique().to_pylist() == ["ok"]
    assert (world.truth == 0).any()
    assert len({table["root_id"].to_numpy().tobytes() for table in tables.values()}) == 3
    # The metadata say where the roots are from.
    written = [json.loads(table.schema.metadata[b"voxelprobe"]) for table in tables.values()]
    assert [about["timestamp"] for about in written] == \
        ["2022-04-15T05:20:00.000Z", "2022-04-15T05:20:01.000Z", "2023-11-14T22:13:21.000Z"]
    assert {(about["volume"], about["stop_layer"]) for about in written} == {(world.store.url, None)}
    assert all(about["graphene"].startswith("graphene://http://127.0.0.1:") for about in written)
    # Points of what was edited, and others.
    edited = tables[TIMES[0]]["root_id"].to_numpy() != tables[TIMES[2]]["root_id"].to_numpy()
    some = np.concatenate([np.flatnonzero(edited)[:100], np.arange(300)])
    supervoxels, roots = read_with_cloud_volume(world, some, tmp_path)
    for at, theirs in zip(TIMES, roots, strict=True):
        assert tables[at]["supervoxel_id"].to_numpy()[some].tolist() == supervoxels
        assert tables[at]["root_id"].to_numpy()[some].tolist() == theirs
