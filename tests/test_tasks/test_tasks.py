from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import luigi
import numpy as np
import pytest

import pipeline
from tasks.base import _open_once
from voxelprobe.errors import InputError
from voxelprobe.testing.volumes import write_volume

SHAPE = (40, 36, 20)


@pytest.fixture(autouse=True)
def fresh_runs() -> Iterator[None]:
    _open_once.cache_clear()
    yield
    _open_once.cache_clear()


@pytest.fixture
def parameters(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    array = rng.integers(1, 2**63, SHAPE, dtype=np.uint64)
    write_volume(tmp_path / "seg", array, encoding="raw", chunk_size=(8, 8, 8))
    np.save(tmp_path / "points.npy", rng.integers(0, SHAPE, (300, 3)))
    return {"volume": f"file://{tmp_path}/seg", "points": str(tmp_path / "points.npy"),
            "workspace": str(tmp_path / "ws")}


def build(*tasks: luigi.Task, workers: int = 1) -> bool:
    return bool(luigi.build(tasks, local_scheduler=True, workers=workers, log_level="WARNING"))


def test_each_stage_is_complete_only_with_its_marker(parameters: dict[str, Any]) -> None:
    """A stage is complete when its marker and all its files are there, and not a moment before or after."""
    plan = pipeline.PlanChunkGroups(**parameters)
    fetch = pipeline.FetchChunks(group=0, **parameters)
    decode = pipeline.DecodePoints(group=0, **parameters)
    assert not any(task.complete() for task in (plan, fetch, decode))
    assert build(decode)
    assert all(task.complete() for task in (plan, fetch, decode))
    folder = plan.engine_run.folder
    folder.path("labels/group-000.parquet").unlink()
    assert not decode.complete()
    folder.path("plan/chunks-000.parquet").write_bytes(b"short")
    assert not plan.complete()


def test_an_edited_marker_is_no_marker(parameters: dict[str, Any]) -> None:
    """A marker with another key, or that isn't JSON, means that the stage is still to be done."""
    plan = pipeline.PlanChunkGroups(**parameters)
    assert build(plan)
    path = plan.engine_run.folder.path("plan/manifest.json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"key": "0" * 32}))
    assert not plan.complete()
    path.write_text(path.read_text()[:-9])
    assert not plan.complete()


def test_the_graph_grows_with_the_plan(parameters: dict[str, Any]) -> None:
    """Before the plan the merge needs the plan; after it, every group, each with its stages, and the audit."""
    merge = pipeline.MergeTable(**parameters)
    assert [type(task).__name__ for task in merge.requires()] == ["PlanChunkGroups"]
    assert build(merge.clone(pipeline.PlanChunkGroups))
    *groups, audit = merge.requires()
    assert type(audit).__name__ == "AuditPoints"
    assert len(groups) > 1
    assert {type(task).__name__ for task in groups} == {"DecodePoints"}
    assert type(groups[0].requires()).__name__ == "FetchChunks"


@pytest.mark.parametrize("name", [*(stage.__name__ for stage in pipeline.STAGES), "SamplePoints"])
def test_tasks_pickle(name: str, parameters: dict[str, Any]) -> None:
    """Luigi sends tasks to worker processes."""
    cls = getattr(pipeline, name)
    task = cls(**parameters, **({"group": 0} if "group" in dict(cls.get_params()) else {}))
    assert pickle.loads(pickle.dumps(task)) == task


def test_knobs_are_not_part_of_the_identity(parameters: dict[str, Any]) -> None:
    """Threads and the cache change no byte of the result, so they make no other task and no other run."""
    task = pipeline.SamplePoints(**parameters)
    other = pipeline.SamplePoints(**parameters, fetch_threads=3, cache_bytes=1, cache="elsewhere")
    assert task.task_id == other.task_id
    assert task.engine_run.key == other.engine_run.key


@pytest.mark.parametrize(
    "change",
    [{"coord_resolution": "nm"}, {"missing_chunks": "error"}, {"point_columns": "z,y,x"}, {"volume": "copy"},
     {"points": "copy"}],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_result_makes_another_run(parameters: dict[str, Any], change: dict[str, str]) -> None:
    """Every parameter that can change a byte of the table is part of the run key."""
    run = pipeline.SamplePoints(**parameters).engine_run
    if change == {"volume": "copy"}:
        source = Path(parameters["volume"].removeprefix("file://"))
        source.rename(source.with_name("copy"))
        change = {"volume": f"file://{source.with_name('copy')}"}
    if change == {"points": "copy"}:
        np.save(Path(parameters["points"]).with_name("copy.npy"), np.zeros((1, 3), np.int64))
        change = {"points": str(Path(parameters["points"]).with_name("copy.npy"))}
    other = pipeline.SamplePoints(**{**parameters, **change}).engine_run
    assert run.key != other.key
    assert run.folder.location != other.folder.location


def test_a_copy_of_the_points_is_the_same_run(parameters: dict[str, Any]) -> None:
    """Points are known by their content: a moved or copied table is not another run."""
    original = Path(parameters["points"])
    copy = original.parent / "elsewhere" / original.name
    copy.parent.mkdir()
    copy.write_bytes(original.read_bytes())
    key = pipeline.SamplePoints(**parameters).engine_run.key
    assert pipeline.SamplePoints(**{**parameters, "points": str(copy)}).engine_run.key == key


def test_a_group_beyond_the_plan_is_refused(parameters: dict[str, Any]) -> None:
    """A job array that is too long is told how many groups there are."""
    assert build(pipeline.PlanChunkGroups(**parameters))
    with pytest.raises(InputError, match=r"group 999: the plan has \d+ groups"):
        pipeline.FetchChunks(group=999, **parameters).run()


def test_progress_reaches_luigi(parameters: dict[str, Any]) -> None:
    """Luigi's status message and percentage of a stage say how far it is."""
    task = pipeline.PlanChunkGroups(**parameters)
    messages: list[str] = []
    task.set_status_message = messages.append
    task.set_progress_percentage = lambda percent: messages.append(f"{percent} %")
    task.run()
    assert messages[:2] == ["300 of 600 points", "50 %"]


@pytest.mark.parametrize(("program", "own", "threads"), [
    ("luigi", {}, "1"), ("luigi", {"OPENBLAS_NUM_THREADS": "2"}, "2"), ("analysis.py", {}, None),
], ids=["command", "the user's own", "another program"])
@pytest.mark.skipif(not Path("/proc/self/task").is_dir() or len(os.sched_getaffinity(0)) < 2, reason="counts threads")
def test_numpy_starts_no_threads(program: str, own: dict[str, str], threads: str | None) -> None:
    """A command makes no products of matrices, and starts no threads for them; others' programs and settings stay."""
    code = f"""
import os, sys
sys.argv[0] = {program!r}
import pipeline, numpy
print(os.environ.get("OPENBLAS_NUM_THREADS"), len(os.listdir("/proc/self/task")) == 1)
"""
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    found = subprocess.run([sys.executable, "-c", code], env=env | own, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(threads), str(threads == "1")]
