"""Runs with their audit: sound ones pass in every form, and whatever is altered on the way is found and named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.cache.protocol import ChunkCache
from voxelprobe.errors import AuditError, InputError
from voxelprobe.records import PLACE, POINT, read_columns, write_columns
from voxelprobe.run.audit import audit_run, read_audited
from voxelprobe.run.audit_check import MISMATCHES
from voxelprobe.run.audit_sample import parse_audit
from voxelprobe.run.blocks import BlockFile, write_blocks
from voxelprobe.run.groups import decode_group, fetch_group, read_decoded
from voxelprobe.run.manifests import seal
from voxelprobe.run.merge import is_audited, merge_run, read_merged
from voxelprobe.run.plan import plan_run, read_jobs, read_plan
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.report import format_report
from voxelprobe.run.result import open_result
from voxelprobe.run.spec import Run, RunSettings, open_run
from voxelprobe.testing.encoders import ENCODERS, encode_chunk
from voxelprobe.testing.volumes import write_volume
from voxelprobe.transport.protocol import StoredObject

SHAPE, CHUNK, OFFSET = (40, 24, 18), (8, 8, 8), (100, -30, 7)
SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "hash": "murmurhash3_x86_128",
            "minishard_index_encoding": "gzip", "data_encoding": "gzip"}
DTYPES = {"jpeg": "uint8", "jxl": "uint8", "png": "uint16", "fpzip": "float32", "kempressed": "float32",
          "zfpc": "float64"}
ENCODINGS = ["compressed_segmentation", *ENCODERS]


def make_array(encoding: str) -> np.ndarray[Any, Any]:
    x, y, z = np.indices(SHAPE)
    if encoding in DTYPES:
        return (100 + 80 * np.sin(x / 5) * np.cos(y / 7) + 4 * z).astype(DTYPES[encoding])
    return ((x // 3) * 1000 + (y // 5) * 10 + z // 4).astype(np.uint64) * np.uint64(2**50 + 12345)


class Audited:
    """A run of its stages in this process, with a step between any two of them."""

    def __init__(self, folder: Path, *, points: Any = None, output: str = "", cloudpath: str = "",
                 **settings: Any) -> None:
        rng = np.random.default_rng(5)
        path = folder / "points.parquet"
        if points is None:
            voxels = rng.integers(-2, SHAPE, (400, 3)) + OFFSET
            points = pa.table({axis: voxels[:, i] for i, axis in enumerate("xyz")} | {"id": np.arange(400)})
        pq.write_table(points, path, row_group_size=150)
        facts = {"mip": "0", "coord_resolution": None, "point_columns": "x,y,z", "missing_chunks": "null"} | settings
        self.settings = RunSettings(cloudpath or str(folder / "seg"), str(path), str(folder / "ws"), **facts)
        self.output = output and str(folder / output)
        self.board = ProgressBoard(folder / "board", "e")

    @property
    def run(self) -> Run:
        """The run, opened anew."""
        return open_run(self.settings)

    def cache(self) -> ChunkCache:
        """Return the volume's cache."""
        return self.run.cache(None, 1 << 30)

    @property
    def groups(self) -> range:
        """The numbers of the groups."""
        plan = read_plan(self.run)
        assert plan is not None
        return range(plan.facts["groups"])

    def label(self, execution: str = "e", between: Callable[[], None] | None = None) -> None:
        """Plan, fetch and decode."""
        plan_run(self.run, self.board)
        for group in self.groups:
            fetch_group(self.run, group, self.cache(), threads=4, board=self.board)
        if between:
            between()
        for group in self.groups:
            decode_group(self.run, group, self.cache(), threads=4, board=self.board, execution=execution)

    def merge(self, audit: str = "all", execution: str = "e") -> dict[str, Any]:
        """Audit and merge; return what the report says of the audit."""
        extent = parse_audit(audit)
        if extent.points != 0:
            audit_run(self.run, extent, threads=4)
        result = open_result(self.run, self.output, None)
        merge_run(result, board=self.board, execution=execution, audit=extent, threads=4)
        report = json.loads(self.run.folder.path("report.json").read_text())
        return dict(report["audit"])

    def done(self, audit: str) -> bool:
        """Return whether the table is there and audited so far."""
        result = open_result(self.run, self.output, None)
        manifest = read_merged(result)
        return manifest is not None and is_audited(manifest, result, parse_audit(audit))

    def refuse(self, audit: str = "all") -> tuple[str, list[dict[str, Any]]]:
        """Return the error of an audit that finds something, and what it lists; nothing is published."""
        with pytest.raises(AuditError) as caught:
            self.merge(audit)
        assert not Path(open_result(self.run, self.output, None).url).exists()
        assert not list(self.run.folder.path("").rglob(".tmp-*"))
        return str(caught.value), json.loads(self.run.folder.path(MISMATCHES).read_text())["mismatches"]


