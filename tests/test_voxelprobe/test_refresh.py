"""Refreshing a result: the table is that of the later time, and the graph is asked for no more than it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.errors import AuthorizationError, InputError
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.locations import parse_location
from voxelprobe.points import open_points, open_writer
from voxelprobe.run.refresh import RefreshReport, open_old_result, refresh_roots
from voxelprobe.run.refreshing import plan_refresh
from voxelprobe.storage import Folder
from voxelprobe.testing.faults import Fault
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.volumes import write_volume

STATUSES = ["ok", "out_of_bounds", "missing_chunk", "invalid_coordinate", "corrupt_chunk", "no_root"]
WORDS = pa.dictionary(pa.int8(), pa.string())
KEY = b"voxelprobe"
CREATED, SPLIT, MERGE = 1_600_000_000_000, 1_650_000_000_125, 1_700_000_000_500
# The millisecond of an edit, and those beside it.
TIMES = [CREATED - 5000, CREATED, SPLIT - 1, SPLIT, SPLIT + 1, MERGE - 1, MERGE, MERGE + 60_000]


class World(NamedTuple):
    """A graph with a split and a merge, behind a server; some of the supervoxels are unknown to it."""

    graph: ChunkedGraph
    server: GraphServer
    supervoxels: Any
    statuses: Any

    def write(self, path: Path, at: int, prefixes: tuple[str, ...] = ("pre_pt", "post_pt"),
              stop_layer: int | None = None) -> Path:
        """Write the result of `SamplePoints` at a time, in the plainest way."""
        fields: list[pa.Field[Any]] = [pa.field("note", pa.string())]
        columns: list[Any] = [pa.array([f"row {row}" for row in range(len(self.supervoxels))])]
        for number, prefix in enumerate(prefixes):
            stem = f"{prefix}_" if prefix else ""
            ids, states = self.supervoxels[:, number], self.statuses[:, number].copy()
            roots = self.graph.roots_at(ids, at / 1000, stop_layer=stop_layer)
            states[(states == 0) & (roots == 0) & (ids != 0)] = STATUSES.index("no_root")
            fields += [pa.field(f"{stem}supervoxel_id", pa.uint64()), pa.field(f"{stem}root_id", pa.uint64()),
                       pa.field(f"{stem}status", WORDS, nullable=False)]
            columns += [pa.array(ids, mask=~np.isin(states, [0, 5])), pa.array(roots, mask=states != 0),
                        pa.DictionaryArray.from_arrays(states, pa.array(STATUSES))]
        about = {"graphene": self.server.cloudpath, "timestamp": Timestamp(at).text, "stop_layer": stop_layer,
                 "point_columns": ",".join(prefixes) if all(prefixes) else "x,y,z", "run_key": "1"}
        schema = pa.schema(fields).with_metadata({KEY: json.dumps(about, sort_keys=True).encode(), b"own": b"kept"})
        with open_writer(path, schema) as writer:
            writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
        return path

    def refresh(self, path: Path, at: int, output: Path, *, batch_rows: int = 1 << 20) -> RefreshReport:
        """Refresh a table; the changes are beside the output."""
        old = replace(open_old_result(path), table=open_points(path, batch_rows))
        folder = Folder(parse_location(str(output.parent)))
        return refresh_roots(old, Timestamp(at), output=(folder, output.name), batch_size=50, concurrency=2,
                             changes=(folder, f"{output.stem}-changes.parquet"))


@pytest.fixture(scope="module", params=[2, 3], ids=["version 2", "version 3"])
def world(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    rng = np.random.default_rng(1)
    objects = rng.integers(0, 30, (8, 8, 8)).repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64)
    watershed = graphene_watershed(objects, (16, 16, 16))
    folder = tmp_path_factory.mktemp("ws")
    write_volume(folder, watershed.labels, chunk_size=(16, 16, 16), resolution=(8, 8, 40))
    known = watershed.objects != 7
    graph = ChunkedGraph.from_supervoxels(watershed.ids[known], watershed.objects[known], layout=watershed.layout,
                                          created=CREATED / 1000)
    one, two = (int(root) for root in graph.roots[:2])
    off, _ = graph.split(one, graph.members(one)[::2], at=SPLIT / 1000)
    graph.merge([off, two], at=MERGE / 1000)
    statuses = np.where(rng.random((400, 2)) < 0.1, rng.integers(1, 5, (400, 2)), 0).astype(np.int8)
    with GraphServer(graph, data_dir=folder, version=request.param) as server:
        yield World(graph, server, rng.choice(np.append(watershed.ids, np.zeros(9, np.uint64)), (400, 2)), statuses)


def read_changes(path: Path) -> list[tuple[Any, ...]]:
    """Return a change table's rows, sorted."""
    return sorted(tuple(row.values()) for row in pq.read_table(path).to_pylist())


