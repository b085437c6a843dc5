"""Runs with their audit: sound ones pass in every form, by the sample and as far as was asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from voxelprobe.records import POINT, read_columns
from voxelprobe.run.audit import audit_run, read_audited
from voxelprobe.run.audit_sample import parse_audit
from voxelprobe.run.groups import read_decoded
from voxelprobe.run.report import format_report
from voxelprobe.testing.audited_runs import CHUNK, OFFSET, SHAPE, Audited, make_array, tabulate
from voxelprobe.testing.encoders import ENCODERS
from voxelprobe.testing.volumes import write_volume

SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "hash": "murmurhash3_x86_128",
            "minishard_index_encoding": "gzip", "data_encoding": "gzip"}
ENCODINGS = ["compressed_segmentation", *ENCODERS]


def find_chunks(audited: Audited) -> Any:
    """Return the grid position of each point that is inside, as one number."""
    voxels = audited.voxels - OFFSET
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
    audited = Audited(tmp_path, points=tabulate(values), mip=mip, coord_resolution=text)
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
    table = Path(audited.result.url).read_bytes()
    audited.merge("20")
    assert [audited.done(audit) for audit in ("0", "10", "20", "21", "all")] == [True, True, True, False, False]
    audited.merge("all")
    assert audited.done("all")
    assert Path(audited.result.url).read_bytes() == table


def test_a_store_mended_after_the_audit(tmp_path: Path) -> None:
    """What was damaged at the audit's time and right when it was read is read again before anything is refused."""
    write_volume(tmp_path / "seg", make_array("raw"), chunk_size=CHUNK, voxel_offset=OFFSET)
    file = tmp_path / "seg/4_4_40/100-108_-30--22_7-15"
    content = file.read_bytes()
    file.write_bytes(content[::-1])
    audited = Audited(tmp_path)
    audited.plan()
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