def find_chunks(audited: Audited) -> Any:
    """Return the grid position of each point that is inside, as one number."""
    table = pq.read_table(audited.settings.points)
    voxels = np.stack([table[axis].to_numpy() - o for axis, o in zip("xyz", OFFSET, strict=True)], axis=1)
    inside = ((voxels >= 0) & (voxels < SHAPE)).all(axis=1)
    return voxels[inside] // CHUNK @ [1, 100, 10_000]


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "shards"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sound_runs_pass(encoding: str, sharded: bool, tmp_path: Path) -> None:
    """Of every encoding, in files and in shards, with missing chunks and points outside, all points agree."""
    write_volume(tmp_path / "seg", make_array(encoding), encoding=encoding, chunk_size=CHUNK, voxel_offset=OFFSET,
                 sharding=SHARDING if sharded else None, compress=None if sharded else "gzip",
                 skip_chunks=[(1, 1, 1), (4, 2, 2)], empty_chunks=[(0, 0, 0)])
    audited = Audited(tmp_path)
    audited.label()
    audit = audited.merge()
    assert (audit["points"], audit["compared"], audit["mismatches"], audit["unread"]) == (400, 400, 0, 0)
    assert audit["chunks"] == len(np.unique(find_chunks(audited)))
    line = f"audit    400 points in {audit['chunks']} chunks read again by {audit['way']}, 0 differ"
    assert line in format_report(audited.run)


@pytest.mark.parametrize(("encoding", "dtype", "channels"), [
    ("raw", "uint16", 3), ("compressed_segmentation", "uint32", 2), ("png", "uint8", 3), ("png", "uint8", 4),
    ("jpeg", "uint8", 3), ("jxl", "uint8", 3), ("fpzip", "float32", 2), ("kempressed", "float64", 2),
    ("zfpc", "int64", 2), ("zfpc", "float32", 1),
])
def test_channels_and_dtypes(encoding: str, dtype: str, channels: int, tmp_path: Path) -> None:
    """Several channels and other dtypes agree too, in tables of text."""
    array = np.random.default_rng(0).integers(0, 100, (*SHAPE, channels)).astype(dtype)
    write_volume(tmp_path / "seg", array, encoding=encoding, chunk_size=(16, 16, 16), voxel_offset=OFFSET)
    audited = Audited(tmp_path, output="out.csv")
    audited.label()
    assert audited.merge()["compared"] == 400


UNITS = {
    "voxels of mip 0": (None, (1, 1, 1)), "nm": ("nm", (4, 8, 40)), "another mip's": ("8,16,40", (0.5, 0.5, 1)),
    "fractions": ("1.6,3.2,8", (2.5, 2.5, 5)), "coarser": ("17.2,8.6,30.1", (4 / 17.2, 8 / 8.6, 40 / 30.1)),
}


@pytest.mark.parametrize("mip", ["0", "8,16,40"])
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("kind", ["whole", "float"])
def test_units(unit: Any, mip: str, kind: str, tmp_path: Path) -> None:
    """In every unit, of whole numbers and of fractions, at every scale, all points agree."""
    array = np.random.default_rng(0).integers(0, 2**64, SHAPE, np.uint64)
    write_volume(tmp_path / "seg", array, chunk_size=CHUNK, voxel_offset=(96, 64, 8), resolution=(4, 8, 40), mips=1)
    text, factor = unit
    values = (np.random.default_rng(1).random((400, 3)) * SHAPE + (96, 64, 8)) * factor
    if kind == "whole":
        values = values.astype(np.int64)
    audited = Audited(tmp_path, points=pa.table({axis: values[:, i] for i, axis in enumerate("xyz")}), mip=mip,
                      coord_resolution=text)
    audited.label()
    assert audited.merge()["compared"] == 400


