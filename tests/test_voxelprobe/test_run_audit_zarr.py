"""Runs over zarr and n5 with their audit: sound ones pass, and whatever is altered on the way is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxelprobe.errors import InputError
from voxelprobe.run.audit import audit_run
from voxelprobe.run.audit_sample import parse_audit
from voxelprobe.run.plan import plan_run
from voxelprobe.run.report import format_report
from voxelprobe.testing.audited_runs import CHUNK, SHAPE, Audited, tabulate
from voxelprobe.testing.zarr_volumes import write_zarr

SHARD = (16, 16, 16)
KINDS = ["zarr2", "zarr3", "shards", "n5"]


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 5) -> Any:
    return np.random.default_rng(seed).integers(1, 2**64, shape, np.uint64)


def write(kind: str, folder: Path, array: Any) -> str:
    """Write an array (x, y, z) as a volume of a kind; return its cloudpath."""
    if kind == "n5":
        import tensorstore

        metadata = {"dimensions": list(array.shape), "blockSize": list(CHUNK), "dataType": array.dtype.name,
                    "compression": {"type": "gzip"}, "resolution": [4, 4, 40]}
        spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{folder}/"}, "metadata": metadata}
        tensorstore.open(spec, create=True).result().write(array).result()
        return f"n5://file://{folder}"
    write_zarr(folder, array.T, 2 if kind == "zarr2" else 3, chunks=CHUNK[::-1],
               shards=SHARD[::-1] if kind == "shards" else None)
    return f"zarr://file://{folder}"


def object_of(kind: str, x: int, y: int, z: int) -> str:
    """Return the name of what holds a chunk."""
    return {"zarr2": f"{z}.{y}.{x}", "n5": f"{x}/{y}/{z}"}.get(kind, f"c/{z}/{y}/{x}")


def audit_of(folder: Path, cloudpath: str) -> Audited:
    """Return a run over points in and before a volume that begins at 0."""
    return Audited(folder, cloudpath=cloudpath, offset=(0, 0, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_sound_runs_pass(kind: str, tmp_path: Path) -> None:
    """Of every kind, with chunks that aren't stored and points outside, all points agree, and the way is named."""
    array = noise()
    array[8:16, 8:16, 8:16] = array[:16, :16, :16] = 0
    audited = audit_of(tmp_path, write(kind, tmp_path / "seg", array))
    assert not (tmp_path / "seg" / object_of(kind, 0, 0, 0)).exists()
    audited.label()
    audit = audited.merge()
    assert (audit["points"], audit["compared"], audit["mismatches"], audit["unread"]) == (400, 400, 0, 0)
    assert audit["not_audited"] == ""
    assert f"read again by {audit['way']}, 0 differ" in format_report(audited.run)
    labels = pq.read_table(audited.result.url)["label"].to_pylist()
    inside = ((audited.voxels >= 0) & (audited.voxels < SHAPE)).all(axis=1)
    expected = [int(array[tuple(p)]) if ok else None for p, ok in zip(audited.voxels, inside, strict=True)]
    assert labels == expected


@pytest.mark.parametrize("unit", ["nm", "8,8,40", "1.6,3.2,8", None])
@pytest.mark.parametrize("mip", ["0", "1"])
@pytest.mark.parametrize("values", ["whole", "float"])
def test_units_and_levels(unit: str | None, mip: str, values: str, tmp_path: Path) -> None:
    """In every unit, of whole numbers and fractions, at every level that is translated, all points agree."""
    import zarr

    size = np.array([0.04, 0.004, 0.004])
    begin = size * [3, -7, 4]
    datasets = [{"path": str(i), "coordinateTransformations": [
        {"type": "scale", "scale": (size * 2**i).round(6).tolist()},
        {"type": "translation", "translation": (begin + size * (2**i - 1) / 2).round(6).tolist()}]} for i in range(2)]
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    zarr.create_group(tmp_path / "seg", attributes={"ome": {"version": "0.5", "multiscales": [
        {"axes": axes, "datasets": datasets}]}})
    for i in range(2):
        write("shards" if i else "zarr3", tmp_path / f"seg/{i}", noise()[:: 2**i, :: 2**i, :: 2**i])
    factor = np.array([4, 4, 40]) / {"nm": (1, 1, 1), "8,8,40": (8, 8, 40), "1.6,3.2,8": (1.6, 3.2, 8),
                                     None: (4, 4, 40)}[unit]
    points = (np.random.default_rng(1).random((300, 3)) * SHAPE + [4, -7, 3]) * factor
    points = points.astype(np.int64) if values == "whole" else points
    audited = Audited(tmp_path, points=tabulate(points), cloudpath=f"zarr3://file://{tmp_path}/seg", mip=mip,
                      coord_resolution=unit)
    audited.label()
    assert audited.merge()["compared"] == 300
    assert pq.read_table(audited.result.url)["label"].null_count < 60


