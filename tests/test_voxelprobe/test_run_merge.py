"""Decode's files and the merge, against a dictionary of what each point was given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxelprobe.decoding import DecodedPoints
from voxelprobe.errors import StaleRunError
from voxelprobe.graphene.timestamps import parse_timestamp
from voxelprobe.planning import ChunkJobs
from voxelprobe.points import open_points
from voxelprobe.records import STATUS_LABELS, Status, write_columns
from voxelprobe.resolving import ResolvedRoots
from voxelprobe.run import blocks, groups, result, values
from voxelprobe.run.audit_sample import AuditExtent
from voxelprobe.run.manifests import read_manifest, seal
from voxelprobe.run.merge import merge_run, read_merged
from voxelprobe.run.plan import plan_run, read_jobs, read_plan
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.result import open_result
from voxelprobe.run.root_files import RootsAt, write_roots
from voxelprobe.run.spec import Run, RunSettings, open_run
from voxelprobe.testing.volumes import write_volume

CHUNKS, CHUNK = 6, 4
SOME = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TIME = RootsAt(parse_timestamp("2024-01-01T00:00:00Z", now=2e9), None)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, str]:
    """Volumes by dtype and channels; what they hold is never read."""
    folder, urls = tmp_path_factory.mktemp("volumes"), {}
    for dtype, channels in (("u8", 1), ("u2", 3), ("i8", 1), ("f4", 1), ("u1", 2)):
        array = np.zeros((CHUNKS * CHUNK, CHUNK, CHUNK, channels), dtype)
        write_volume(folder / f"{dtype}-{channels}", array, chunk_size=(CHUNK,) * 3)
        urls[dtype, channels] = f"file://{folder}/{dtype}-{channels}"
    return urls


class World:
    """A planned run of random points, whose labels, statuses and roots are made up and remembered by point."""

    def __init__(self, folder: Path, volume: str, rows: int, prefixes: int, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        names = ["x,y,z"] if prefixes == 1 else [f"p{i}" for i in range(prefixes)]
        columns: dict[str, Any] = {"id": np.arange(rows) * 3, "note": [f"n{i % 5}" for i in range(rows)]}
        for prefix in range(prefixes):
            voxels = rng.integers(0, (CHUNKS * CHUNK, CHUNK, CHUNK), (rows, 3))
            voxels[rng.random(rows) < 0.1, 0] = -1
            stem = "" if prefixes == 1 else f"p{prefix}_position_"
            columns |= {stem + axis: pa.array(voxels[:, i], mask=rng.random(rows) < 0.05)
                        for i, axis in enumerate("xyz")}
        folder.mkdir(parents=True, exist_ok=True)
        self.points = pa.table(columns)
        pq.write_table(self.points, folder / "points.parquet", row_group_size=max(rows // 2, 1))
        self.settings = RunSettings(volume, str(folder / "points.parquet"), str(folder / "ws"), "0", None,
                                    ",".join(names), "null")
        self.folder, self.prefixes, self.rows = folder, prefixes, rows
        self.run = self.open()
        self.board = ProgressBoard(folder / "board", "e")
        plan_run(self.run, self.board)
        plan = read_plan(self.run)
        assert plan is not None
        self.groups = range(plan.facts["groups"])
        self.found: dict[int, tuple[bytes, int]] = {}
        self.roots: dict[int, tuple[int, int]] = {}

    def open(self, batch_rows: int = 1 << 20) -> Run:
        """Return the run, opened anew."""
        run = open_run(self.settings)
        run.__dict__["table"] = open_points(run.points, batch_rows)
        return run

    def make_up(self, volume: Any, jobs: ChunkJobs, cache: Any, **_: Any) -> DecodedPoints:
        """Decode without a chunk: in place of `decode_points`."""
        count, scale = len(jobs.points), volume.scale
        kinds = np.frombuffer(self.rng.bytes(6 * scale.dtype.itemsize), scale.dtype)
        kinds = np.append(np.where(np.isnan(kinds), 1, kinds).astype(scale.dtype), scale.dtype.type(0))
        labels = self.rng.choice(kinds, (count, scale.num_channels))
        of_chunk = self.rng.choice([Status.OK, Status.OK, Status.MISSING_CHUNK, Status.CORRUPT_CHUNK], len(jobs.chunks))
        status = np.repeat(of_chunk.astype(np.uint8), np.diff(jobs.first))
        self.found |= {int(point): (label.tobytes(), int(state))
                       for point, label, state in zip(jobs.points, labels, status, strict=True)}
        corrupt = {int(chunk): "bad" for chunk in jobs.chunks[of_chunk == 4]}
        return DecodedPoints(labels, status, corrupt, 0)

    def decode(self, execution: str = "e") -> None:
        """Write the labels of all groups that are due."""
        for group in self.groups:
            groups.decode_group(self.run, group, None, threads=1, board=self.board, execution=execution)

    def resolve(self) -> None:
        """Write made up roots of all groups."""
        for group in self.groups:
            jobs, decoded = read_jobs(self.run, group), groups.read_decoded(self.run, group)
            labels, status = groups.read_labels(self.run, group, decoded, jobs.points)
            ids = np.unique(labels[status == Status.OK, 0])
            resolved = self.rng.random(len(ids)) < 0.7
            roots = np.where(resolved, self.rng.integers(1, 5, len(ids)), 0).astype(np.uint64)
            write_roots(self.run, group, TIME, decoded, ids=ids, found=ResolvedRoots(roots, resolved, 0),
                        points=jobs.points, supervoxels=labels[:, 0], status=status,
                        facts=dict.fromkeys(("supervoxels", "asked", "requests", "unresolved", "seconds"), 0))
            of_id = dict(zip(ids.tolist(), zip(roots.tolist(), resolved.tolist(), strict=True), strict=True))
            for point, label, state in zip(jobs.points.tolist(), labels[:, 0].tolist(), status.tolist(), strict=True):
                root, known = of_id.get(label, (0, False))
                self.roots[point] = (root, state if state or known else int(Status.NO_ROOT))

    def merge(self, name: str = "out.parquet", roots: RootsAt | None = None, batch_rows: int = 1 << 20) -> Path:
        """Return the result, merged."""
        path = self.folder / name
        merge_run(open_result(self.open(batch_rows), str(path), roots), board=self.board, execution="e",
                  audit=AuditExtent(0), threads=1)
        return path

    def check(self, path: Path, roots: bool = False) -> None:
        """Assert that each row has what its points were given, and that the report's counts are theirs."""
        table, scale = pq.read_table(path), self.run.volume.scale
        assert table.select(self.points.schema.names).equals(self.points)
        words: list[str] = []
        different, background, different_roots = set(), 0, set()
        for prefix, columns in enumerate(self.run.columns):
            stem = "" if columns.prefix is None else f"{columns.prefix}_"
            names = [f"{stem}label"] if scale.num_channels == 1 else [f"{stem}label_{i}" for i in
                                                                     range(scale.num_channels)]
            status = table[f"{stem}status"].to_pylist()
            labels = [table[name].to_pylist() for name in names]
            found_roots = table[f"{stem}root_id"].to_pylist() if roots else []
            for row in range(self.rows):
                point = row * self.prefixes + prefix
                if point in self.found:
                    content, state = self.found[point]
                    expected: list[Any] = np.frombuffer(content, scale.dtype).tolist()
                    if state == Status.OK:
                        different |= set(expected)
                        background += expected[0] == 0
                    else:
                        expected = [None] * len(names)
                    if roots:
                        root, state = self.roots[point]
                        assert found_roots[row] == (root if state == Status.OK else None)
                        different_roots |= {root} if state == Status.OK else set()
                else:
                    xyz = [self.points[f"{stem}{'position_' if stem else ''}{axis}"][row].as_py() for axis in "xyz"]
                    state, expected = (3 if None in xyz else 1), [None] * len(names)
                assert status[row] == STATUS_LABELS[state], point
                assert [column[row] for column in labels] == expected
                words.append(status[row])
        report = json.loads(self.run.folder.read_bytes("report.json") or b"")["result"]
        assert report["status"] == {word: words.count(word) for word in STATUS_LABELS if word in words}
        assert (report["labels"], report["background"]) == (len(different), background)
        assert report["roots"] == (len(different_roots) if roots else None)