@pytest.mark.parametrize("suffix", ["parquet", "csv", "csv.gz", "feather"])
def test_prefixes_lists_and_nulls(suffix: str, tmp_path: Path) -> None:
    """Two points a row, one a list and one a struct, with nulls, agree in every format of the table."""
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET)
    rng = np.random.default_rng(3)
    first, second = (rng.integers(-1, SHAPE, (400, 3)) + OFFSET for _ in range(2))
    lists: list[Any] = [None if i % 9 == 0 else list(map(int, p)) for i, p in enumerate(first)]
    structs = [{"x": None if i % 11 == 0 else float(x), "y": float(y), "z": float(z) + 0.5}
               for i, (x, y, z) in enumerate(second)]
    table = {"pre_pt_position": lists, "post_pt": structs}
    if suffix.startswith("csv"):
        table = {f"{name}_{axis}": [None if p is None else p[axis if name == "post_pt" else i] for p in column]
                 for name, column in table.items() for i, axis in enumerate("xyz")}
    audited = Audited(tmp_path, points=pa.table(table), output=f"out.{suffix}", point_columns="pre_pt,post_pt")
    audited.label()
    assert audited.merge()["compared"] == 800


def test_the_sample(tmp_path: Path) -> None:
    """A sample is the same each time, of few chunks and no more points than asked for, and points in no chunk too."""
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=(4, 4, 4), voxel_offset=OFFSET)
    audited = Audited(tmp_path)
    audited.label()
    audit = audited.merge("100")
    assert (audit["asked"], audit["compared"]) == ("100", audit["points"])
    assert 10 < audit["points"] <= 100
    assert audit["chunks"] <= 7
    name = "audit/100/part-000"
    points, status = read_columns(audited.run.folder.path(f"{name}.parquet"), POINT, "status")
    assert set(status) == {0, 1}
    for suffix in ("json", "parquet"):
        audited.run.folder.path(f"{name}.{suffix}").unlink()
    assert not read_audited(audited.run, parse_audit("100"))
    assert audited.merge("100")["seed"] == audit["seed"]
    assert read_columns(audited.run.folder.path(f"{name}.parquet"), POINT)[0].tolist() == points.tolist()


def test_how_much_is_enough(tmp_path: Path) -> None:
    """A table is done for what it was audited by and less, not for more; with 0 nothing is read and it is said."""
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET)
    audited = Audited(tmp_path)
    audited.label()
    assert audited.merge("0")["points"] == 0
    assert "audit    none: --audit 0" in format_report(audited.run)
    assert [audited.done(audit) for audit in ("0", "10", "all")] == [True, False, False]
    table = Path(open_result(audited.run, "", None).url).read_bytes()
    audited.merge("20")
    assert [audited.done(audit) for audit in ("0", "10", "20", "21", "all")] == [True, True, True, False, False]
    audited.merge("all")
    assert audited.done("all")
    assert Path(open_result(audited.run, "", None).url).read_bytes() == table


def alter_labels(audited: Audited, group: int = 0, row: int = 3) -> int:
    """Add 1 to a label in a group's file, and make its marker agree; return the point."""
    folder = audited.run.folder
    name = f"labels/group-{group:03d}"
    marker = json.loads(folder.path(f"{name}.json").read_text())
    jobs = read_jobs(audited.run, group)
    file = BlockFile.of_facts(folder.path(f"{name}.parquet"), marker["facts"])
    status, labels = (column.copy() for column in file.read_points(jobs.points, "status", "label"))
    labels[row] += 1
    size = marker["facts"]["block_size"]
    written = write_blocks(file.path, jobs.points, {"status": status, "label": labels}, "label", labels[status == 0],
                           size=size)
    marker["facts"] |= written
    marker["files"] = {f"{name}.parquet": file.path.stat().st_size}
    folder.path(f"{name}.json").write_text(json.dumps(seal(marker)))
    return int(jobs.points[row])