def slow_changes(old: pa.Table, new: pa.Table) -> list[tuple[Any, ...]]:
    """Return what a change table says, from two results."""
    times = [json.loads(table.schema.metadata[KEY])["timestamp"] for table in (old, new)]
    found = []
    for row, (before, after) in enumerate(zip(old.to_pylist(), new.to_pylist(), strict=True)):
        for prefix in ("post_pt", "pre_pt"):
            roots = [side[f"{prefix}_root_id"] for side in (before, after)]
            if roots[0] != roots[1]:
                found.append((row, prefix, before[f"{prefix}_supervoxel_id"], *roots, *times))
    return found


@pytest.mark.parametrize(("then", "now"), list(combinations_with_replacement(TIMES, 2)))
def test_every_pair_of_times(then: int, now: int, world: World, tmp_path: Path) -> None:
    """The new table has the bytes of one sampled then; every root is asked about once, and what it takes resolved."""
    old, expected = world.write(tmp_path / "old.parquet", then), world.write(tmp_path / "expected.parquet", now)
    world.server.clear()
    report = world.refresh(old, now, tmp_path / "new.parquet")
    assert (tmp_path / "new.parquet").read_bytes() == expected.read_bytes()
    before, after = pq.read_table(old), pq.read_table(expected)
    changes = slow_changes(before, after)
    assert read_changes(tmp_path / "new-changes.parquet") == changes
    roots = {root for prefix in ("pre_pt", "post_pt") for root in before[f"{prefix}_root_id"].to_pylist() if root}
    ended = {root for root in roots if world.graph.root_ends([root])[0] * 1000 <= now}
    due = {row[f"{prefix}_supervoxel_id"] for row in before.to_pylist() for prefix in ("pre_pt", "post_pt")
           if row[f"{prefix}_status"] == "no_root" or row[f"{prefix}_root_id"] in ended}
    for call, ids in (("is_latest_roots", roots), ("roots_binary", due)):
        assert sorted(int(one) for request in world.server.calls(call) for one in request.ids) == sorted(ids)
    assert report == RefreshReport(len(roots), len(ended), len(due), len(changes))
    assert (len(changes) > 0) == (then < CREATED <= now or then < SPLIT <= now or then < MERGE <= now)


def test_refreshing_twice_is_refreshing_once(world: World, tmp_path: Path) -> None:
    """A refreshed table can be refreshed, with the bytes that one step would have given."""
    old, expected = (world.write(tmp_path / f"{at}.parquet", at) for at in (CREATED, MERGE))
    world.refresh(old, SPLIT, tmp_path / "half.parquet")
    world.refresh(tmp_path / "half.parquet", MERGE, tmp_path / "new.parquet")
    assert (tmp_path / "new.parquet").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_a_table_of_many_batches(suffix: str, world: World, tmp_path: Path) -> None:
    """However the rows are cut into batches and whatever the format, values and row numbers are the same."""
    old, expected = (world.write(tmp_path / f"{at}.{suffix}", at) for at in (CREATED, MERGE))
    world.refresh(old, MERGE, tmp_path / f"new.{suffix}", batch_rows=7)
    tables = [pa.Table.from_batches(open_points(path).batches()) for path in
              (old, expected, tmp_path / f"new.{suffix}")]
    assert tables[2].equals(tables[1], check_metadata=True)
    assert read_changes(tmp_path / "new-changes.parquet") == slow_changes(tables[0], tables[1])


def test_a_lower_layer(world: World, tmp_path: Path) -> None:
    """Of parents at a lower layer the server can't tell the latest: all are resolved again, at that layer."""
    old, expected = (world.write(tmp_path / f"{at}.parquet", at, stop_layer=2) for at in (CREATED, MERGE))
    world.server.clear()
    world.refresh(old, MERGE, tmp_path / "new.parquet")
    assert (tmp_path / "new.parquet").read_bytes() == expected.read_bytes()
    assert not world.server.calls("is_latest_roots")


def test_other_columns_of_roots_are_the_users(world: World, tmp_path: Path) -> None:
    """A result sampled from another result refreshes its own roots only: the other's are the user's columns."""
    tables = []
    for at in (CREATED, MERGE):
        table = pq.read_table(world.write(tmp_path / f"{at}.parquet", at, ("post_pt",)))
        other = pq.read_table(world.write(tmp_path / "other.parquet", CREATED, ("",)))
        schema = pa.schema([*other.schema, *list(table.schema)[1:]]).with_metadata(table.schema.metadata)
        tables.append(pa.Table.from_arrays([*other.columns, *table.columns[1:]], schema=schema))
    pq.write_table(tables[0], tmp_path / "old.parquet")
    world.refresh(tmp_path / "old.parquet", MERGE, tmp_path / "new.parquet")
    assert pq.read_table(tmp_path / "new.parquet").equals(tables[1], check_metadata=True)
    assert {change[1] for change in read_changes(tmp_path / "new-changes.parquet")} == {"post_pt"}