@pytest.fixture
def new_world(tmp_path: Path, volumes: dict[Any, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(kind: Any = ("u8", 1), rows: int = 300, prefixes: int = 1, seed: int = 0, block: int = 64) -> World:
        monkeypatch.setattr(blocks, "BLOCK_POINTS", block)
        world = World(tmp_path / f"world-{len(list(tmp_path.iterdir()))}", volumes[kind], rows, prefixes, seed)
        monkeypatch.setattr(groups, "decode_points", world.make_up)
        return world

    return make


@SOME
@given(kind=st.sampled_from([("u8", 1), ("u2", 3), ("i8", 1), ("f4", 1), ("u1", 2)]), rows=st.integers(1, 400),
       prefixes=st.integers(1, 3), seed=st.integers(0, 2**32), block=st.sampled_from([7, 64, 1 << 23]),
       batch_rows=st.sampled_from([5, 100, 1 << 20]))
def test_each_point_has_what_was_found_for_it(new_world, kind, rows, prefixes, seed, block, batch_rows) -> None:
    """Labels and statuses are beside their rows, whatever the groups, channels, prefixes, blocks and batches."""
    world = new_world(kind, rows, prefixes, seed, block)
    world.decode()
    world.check(world.merge(batch_rows=batch_rows))


@SOME
@given(rows=st.integers(1, 300), prefixes=st.integers(1, 2), seed=st.integers(0, 2**32),
       block=st.sampled_from([7, 1 << 23]))
def test_each_point_has_its_root(new_world, rows, prefixes, seed, block) -> None:
    """Roots are beside their rows, and a supervoxel that has none is there all the same."""
    world = new_world(("u8", 1), rows, prefixes, seed, block)
    with_graph(world)
    world.decode()
    world.resolve()
    path = world.merge("roots.parquet", TIME)
    table = pq.read_table(path)
    names = [name.replace("supervoxel_id", "label") for name in table.schema.names]
    pq.write_table(table.rename_columns(names), path)
    world.check(path, roots=True)


def with_graph(world: World) -> None:
    graph = SimpleNamespace(url=SimpleNamespace(url="graphene://somewhere"))
    opened = world.open

    def open_with_graph(batch_rows: int = 1 << 20) -> Run:
        run = opened(batch_rows)
        object.__setattr__(run, "volume", SimpleNamespace(
            **{name: getattr(run.volume, name) for name in ("scale", "url", "mip", "grid", "chunk_label")},
            graph=graph, info=run.volume.info))
        return run

    world.open = open_with_graph  # type: ignore[method-assign]
    world.run = world.open()


@pytest.mark.parametrize("name", ["out.parquet", "out.feather", "out.csv"])
def test_blocks_and_their_files_leave_no_trace(new_world, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A table is the same bytes whatever the size of the blocks that its values were written and read in."""
    world, contents = new_world(rows=300, prefixes=2, seed=1), set()
    for block in (7, 64, 1 << 23):
        monkeypatch.setattr(blocks, "BLOCK_POINTS", block)
        shutil.rmtree(world.run.folder.path("labels"), ignore_errors=True)
        world.rng = np.random.default_rng(2)
        world.decode()
        contents.add(world.merge(name).read_bytes())
    assert len(contents) == 1


def test_corrupt_chunks_alone_are_done_again(new_world) -> None:
    """A later execution replaces the values of corrupt chunks; the others stay where they were, in every block."""
    world = new_world(rows=400, seed=3, block=16)
    world.decode("first")
    before = dict(world.found)
    assert any(state == Status.CORRUPT_CHUNK for _, state in before.values())
    world.decode("second")
    kept = {point: value for point, value in before.items() if value[1] != Status.CORRUPT_CHUNK}
    assert kept.items() <= world.found.items()
    assert world.found != before
    world.check(world.merge())


def test_labels_of_another_layout_are_made_again(new_world) -> None:
    """The marker of an older version, whose key is the run's alone, doesn't count: its files had another order."""
    world = new_world()
    world.decode()
    name = "labels/group-000.json"
    path = world.run.folder.path(name)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(seal(document | {"key": world.run.key})))
    assert read_manifest(world.run.folder, name, world.run.key) is not None
    assert groups.read_decoded(world.run, 0) is None
    with pytest.raises(StaleRunError, match="labels of group 0 are gone or damaged"):
        world.merge()
    world.decode()
    world.check(world.merge())


def test_points_in_no_group_are_noticed(new_world, tmp_path: Path) -> None:
    """A point that the files of all groups lack isn't left out in silence, and no table appears."""
    world = new_world(rows=50)
    world.decode()
    file = world.run.folder.path("labels/group-000.parquet")
    manifest = groups.read_decoded(world.run, 0)
    points, labels = groups.open_labels(world.run, 0, manifest).read_block(0, "point", "label")
    write_columns(file, {"point": np.full_like(points, points[0]), "status": np.zeros(len(points), np.uint8),
                         "label": labels})
    marker = world.run.folder.path("labels/group-000.json")
    document = json.loads(marker.read_text())
    sizes = {"labels/group-000.parquet": file.stat().st_size}
    facts = document["facts"] | {"blocks": [0], "different": 0}
    marker.write_text(json.dumps(seal(document | {"files": sizes, "facts": facts})))
    with pytest.raises(StaleRunError, match=r"points are in no group, the first is point \d+; run again"):
        world.merge()
    assert not (world.folder / "out.parquet").exists()
    assert read_merged(open_result(world.run, str(world.folder / "out.parquet"), None)) is None


def test_points_of_another_block_are_noticed(new_world) -> None:
    """A file whose row groups aren't the blocks that its marker lists is refused, not scattered elsewhere."""
    world = new_world(rows=300, block=64)
    world.decode()
    marker = world.run.folder.path("labels/group-000.json")
    document = json.loads(marker.read_text())
    document["facts"]["blocks"] = document["facts"]["blocks"][::-1]
    marker.write_text(json.dumps(seal(document)))
    with pytest.raises(StaleRunError, match=r"labels of group 0: expected points of block 0 .* found \d+ to \d+"):
        world.merge()


def test_rows_that_were_not_planned_are_noticed() -> None:
    """More rows than values is a stale run, said at the first row that has none."""
    part = values.PointValues([np.zeros(3)], np.zeros(3, np.uint8), None)
    cutter = values.RowCutter(iter([part, part]))
    assert len(cutter.take(5).status) == 5
    with pytest.raises(StaleRunError, match="expected 4 points more in the plan, found 1"):
        cutter.take(4)


def test_two_batches_are_held_at_most() -> None:
    """While one batch is written the next is made, and none after it; an error on either side ends both."""
    made: list[int] = []

    def make() -> Any:
        for number in range(5):
            made.append(number)
            yield number
        raise StaleRunError("no more")

    batches = result._ahead(make())
    for number in range(5):
        assert next(batches) == number
        assert len(made) <= number + 2
    with pytest.raises(StaleRunError, match="no more"):
        next(batches)
    batches = result._ahead(make())
    made.clear()
    assert next(batches) == 0
    batches.close()
    assert len(made) <= 2