@pytest.fixture
def labelled(tmp_path: Path) -> Audited:
    """A run up to its labels."""
    write_volume(tmp_path / "seg", make_array("crackle"), encoding="crackle", chunk_size=CHUNK, voxel_offset=OFFSET)
    audited = Audited(tmp_path)
    audited.label()
    return audited


def test_an_altered_label(labelled: Audited) -> None:
    """A label changed in the run's folder, marker and all, is found: row, chunk and both labels are named."""
    point = alter_labels(labelled)
    message, listed = labelled.refuse()
    array = make_array("crackle")
    voxel = [pq.read_table(labelled.settings.points)[axis][point].as_py() - o for axis, o in zip("xyz", OFFSET,
                                                                                              strict=True)]
    label = int(array[tuple(voxel)])
    begin = [o + v // 8 * 8 for o, v in zip(OFFSET, voxel, strict=True)]
    end = [min(b + 8, o + s) for b, o, s in zip(begin, OFFSET, SHAPE, strict=True)]
    chunk = "4_4_40/" + "_".join(f"{b}-{e}" for b, e in zip(begin, end, strict=True))
    assert f"row {point}, chunk {chunk} of file://" in message
    assert f"would have ok {label + 1}, found ok {label}" in message
    assert [(entry["row"], entry["chunk"]) for entry in listed] == [(point, chunk)]


def test_what_was_found_is_not_forgotten(labelled: Audited) -> None:
    """A point that an audit found wrong is looked at by the next, whatever its sample; once mended, no more."""
    alter_labels(labelled)
    labelled.refuse("all")
    _, listed = labelled.refuse("1")
    assert len(listed) == 1
    for path in labelled.run.folder.path("labels").iterdir():
        path.unlink()
    labelled.label()
    assert labelled.merge("1")["mismatches"] == 0
    assert json.loads(labelled.run.folder.path(MISMATCHES).read_text())["mismatches"] == []
    assert labelled.done("1")


def test_a_published_table_that_is_found_wrong(labelled: Audited) -> None:
    """A table that passed with a sample and failed with all is not done, neither by the sample's measure."""
    alter_labels(labelled)
    labelled.merge("0")
    assert labelled.done("0")
    with pytest.raises(AuditError):
        labelled.merge("all")
    assert not labelled.done("1")


def test_swapped_rows(labelled: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table whose labels are right but stand beside other rows is found, in the file that was written."""
    from voxelprobe.run import result

    write = result.Result.write

    def swap(self: Any, path: Path, values: Any, board: Any) -> None:
        write(self, path, values, board)
        table = pq.read_table(path)
        label = table["label"].combine_chunks()
        index = table.schema.get_field_index("label")
        pq.write_table(table.set_column(index, table.schema.field(index), label.take(pa.array([*range(1, 400), 0]))),
                       path)

    monkeypatch.setattr(result.Result, "write", swap)
    _, listed = labelled.refuse()
    assert len(listed) > 100


def test_places_of_another_unit(tmp_path: Path) -> None:
    """A plan with points at places as of another unit gives labels that exist, and is found."""
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET)
    audited = Audited(tmp_path)
    plan_run(audited.run, audited.board)
    for group in audited.groups:
        path = audited.run.folder.path(f"plan/points-{group:03d}.parquet")
        points, places = read_columns(path, POINT, PLACE)
        size = path.stat().st_size
        write_columns(path, {POINT: points, PLACE: (places // 2).astype(np.uint32)})
        marker = audited.run.folder.path("plan/manifest.json")
        document = json.loads(marker.read_text())
        assert document["files"][f"plan/{path.name}"] == size
        document["files"][f"plan/{path.name}"] = path.stat().st_size
        marker.write_text(json.dumps(seal(document)))
    audited.label()
    message, listed = audited.refuse()
    assert "chunk 4_4_40/" in message
    assert len(listed) > 100


def test_a_chunk_that_is_another_in_the_cache(tmp_path: Path) -> None:
    """A chunk that the cache has with other labels, sound and with matching checksums, is found."""
    array = make_array("compressed_segmentation")
    write_volume(tmp_path / "seg", array, encoding="compressed_segmentation", chunk_size=CHUNK, voxel_offset=OFFSET)
    audited = Audited(tmp_path)
    names: list[str] = []

    def replace() -> None:
        jobs = read_jobs(audited.run, 0)
        x, y, z = (audited.run.volume.grid.positions(jobs.chunks[:1])[0] * 8).tolist()
        chunk = array[x : x + 8, y : y + 8, z : z + 8, np.newaxis] + np.uint64(1)
        stored = StoredObject(encode_chunk(chunk, "compressed_segmentation"), None)
        audited.cache().write(int(jobs.regions[0]), {int(jobs.chunks[0]): stored})
        names.append("4_4_40/" + audited.run.volume.grid.chunk_name((x // 8, y // 8, z // 8)))

    audited.label(between=replace)
    message, listed = audited.refuse()
    assert f"chunk {names[0]} of" in message
    assert [*{entry["chunk"] for entry in listed}] == names


def test_statuses_are_audited_too(tmp_path: Path) -> None:
    """A chunk that appears in the store after it was missing makes the table's status a difference."""
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET, skip_chunks=[(0, 0, 0)])
    audited = Audited(tmp_path)
    audited.label()
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET)
    message, listed = audited.refuse()
    assert "chunk 4_4_40/100-108_-30--22_7-15" in message
    assert "would have missing_chunk None, found ok" in message
    assert {entry["table"][0] for entry in listed} == {"missing_chunk"}


