import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.errors import InputError
from voxelprobe.points import UnitConversion
from voxelprobe.records import CHUNK, COUNT, PLACE, POINT, REGION, STATUS, Status, read_columns
from voxelprobe.run.plan import plan_run, read_jobs, read_plan
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.spec import RunSettings, open_run

SIZE, CHUNK_SIZE, OFFSET = (300, 200, 90), (16, 20, 9), (-150, 40, 7)
SHARDINGS = {
    "files": None,
    "identity": {"@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 2,
                 "minishard_bits": 3, "shard_bits": 4},
    "murmur": {"@type": "neuroglancer_uint64_sharded_v1", "hash": "murmurhash3_x86_128", "preshift_bits": 0,
               "minishard_bits": 2, "shard_bits": 5},
}


def make_run(folder, table, sharding=None, columns="pre,post", unit=None):
    """A run over a volume of which there is nothing but the `info`: planning needs no chunk."""
    (folder / "volume").mkdir(parents=True)
    scale = {"key": "k", "size": SIZE, "voxel_offset": OFFSET, "chunk_sizes": [CHUNK_SIZE], "encoding": "raw",
             "resolution": [4, 4, 40]} | ({} if sharding is None else {"sharding": sharding})
    info = {"type": "segmentation", "data_type": "uint64", "num_channels": 1, "scales": [scale]}
    (folder / "volume" / "info").write_text(json.dumps(info))
    pq.write_table(table, folder / "points.parquet", row_group_size=700)
    return open_run(RunSettings(f"file://{folder / 'volume'}", str(folder / "points.parquet"), str(folder / "ws"), "0",
                                unit, columns, "null"))


def make_table(rows, seed=0):
    """Points in and around the volume: shuffled ones, ones along a path, nulls and NaN among them."""
    rng = np.random.default_rng(seed)
    columns = {}
    for axis, size, offset in zip("xyz", SIZE, OFFSET, strict=True):
        mask = rng.random(rows) < 0.02
        columns[f"pre_{axis}"] = pa.array(rng.integers(offset - 2, offset + size + 2, rows), mask=mask)
        path = (np.cumsum(rng.normal(0, 0.4, rows)) + size / 2) % size + offset
        columns[f"post_{axis}"] = np.where(rng.random(rows) < 0.02, np.nan, path)
    return pa.table(columns)


def plan(run):
    plan_run(run, ProgressBoard(run.folder.local, "test"))
    return {path.name: path.read_bytes() for path in (run.folder.local / "plan").glob("*.parquet")}


@pytest.mark.parametrize("kind", SHARDINGS)
def test_a_plan_is_the_same_however_it_was_made(tmp_path, monkeypatch, kind):
    """Threads, memory and the way groups are merged change no byte of the plan's files."""
    table = make_table(3000)
    expected = None
    for number, (threads, memory, merged) in enumerate([(1, 1 << 30, 1 << 30), (3, 0, 1), (4, 5000, 1 << 30)]):
        monkeypatch.setattr("voxelprobe.run.plan._SORTED_POINTS", 256)
        monkeypatch.setattr("voxelprobe.run.plan._MERGED_POINTS", merged)
        monkeypatch.setattr("voxelprobe.run.plan.count_threads", lambda threads=threads: threads)
        monkeypatch.setattr("voxelprobe.run.spool.RunSpool.__init__.__kwdefaults__", {"memory_bytes": memory})
        run = make_run(tmp_path / str(number), table, SHARDINGS[kind])
        files = plan(run)
        expected = expected or files
        assert files == expected
        assert not (run.folder.local / ".tmp-spool").exists()