@pytest.mark.parametrize("kind", KINDS)
def test_altered_bytes(kind: str, tmp_path: Path) -> None:
    """A chunk whose stored bytes were others when the labels were read, sound in itself, is found and named."""
    array = noise()
    other = array.copy()
    other[16:24, 8:16, :8] += np.uint64(1)
    audited = audit_of(tmp_path, write(kind, tmp_path / "seg", other))
    audited.label()
    write(kind, tmp_path / "new", array)
    name = object_of(kind, 1, 0, 0) if kind == "shards" else object_of(kind, 2, 1, 0)
    (tmp_path / "seg" / name).write_bytes((tmp_path / "new" / name).read_bytes())
    message, listed = audited.refuse()
    touched = np.flatnonzero((audited.voxels // CHUNK == (2, 1, 0)).all(axis=1))
    assert [entry["row"] for entry in listed] == touched.tolist()
    assert {entry["chunk"] for entry in listed} == {"16-24_8-16_0-8"}
    label = int(array[tuple(audited.voxels[touched[0]])])
    assert f"row {touched[0]}, chunk 16-24_8-16_0-8 of {audited.run.volume.url}" in message
    assert f"would have ok {label + 1}, found ok {label}" in message


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_label(kind: str, tmp_path: Path) -> None:
    """A label changed in the run's folder, marker and all, is found."""
    audited = audit_of(tmp_path, write(kind, tmp_path / "seg", noise()))
    audited.label()
    point = audited.alter_label()
    _, listed = audited.refuse()
    assert [entry["row"] for entry in listed] == [point]


@pytest.mark.parametrize("kind", KINDS)
def test_places_of_another_unit(kind: str, tmp_path: Path) -> None:
    """A plan with points at places as of another unit gives labels that exist, and is found."""
    audited = audit_of(tmp_path, write(kind, tmp_path / "seg", noise()))
    audited.plan()
    audited.halve_places()
    audited.label()
    _, listed = audited.refuse()
    assert len(listed) > 100


@pytest.mark.parametrize("kind", KINDS)
def test_corrupt_chunks_are_not_compared(kind: str, tmp_path: Path) -> None:
    """An object that neither way can read is no difference; its chunks are counted."""
    audited = audit_of(tmp_path, write(kind, tmp_path / "seg", noise()))
    (tmp_path / "seg" / object_of(kind, 0, 0, 0)).write_bytes(b"short")
    audited.label()
    audit = audited.merge()
    assert audit["unread"] == (8 if kind == "shards" else 1)
    assert 0 < audit["compared"] < 400
    words = pq.read_table(audited.result.url)["status"].to_pylist()
    assert words.count("corrupt_chunk") == 400 - audit["compared"]


def change_zarr(document: dict[str, Any]) -> list[dict[str, Any]]:
    grid = document["chunk_grid"]
    return [{"shape": [18, 24, 41]}, {"chunk_grid": grid | {"configuration": {"chunk_shape": [8, 8, 0]}}},
            {"chunk_grid": grid | {"configuration": {"chunk_shape": [8, 8, 2**30]}}}, {"data_type": "uint32"},
            {"dimension_names": ["c", "z", "y"]}, {"codecs": None}, {"dimension_names": ["x", "y", "z"]}]


@pytest.mark.parametrize("number", range(7))
def test_metadata_that_changed_since(number: int, tmp_path: Path) -> None:
    """Metadata of another array when they are read again end the audit, or have it say what it doesn't know."""
    audited = audit_of(tmp_path, write("zarr3", tmp_path / "seg", noise()))
    run = audited.run
    plan_run(run, audited.board)
    path = tmp_path / "seg/zarr.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | change_zarr(document)[number]))
    began = run.folder.path("audit")
    if number in (1, 2, 4, 5):  # nothing that either reader takes
        audit_run(run, parse_audit("all"), threads=4)
        assert json.loads((began / "all/part-000.json").read_text())["facts"]["not_audited"]
        return
    with pytest.raises(InputError, match=r"expected the scale .* as when the run began, found"):
        audit_run(run, parse_audit("all"), threads=4)
    assert not list(began.rglob("part-*"))


@pytest.mark.parametrize("path", ["../other", "/etc", "other", "s0/../../other"])
def test_levels_that_lead_elsewhere_since(path: str, tmp_path: Path) -> None:
    """A level that another folder is named for when the metadata are read again is not read from there."""
    levels = {"multiscales": [{"datasets": [{"path": "s0", "transform": {
        "axes": list("zyx"), "scale": [1, 1, 1], "translate": [0, 0, 0]}}]}]}
    for name in ("seg/s0", "seg/other", "other"):
        write("n5", tmp_path / name, noise())
    root = tmp_path / "seg/attributes.json"
    root.write_text(json.dumps(levels))
    audited = audit_of(tmp_path, f"n5://file://{tmp_path}/seg")
    run = audited.run
    plan_run(run, audited.board)
    levels["multiscales"][0]["datasets"][0]["path"] = path
    root.write_text(json.dumps(levels))
    with pytest.raises(InputError, match="expected the scales as when the run began, found one at"):
        audit_run(run, parse_audit("all"), threads=4)