def test_a_store_mended_after_the_audit(tmp_path: Path) -> None:
    """What was damaged at the audit's time and right when it was read is read again before anything is refused."""
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET)
    file = tmp_path / "seg/4_4_40/100-108_-30--22_7-15"
    content = file.read_bytes()
    file.write_bytes(content[::-1])
    audited = Audited(tmp_path)
    plan_run(audited.run, audited.board)
    audit_run(audited.run, parse_audit("all"), threads=4)
    file.write_bytes(content)
    audited.label()
    assert audited.merge()["mismatches"] == 0


def test_corrupt_chunks_are_not_compared(tmp_path: Path) -> None:
    """A chunk that neither way can read is no difference; it is counted."""
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET)
    (tmp_path / "seg/4_4_40/100-108_-30--22_7-15").write_bytes(b"short")
    audited = Audited(tmp_path)
    audited.label()
    audit = audited.merge()
    assert audit["unread"] == 1
    assert 0 < audit["compared"] < 400
    assert read_decoded(audited.run, 0) is not None


@pytest.mark.parametrize("change", [{"key": "../other/4_4_40"}, {"key": "/etc"}, {"key": "5_5_40"},
                                    {"chunk_sizes": [[0, 8, 8]]}, {"size": [1, 1, 1]}, {"encoding": "crackle"}])
def test_an_info_that_changed_since(change: dict[str, Any], tmp_path: Path) -> None:
    """An `info` that names another folder when it is read again is refused before anything is read from there."""
    for name in ("seg", "other"):
        write_volume(tmp_path / name, make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET)
    audited = Audited(tmp_path)
    run = audited.run
    plan_run(run, audited.board)
    info = json.loads((tmp_path / "seg/info").read_text())
    info["scales"][0] |= change
    (tmp_path / "seg/info").write_text(json.dumps(info))
    with pytest.raises(InputError, match="as when the run began, found"):
        audit_run(run, parse_audit("all"), threads=4)


def test_encodings_whose_package_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that nobody else can read here are not audited, and the report says so and why."""
    write_volume(tmp_path / "seg", make_array("compressed_segmentation"), encoding="compressed_segmentation",
                 chunk_size=CHUNK, voxel_offset=OFFSET)
    monkeypatch.setitem(sys.modules, "compressed_segmentation", None)  # as Python has one that can't be imported
    audited = Audited(tmp_path)
    audited.label()
    audit = audited.merge("1000")
    assert audit["compared"] == 0
    assert "it takes the package compressed_segmentation, which isn't there" in audit["not_audited"]
    assert "audit    none: encoding compressed_segmentation of uint64" in format_report(audited.run)
    assert audited.done("1000")
