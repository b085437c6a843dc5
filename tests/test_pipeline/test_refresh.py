"""RefreshRoots and RangeDaily on the command line: the table of a later time, for what changed since."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK, POINTS = (64, 64, 32), (32, 32, 32), 3000
# Noon of three days, in UTC.
CREATED, SPLIT, MERGE = 1_700_049_600.0, 1_700_136_000.0, 1_700_222_400.125
EARLY, THEN, STILL, NOW = CREATED - 60, CREATED + 60, SPLIT - 0.001, MERGE
CHANGES = pa.schema([("row", pa.int64()), ("point", pa.string()), ("supervoxel_id", pa.uint64()),
                     ("old_root_id", pa.uint64()), ("new_root_id", pa.uint64()), ("old_timestamp", pa.string()),
                     ("new_timestamp", pa.string())])
# Kills the process group at a rename onto a name, before it.
KILL_AT_RENAME = """
import os, signal
_replace = os.replace
def replace(source, target, **more):
    if os.path.basename(os.fspath(target)).startswith(os.environ["KILL_AT"]):
        os.killpg(0, signal.SIGKILL)
    _replace(source, target, **more)
os.replace = replace
"""


class World(NamedTuple):
    """A graph with a split and a merge behind a server, and tables by time or name."""

    graph: ChunkedGraph
    server: GraphServer
    tables: dict[Any, Path]

    def refresh(self, cli: Any, to: Any = "2023-11-17T12:00:00.125Z", table: Any = THEN, **more: Any) -> Any:
        """Run `RefreshRoots` from the table of a time; the requests are counted anew."""
        self.server.clear()
        given = {"table": self.tables.get(table, table), "timestamp": to, "output": cli.folder / "new.parquet"}
        return cli.run("RefreshRoots", **(given | more))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, new_cli: Any) -> Iterator[World]:
    folder, rng = tmp_path_factory.mktemp("refresh"), np.random.default_rng(1)
    objects = rng.integers(0, 40, [n // 8 for n in SHAPE]).repeat(8, 0).repeat(8, 1).repeat(8, 2).astype(np.uint64)
    watershed = graphene_watershed(objects, (16, 16, 16), piece_size=(8, 8, 8))
    write_volume(folder / "ws", watershed.labels, chunk_size=CHUNK, resolution=(8, 8, 40), skip_chunks={(1, 1, 0)})
    known = watershed.objects != 7
    graph = ChunkedGraph.from_supervoxels(watershed.ids[known], watershed.objects[known], layout=watershed.layout,
                                          created=CREATED)
    one, two = (int(root) for root in graph.roots[:2])
    off, _ = graph.split(one, graph.members(one)[::2], at=SPLIT)
    graph.merge([off, two], at=MERGE)
    pre, post = (rng.integers(-1, np.array(SHAPE) + 1, (POINTS, 3)) for _ in range(2))
    columns = {f"post_pt_{axis}": pa.array(post[:, i], mask=rng.random(POINTS) < 0.02) for i, axis in enumerate("xyz")}
    pq.write_table(pa.table({"pre_pt_position": pa.array(pre.tolist())} | columns), folder / "points.parquet")
    tables: dict[Any, Path] = {}
    with GraphServer(graph, data_dir=folder / "ws") as server, closing(new_cli(folder / "cli")) as cli:
        for name, at in ((EARLY, EARLY), (THEN, THEN), (NOW, NOW), ("then.feather", THEN), ("now.feather", NOW),
                         ("unresolved.parquet", None)):
            tables[name] = folder / (name if isinstance(name, str) else f"{name}.parquet")
            roots = {"no_agglomerate": True} if at is None else {"timestamp": at}
            outcome = cli.run(volume=server.cloudpath, points=folder / "points.parquet", output=tables[name],
                              point_columns="pre_pt,post_pt", **roots)
            assert outcome.code == 0, outcome.err
        tables |= {name: folder / name for name in ("plain.csv", "points.parquet")}
        tables["plain.csv"].write_text("x,y,z,root_id\n1,2,3,4\n")
        yield World(graph, server, tables)


def read(path: Path) -> pa.Table:
    """Return a table with its metadata."""
    return pq.read_table(path) if path.suffix == ".parquet" else pyarrow.feather.read_table(path)


def about(table: pa.Table) -> Any:
    """Return where a table says that it comes from."""
    return json.loads(table.schema.metadata[b"voxelprobe"])


def changes_of(old: pa.Table, new: pa.Table) -> list[tuple[Any, ...]]:
    """Return what a change table says, from two results, row by row."""
    times = [about(table)["timestamp"] for table in (old, new)]
    rows = enumerate(zip(old.to_pylist(), new.to_pylist(), strict=True))
    return sorted((row, name, before[f"{name}_supervoxel_id"], before[f"{name}_root_id"], after[f"{name}_root_id"],
                   *times)
                  for row, (before, after) in rows for name in ("pre_pt", "post_pt")
                  if before[f"{name}_root_id"] != after[f"{name}_root_id"])


def check_refreshed(world: World, folder: Path, old: Any = THEN, new: Any = NOW, suffix: str = ".parquet") -> None:
    """The new table is that of `SamplePoints`, the changes are those between the two, and nothing else is left."""
    found, expected = folder / f"new{suffix}", world.tables[new]
    assert suffix != ".parquet" or found.read_bytes() == expected.read_bytes()
    changes = read(folder / "new-changes.parquet")
    assert read(found).equals(read(expected), check_metadata=True)
    assert changes.schema.equals(CHANGES)
    rows = sorted(tuple(row.values()) for row in changes.to_pylist())
    assert rows == changes_of(read(world.tables[old]), read(expected)) != []
    assert list(folder.rglob(".tmp-*")) == []


@pytest.mark.parametrize(("old", "new", "suffix"), [
    (THEN, NOW, ".parquet"), (EARLY, NOW, ".parquet"), ("then.feather", "now.feather", ".feather"),
], ids=["split and merge", "from before the graph", "feather"])
def test_the_table_of_a_later_time(old: Any, new: Any, suffix: str, world: World, cli: Any) -> None:
    """A refresh to the millisecond of an edit has it: the table that SamplePoints gives, for as few ids as it takes."""
    outcome = world.refresh(cli, table=old, output=cli.folder / f"new{suffix}")
    assert outcome.code == 0, outcome.err
    check_refreshed(world, cli.folder, old, new, suffix)
    points = ("pre_pt", "post_pt")
    before, after = ([[row[f"{point}_{name}"] for name in ("supervoxel_id", "root_id", "status")] for point in points
                      for row in read(world.tables[at]).to_pylist()] for at in (old, new))
    roots = {root for _, root, _ in before} - {None, 0}
    ended = {root for root in roots if world.graph.root_ends([root])[0] <= NOW}
    due = {supervoxel for supervoxel, root, status in before if status == "no_root" or root in ended}
    for call, ids in (("is_latest_roots", roots), ("roots_binary", due)):
        assert sorted(int(one) for request in world.server.calls(call) for one in request.ids) == sorted(ids)
    assert {status for *_, status in after} == {"ok", "out_of_bounds", "invalid_coordinate", "missing_chunk", "no_root"}


def test_nothing_changed(world: World, cli: Any) -> None:
    """Up to the millisecond before an edit, a refresh asks about each root once; only the time in the table is new."""
    table = read(world.tables[THEN])
    old = table.filter(~np.isin([table["pre_pt_status"].to_pylist(), table["post_pt_status"].to_pylist()],
                                "no_root").any(0))
    pq.write_table(old, cli.folder / "old.parquet")
    assert world.refresh(cli, STILL, cli.folder / "old.parquet").code == 0
    assert [request.path.rsplit("/", 1)[1] for request in world.server.requests] == ["info", "is_latest_roots"]
    new, changes = read(cli.folder / "new.parquet"), read(cli.folder / "new-changes.parquet")
    assert new.equals(old)
    assert about(new) == about(old) | {"timestamp": "2023-11-16T11:59:59.999Z"}
    assert changes.equals(CHANGES.empty_table())


def test_the_same_command_again(world: World, cli: Any) -> None:
    """A second run asks nothing and touches nothing; a table that was replaced or has gone is made again."""
    assert world.refresh(cli).code == 0
    paths = [cli.folder / "new.parquet", cli.folder / "new-changes.parquet"]
    times = [path.stat().st_mtime_ns for path in paths]
    assert world.refresh(cli).code == 0
    assert (world.server.requests, [path.stat().st_mtime_ns for path in paths]) == ([], times)
    paths[0].write_bytes(world.tables[THEN].read_bytes())
    paths[1].unlink()
    assert world.refresh(cli).code == 0
    check_refreshed(world, cli.folder)


@pytest.mark.parametrize("moment", ["server", "new-changes.parquet", "new.parquet", "refresh-"])
def test_killed(moment: str, world: World, cli: Any, shim: Any, wait_until: Any) -> None:
    """Killed with -9 while the server is asked or before any file appears, the same command ends with the tables."""
    given = {"table": world.tables[THEN], "timestamp": NOW, "output": cli.folder / "new.parquet"}
    if moment == "server":
        world.server.clear()
        world.server.fail("*roots_binary", Fault("stall", seconds=600))
        process = cli.start("RefreshRoots", **given)
        wait_until(lambda: world.server.calls("roots_binary"), "a request that stalls", pause=0.01)
        outcome = cli.kill(process)
    else:
        outcome = cli.run("RefreshRoots", env=shim(KILL_AT_RENAME) | {"KILL_AT": moment}, **given)
        assert list(cli.folder.rglob(".tmp-*")) != []
    assert outcome.code == -signal.SIGKILL
    assert world.refresh(cli).code == 0
    check_refreshed(world, cli.folder)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "an earlier time": ({"to": THEN - 1}, "expected one later than the table's, 2023-11-15T12:01:00.000Z"),
    "now": ({"to": "now"}, "timestamp now: expected a time that the same command names again"),
    "no zone": ({"to": "2023-11-17T12:00:00"}, "names no zone: read as UTC it is 1700222400.000"),
    "a CSV": ({"table": "plain.csv"}, "plain.csv: expected a result of SamplePoints with roots"),
    "a plain table": ({"table": "points.parquet"}, "points.parquet: expected a result of SamplePoints with roots"),
    "supervoxels only": ({"table": "unresolved.parquet"}, "expected a result of SamplePoints with roots"),
    "no table": ({"table": ""}, "--table is missing"),
    "no time": ({"to": ""}, "--timestamp is missing"),
    "no output": ({"output": ""}, "--output is missing"),
    "no such table": ({"table": "/no/such.parquet"}, "/no/such.parquet: no such file"),
}


@pytest.mark.parametrize(("given", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(given: dict[str, Any], message: str, world: World, cli: Any) -> None:
    """What can't be refreshed ends with a message on it and a code, without a traceback, a table or a question."""
    outcome = world.refresh(cli, **given)
    assert outcome.code not in (0, None)
    assert outcome.err.count(message) == 1, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert not (cli.folder / "new.parquet").exists()
    assert {request.path.rsplit("/", 1)[1] for request in world.server.requests} <= {"info"}


