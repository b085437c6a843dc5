"""Runs with their audit: whatever is altered on the way is found and named, and nothing is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.errors import AuditError, InputError
from voxelprobe.run.audit import audit_run
from voxelprobe.run.audit_check import MISMATCHES
from voxelprobe.run.audit_sample import parse_audit
from voxelprobe.run.plan import plan_run, read_jobs
from voxelprobe.testing.audited_runs import CHUNK, OFFSET, SHAPE, Audited, make_array
from voxelprobe.testing.encoders import encode_chunk
from voxelprobe.testing.volumes import write_volume
from voxelprobe.transport.protocol import StoredObject


@pytest.fixture
def labelled(tmp_path: Path) -> Audited:
    """A run up to its labels."""
    write_volume(tmp_path / "seg", make_array("crackle"), encoding="crackle", chunk_size=CHUNK, voxel_offset=OFFSET)
    audited = Audited(tmp_path)
    audited.label()
    return audited


def test_an_altered_label(labelled: Audited) -> None:
    """A label changed in the run's folder, marker and all, is found: row, chunk and both labels are named."""
    point = labelled.alter_label()
    message, listed = labelled.refuse()
    array = make_array("crackle")
    voxel = (labelled.voxels[point] - OFFSET).tolist()
    label = int(array[tuple(voxel)])
    begin = [o + v // 8 * 8 for o, v in zip(OFFSET, voxel, strict=True)]
    end = [min(b + 8, o + s) for b, o, s in zip(begin, OFFSET, SHAPE, strict=True)]
    chunk = "4_4_40/" + "_".join(f"{b}-{e}" for b, e in zip(begin, end, strict=True))
    assert f"row {point}, chunk {chunk} of file://" in message
    assert f"would have ok {label + 1}, found ok {label}" in message
    assert [(entry["row"], entry["chunk"]) for entry in listed] == [(point, chunk)]


def test_what_was_found_is_not_forgotten(labelled: Audited) -> None:
    """A point that an audit found wrong is looked at by the next, whatever its sample; once mended, no more."""
    labelled.alter_label()
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
    labelled.alter_label()
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
    audited.plan()
    audited.halve_places()
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