def test_a_server_that_refuses_leaves_what_was_there(world: World, tmp_path: Path) -> None:
    """When the server refuses half way, the tables of before stay and nothing half-written is left."""
    old, new = world.write(tmp_path / "old.parquet", CREATED), tmp_path / "new.parquet"
    new.write_bytes(b"what was there")
    world.server.fail("*roots_binary", Fault("status", 403))
    with pytest.raises(AuthorizationError):
        world.refresh(old, MERGE, new)
    assert new.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.parquet", "old.parquet"]


def test_two_processes_at_one_refresh(world: World, tmp_path: Path) -> None:
    """The same refresh at the same time in several places ends well everywhere, with the right table."""
    old, expected = (world.write(tmp_path / f"{at}.parquet", at) for at in (CREATED, MERGE))
    plans = [plan_refresh(str(old), Timestamp(MERGE).text, str(tmp_path / "new.parquet"), "", str(tmp_path / "work"),
                          now=MERGE / 1000 + 600) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda plan: plan.execute(batch_size=50, concurrency=1), plans))
    assert (tmp_path / "new.parquet").read_bytes() == expected.read_bytes()
    assert all(plan.is_done() for plan in plans)


def retime(timestamp: Any) -> Any:
    """Return a change of the time in a table's metadata; None leaves it out."""
    said = {"graphene": "graphene://http://host/table/t", "point_columns": "pre_pt", "timestamp": timestamp}
    text = json.dumps({name: value for name, value in said.items() if value is not None})
    return lambda table: table.replace_schema_metadata({KEY: text.encode()})


def retype(name: str, dtype: Any) -> Any:
    """Return a change of a column's type."""
    return lambda table: table.set_column(table.schema.get_field_index(name), name, pa.nulls(400, dtype))


SPOILED: dict[str, tuple[Any, str]] = {
    "no metadata": (lambda table: table.replace_schema_metadata(None), "whose metadata doesn't say"),
    "a list": (lambda table: table.replace_schema_metadata({KEY: b"[1]"}), "whose metadata doesn't say"),
    "no roots": (retime(None), "whose metadata doesn't say"),
    "a list for a time": (retime([7]), "expected a time as in"),
    "no columns": (lambda table: table.select(["note"]), "expected the columns supervoxel_id, .* among note"),
    "half the columns": (lambda table: table.drop_columns(["post_pt_status"]), "found no post_pt_status"),
    "floats": (retype("pre_pt_root_id", pa.float64()), "expected uint64 in pre_pt_root_id, found double"),
    "int64": (retype("post_pt_supervoxel_id", pa.int64()), "expected uint64 in post_pt_supervoxel_id, found int64"),
    "plain text": (retype("pre_pt_status", pa.string()), "expected .* in pre_pt_status, found string"),
    "another word": (lambda table: table.set_column(
        3, table.schema.field(3), pa.array(["fine"] * 400).dictionary_encode().cast(WORDS)), "found fine"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_tables_that_are_no_results(spoil: Any, message: str, world: World, tmp_path: Path) -> None:
    """A table whose metadata or columns aren't a result's is refused with a word on what is wrong."""
    table = spoil(pq.read_table(world.write(tmp_path / "old.parquet", CREATED)))
    pq.write_table(table, tmp_path / "spoiled.parquet")
    with pytest.raises(InputError, match=message):
        world.refresh(tmp_path / "spoiled.parquet", MERGE, tmp_path / "new.parquet")
    assert not (tmp_path / "new.parquet").exists()


PLANS: dict[str, tuple[dict[str, str], str]] = {
    "no format": ({"output": "new.xlsx"}, "found .xlsx"),
    "a workspace on a web server": ({"workspace": "https://host/w"}, "workspace https://host/w: expected a local path"),
    "a web server": ({"output": "https://host/new.parquet"}, "expected a local path or a bucket"),
    "one place for both": ({"output": "a/../new.csv", "changes": "new.csv"}, "expected three places"),
    "changes over the table": ({"changes": "old.parquet"}, "expected three places"),
    "onto itself": ({"output": "old.parquet"}, "expected three places"),
}


@pytest.mark.parametrize(("given", "message"), PLANS.values(), ids=PLANS)
def test_refreshes_that_are_refused(given: dict[str, str], message: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Places that can't hold the tables, or would lose one, are refused at once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.parquet").touch()
    usual = {"table": "old.parquet", "output": "new.parquet", "changes": "", "workspace": "work"}
    with pytest.raises(InputError, match=message):
        plan_refresh(**(usual | given), timestamp="2022-01-01T00:00:00Z", now=MERGE / 1000)