@pytest.mark.parametrize("sorted_points", [100, 1 << 18])
@pytest.mark.parametrize("kind", SHARDINGS)
def test_the_plan_has_every_point_once(tmp_path, monkeypatch, kind, sorted_points):
    """Groups are runs of regions, chunks stand by region and number, points ascend in a chunk; the rest is listed."""
    monkeypatch.setattr("voxelprobe.run.plan._SORTED_POINTS", sorted_points)
    rows = 2000
    table = make_table(rows)
    run = make_run(tmp_path, table, SHARDINGS[kind])
    plan(run)
    facts = read_plan(run).facts
    points = np.stack([np.stack([table[f"{prefix}_{axis}"].to_numpy().astype(float) for axis in "xyz"], 1)
                       for prefix in ("pre", "post")], 1).reshape(-1, 3)
    valid = np.isfinite(points).all(axis=1)
    voxels = UnitConversion.between(("4", "4", "40"), (4.0, 4.0, 40.0)).to_voxels(points)
    inside = run.volume.grid.contains(voxels)
    chunks, places = run.volume.grid.locate(np.where(inside[:, None], voxels, OFFSET))
    regions = run.volume.regions.numbers(chunks)
    placed = np.flatnonzero(inside)
    expected = placed[np.lexsort((placed, chunks[placed], regions[placed]))]
    found = [read_jobs(run, group) for group in range(facts["groups"])]
    assert np.concatenate([jobs.points for jobs in found]).tolist() == expected.tolist()
    assert np.concatenate([jobs.places for jobs in found]).tolist() == places[expected].tolist()
    of_points = np.concatenate([np.repeat(jobs.chunks, np.diff(jobs.first)) for jobs in found])
    assert of_points.tolist() == chunks[expected].tolist()
    assert np.concatenate([jobs.regions for jobs in found]).tolist() == [
        int(regions[expected][row]) for row in np.flatnonzero(np.diff(of_points, prepend=-1))]
    last = [-1, *(int(jobs.regions[-1]) for jobs in found)]
    assert all(before < jobs.regions[0] for before, jobs in zip(last, found, strict=False))
    assert (facts["points"], facts["rows"], facts["unplaced"]) == (2 * rows, rows, 2 * rows - len(placed))
    assert facts["chunks_of_group"] == [len(jobs.chunks) for jobs in found]
    lost, status = read_columns(run.folder.path("plan/unplaced.parquet"), POINT, STATUS)
    assert lost.tolist() == np.flatnonzero(~inside).tolist()
    assert status.tolist() == np.where(valid, Status.OUT_OF_BOUNDS, Status.INVALID_COORDINATE)[~inside].tolist()


def test_the_records_are_of_the_types_that_the_design_names(tmp_path):
    """Numbers are int64 and places uint32; jobs that were read are int64 throughout."""
    run = make_run(tmp_path, make_table(50))
    plan(run)
    points = pq.read_schema(run.folder.path("plan/points-000.parquet"))
    assert [(field.name, str(field.type)) for field in points] == [(POINT, "int64"), (PLACE, "uint32")]
    chunks = pq.read_schema(run.folder.path("plan/chunks-000.parquet"))
    assert [(field.name, str(field.type)) for field in chunks] == [(name, "int64") for name in (CHUNK, REGION, COUNT)]
    jobs = read_jobs(run, 0)
    columns = (jobs.chunks, jobs.regions, jobs.first, jobs.points, jobs.places)
    assert {column.dtype for column in columns} == {np.dtype(np.int64)}


@pytest.mark.parametrize("rows", [0, 7])
def test_a_table_without_a_placed_point_has_a_plan(tmp_path, rows):
    """No rows, or none in the volume: no group, and every point listed."""
    nowhere = pa.table({axis: pa.array([None] * rows, pa.int64()) for axis in "xyz"})
    run = make_run(tmp_path, nowhere, columns="x,y,z")
    plan(run)
    assert read_plan(run).facts["groups"] == 0
    assert len(read_columns(run.folder.path("plan/unplaced.parquet"), POINT)[0]) == rows


def test_points_in_a_wrong_unit_are_refused(tmp_path, monkeypatch):
    """The refusal names the unit that fits, however many batches were sorted, and leaves no plan and no scratch."""
    monkeypatch.setattr("voxelprobe.run.plan._SORTED_POINTS", 64)
    rng = np.random.default_rng(0)
    table = pa.table({axis: (rng.integers(0, size, 500) + offset) * nm
                      for axis, size, offset, nm in zip("xyz", SIZE, OFFSET, (4, 4, 40), strict=True)})
    run = make_run(tmp_path, table, columns="x,y,z")
    with pytest.raises(InputError, match=r"--coord-resolution nm would put 100\.0% of them inside"):
        plan(run)
    assert read_plan(run) is None
    assert not (run.folder.local / ".tmp-spool").exists()
    right = make_run(tmp_path / "right", table, columns="x,y,z", unit="nm")
    plan(right)
    assert read_plan(right).facts["unplaced"] == 0