def test_a_table_a_day(world: World, cli: Any) -> None:
    """RangeDaily makes each missing day once, its midnight in UTC, as far back as it is told and never ahead of now."""
    given = {"table": str(world.tables[THEN]), "folder": str(cli.folder / "days"), "workspace": str(cli.workspace)}

    def made(*more: str) -> dict[str, list[str]]:
        """Run it on 2023-11-19 and return the tables that it wrote, with their times."""
        before = {path: path.stat().st_mtime_ns for path in cli.folder.glob("days/*")}
        words = cli.command("RangeDaily", {"of": "RefreshRootsOfDay", "of_params": json.dumps(given)})
        at = words.index("--workspace")
        ended = subprocess.run([*words[:at], *words[at + 2:], "--now", "1700400000", *more], capture_output=True,
                               text=True, cwd=cli.folder, env=os.environ | {"HOME": str(cli.home)}, check=False)
        assert ended.returncode == 0, ended.stderr
        return {path.name: about(read(path))["timestamp"] for path in cli.folder.glob("days/*")
                if path.stat().st_mtime_ns != before.get(path)}

    def days(*numbers: int) -> dict[str, str]:
        return {f"2023-11-{day}{kind}.parquet": f"2023-11-{day}T00:00:00.000Z"
                for day in numbers for kind in ("-changes", "")}

    assert made("--start", "2023-11-16", "--stop", "2023-11-18") == days(16, 17)
    world.server.clear()
    assert made("--start", "2023-11-16", "--stop", "2023-11-18") == {}
    assert world.server.requests == []
    rows = [read(cli.folder / f"days/2023-11-{day}-changes.parquet").num_rows for day in (16, 17)]
    assert rows[0] == 0 < rows[1]
    for day in (16, 17):
        (cli.folder / f"days/2023-11-{day}.parquet").unlink()
    assert made("--start", "2023-11-16", "--stop", "2030-01-01", "--days-back", "3") == days(17, 18, 19)


@pytest.mark.parametrize(("given", "message"), [
    ({"date": "2999-01-01", "folder": "days"}, "is in the future"), ({"date": "2023-11-17"}, "--folder is missing"),
], ids=["a day to come", "no folder"])
def test_days_that_are_refused(given: dict[str, Any], message: str, world: World, cli: Any) -> None:
    """A day that hasn't begun, or a day without a place, ends with a message and no question."""
    world.server.clear()
    outcome = cli.run("RefreshRootsOfDay", table=world.tables[THEN], **given)
    assert outcome.code not in (0, None)
    assert message in outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert world.server.requests == []
    assert not (cli.folder / "cwd/days").exists()
