"""What a point of a graphene volume may come to: no root, another layer, the background, nothing at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from voxelprobe.testing.graph_model import ChunkedGraph, Watershed, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.volumes import write_volume

SHAPE, OFFSET, CHUNK = (64, 48, 32), (100, 203, 31), (32, 16, 16)
LAYER2, CREATED = 1_599_999_000.0, 1_600_000_000.0
SKIPPED = (1, 2, 1)


class World(NamedTuple):
    """A watershed with a chunk missing, a graph that took a while to be made, and points in the watershed."""

    watershed: Watershed
    graph: ChunkedGraph
    folder: Path
    voxels: Any

    def truth(self, voxels: Any) -> Any:
        """Return the supervoxel under each voxel, None outside and in the missing chunk."""
        places = voxels - OFFSET
        inside = ((places >= 0) & (places < SHAPE)).all(axis=1) & ~(places // CHUNK == SKIPPED).all(axis=1)
        found = np.full(len(voxels), None, object)
        found[inside] = self.watershed.labels[tuple(places[inside].T)]
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("graphene") / "ws"
    objects = np.random.default_rng(1).integers(0, 20, [n // 8 for n in SHAPE])
    segmentation = objects.repeat(8, 0).repeat(8, 1).repeat(8, 2).astype(np.uint64)
    watershed = graphene_watershed(segmentation, (16, 16, 16), voxel_offset=OFFSET, piece_size=(4, 8, 8))
    write_volume(folder, watershed.labels, chunk_size=CHUNK, voxel_offset=OFFSET, resolution=(8, 8, 40),
                 skip_chunks={SKIPPED})
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED,
                                          layer2_created=LAYER2)
    inside = np.argwhere(watershed.labels != 0)
    voxels = np.random.default_rng(2).choice(inside[(inside // CHUNK != SKIPPED).any(axis=1)], 3000) + OFFSET
    return World(watershed, graph, folder, voxels)


@pytest.fixture(params=[2, 3])
def server(world: World, request: pytest.FixtureRequest) -> Iterator[GraphServer]:
    with GraphServer(world.graph, data_dir=world.folder, version=request.param) as double:
        yield double


@pytest.fixture
def server3(world: World) -> Iterator[GraphServer]:
    with GraphServer(world.graph, data_dir=world.folder) as double:
        yield double


def test_no_root_before_the_graph(world: World, server: GraphServer, cli: Any, tmp_path: Path, write_points: Any,
                                  read_table: Any) -> None:
    """Before the graph was there, and while it was being made, supervoxels are there and roots are not, nor echoes."""
    points = write_points(tmp_path / "p.npy", world.voxels)
    for at in (LAYER2 - 1, LAYER2 + 1):
        server.clear()
        output = tmp_path / f"{at}.parquet"
        outcome = cli.run(volume=server.cloudpath, points=points, timestamp=at, output=output)
        assert outcome.code == 0, outcome.err
        table = read_table(output)
        assert table["supervoxel_id"].to_pylist() == world.truth(world.voxels).tolist()
        assert table["root_id"].null_count == table.num_rows
        assert table["status"].unique().to_pylist() == ["no_root"]
        unique = len(np.unique(table["supervoxel_id"].to_numpy()))
        assert server.ids_asked == unique
        assert f"{unique:,} without a root" in outcome.out
        report = json.loads((cli.run_folder / "report.json").read_text())
        assert report["resolve"]["unresolved"] == unique
        assert report["result"]["status"] == {"no_root": len(world.voxels)}


def test_unknown_supervoxels(world: World, server: GraphServer, cli: Any, tmp_path: Path, write_points: Any,
                             read_table: Any) -> None:
    """Where the graph knows some supervoxels only, the others have no root, also alone in a request."""
    known = world.watershed.ids[: len(world.watershed.ids) // 2]
    server.api.graph = ChunkedGraph.from_supervoxels(known, known % np.uint64(7), layout=world.watershed.layout,
                                                     created=CREATED)
    points = write_points(tmp_path / "p.npy", world.voxels)
    outcome = cli.run(volume=server.cloudpath, points=points, timestamp=CREATED, graphene_batch_size=40,
                      output=tmp_path / "out.parquet")
    assert outcome.code == 0, outcome.err
    table, truth = read_table(tmp_path / "out.parquet"), world.truth(world.voxels).astype(np.uint64)
    roots = server.api.graph.roots_at(truth, CREATED)
    has_root = np.isin(truth, known)
    assert table["root_id"].to_pylist() == np.where(has_root, roots.astype(object), None).tolist()
    assert table["status"].to_pylist() == np.where(has_root, "ok", "no_root").tolist()
    assert table["supervoxel_id"].to_pylist() == truth.tolist()


def test_a_lower_layer(world: World, server3: GraphServer, cli: Any, tmp_path: Path, write_points: Any,
                       read_table: Any) -> None:
    """--stop-layer 2 gives the nodes of layer 2, 1 the supervoxels without a request, and each is a result apart."""
    points = write_points(tmp_path / "p.npy", world.voxels)
    truth = world.truth(world.voxels).astype(np.uint64)
    for layer, calls in ((2, 1), (1, 0)):
        server3.clear()
        outcome = cli.run(volume=server3.cloudpath, points=points, timestamp=CREATED, stop_layer=layer)
        assert outcome.code == 0, outcome.err
        table = read_table(cli.run_folder / f"result-20200913T122640.000Z-layer{layer}.parquet")
        assert table["root_id"].to_pylist() == world.graph.roots_at(truth, CREATED, stop_layer=layer).tolist()
        assert json.loads(table.schema.metadata[b"voxelprobe"])["stop_layer"] == layer
        assert {call.query["stop_layer"] for call in server3.calls("roots_binary")} == ({"2"} if calls else set())
    outcome = cli.run(volume=server3.cloudpath, points=points, timestamp=CREATED, stop_layer=9)
    assert outcome.code != 0
    assert f"stop layer 9: expected 1 to {world.watershed.layout.n_layers}" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("words", [{"no_agglomerate": True}, {"agglomerate": "false"}], ids=str)
def test_supervoxels_only(world: World, server3: GraphServer, cli: Any, words: dict[str, Any], tmp_path: Path,
                          write_points: Any, read_table: Any) -> None:
    """--no-agglomerate gives the supervoxels and asks the graph server for its info and nothing else."""
    points = write_points(tmp_path / "p.npy", world.voxels)
    outcome = cli.run(volume=server3.cloudpath, points=points, **words)
    assert outcome.code == 0, outcome.err
    table = read_table(cli.result)
    assert table.column_names == ["x", "y", "z", "supervoxel_id", "status"]
    assert table["supervoxel_id"].to_pylist() == world.truth(world.voxels).tolist()
    assert "timestamp" not in json.loads(table.schema.metadata[b"voxelprobe"])
    assert [request.path for request in server3.requests] == ["segmentation/table/probe/info"]
    server3.clear()
    output = tmp_path / "roots.parquet"
    before = (cli.run_folder / "labels/group-000.parquet").stat().st_mtime_ns
    assert cli.run(volume=server3.cloudpath, points=points, timestamp=CREATED, output=output).code == 0
    assert (cli.run_folder / "labels/group-000.parquet").stat().st_mtime_ns == before
    assert read_table(output)["supervoxel_id"].equals(table["supervoxel_id"])


def test_every_kind_of_point(world: World, server3: GraphServer, cli: Any, tmp_path: Path, write_points: Any,
                             read_table: Any) -> None:
    """With prefixes, each point has a supervoxel, a root and a status of its own, whatever the other of its row has."""
    rng = np.random.default_rng(5)
    pairs = [rng.integers(np.array(OFFSET) - 5, np.array(OFFSET) + SHAPE + 5, (2000, 3)) for _ in range(2)]
    lost = np.arange(0, 2000, 97)
    columns: dict[str, Any] = {"id": np.arange(2000, dtype=np.uint64) + np.uint64(2**63)}
    for prefix, voxels in zip(("pre_pt", "post_pt"), pairs, strict=True):
        lists = voxels.tolist()
        for row in lost if prefix == "pre_pt" else ():
            lists[row] = None
        columns[f"{prefix}_position"] = pa.array(lists, pa.list_(pa.int64()))
    points = write_points(tmp_path / "synapses.parquet", pa.table(columns))
    outcome = cli.run(volume=server3.cloudpath, points=points, timestamp=CREATED, point_columns="pre_pt,post_pt",
                      output=tmp_path / "out.parquet")
    assert outcome.code == 0, outcome.err
    table = read_table(tmp_path / "out.parquet")
    assert table.column_names == [*columns, *(f"{prefix}_{name}" for prefix in ("pre_pt", "post_pt")
                                              for name in ("supervoxel_id", "root_id", "status"))]
    for prefix, voxels in zip(("pre_pt", "post_pt"), pairs, strict=True):
        truth, places = world.truth(voxels), voxels - OFFSET
        outside = ((places < 0) | (places >= SHAPE)).any(axis=1)
        unread = np.array([label is None for label in truth])
        status = np.where(outside, "out_of_bounds", np.where(unread, "missing_chunk", "ok")).astype(object)
        if prefix == "pre_pt":
            truth[lost], status[lost] = None, "invalid_coordinate"
        roots = truth.copy()
        roots[status == "ok"] = world.graph.roots_at(truth[status == "ok"].astype(np.uint64), CREATED)
        assert set(status) >= {"ok", "out_of_bounds", "missing_chunk"}
        assert (roots[status == "ok"] == 0).any()
        assert table[f"{prefix}_supervoxel_id"].to_pylist() == truth.tolist()
        assert table[f"{prefix}_root_id"].to_pylist() == roots.tolist()
        assert table[f"{prefix}_status"].to_pylist() == status.tolist()
    assert 0 not in server3.calls("roots_binary")[0].ids


def test_every_form_of_the_address_is_one_run(world: World, server3: GraphServer, cli: Any, tmp_path: Path,
                                              write_points: Any) -> None:
    """A table named in another form is the same table: its run is there already."""
    points = write_points(tmp_path / "p.npy", world.voxels)
    assert cli.run(volume=server3.cloudpath, points=points, timestamp=CREATED).code == 0
    server3.clear()
    for form in ("{}/segmentation/api/v1/probe", "middleauth+{}/segmentation/1.0/probe/"):
        outcome = cli.run(volume="graphene://" + form.format(server3.url), points=points, timestamp=CREATED)
        assert outcome.code == 0, outcome.err
        assert "nothing to do" in outcome.err
    assert server3.calls("roots_binary") == []
