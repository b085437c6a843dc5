"""A run in parts, as the jobs of an array do it, and settings from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK = (64, 48, 32), (16, 16, 16)


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint32]:
    return np.random.default_rng(1).integers(0, 2**32, SHAPE, dtype=np.uint32)


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(2).integers(0, SHAPE, (3000, 3))


@pytest.fixture(scope="module")
def data(array: Any, voxels: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("jobs")
    write_volume(folder / "seg", array, chunk_size=CHUNK)
    return {"volume": folder / "seg", "points": write_points(folder / "p.npy", voxels)}


def groups_of(cli: Any) -> int:
    return int(json.loads((cli.run_folder / "plan/manifest.json").read_text())["facts"]["groups"])


def test_a_job_array(cli: Any, data: dict[str, Path], array: Any, voxels: Any) -> None:
    """After the plan, jobs of a group each, all at once, do the work; SamplePoints merges and fetches nothing."""
    with HttpStore(data["volume"]) as store:
        run = {"volume": store.url, "points": data["points"]}
        assert cli.run("PlanChunkGroups", **run).code == 0
        assert {request.path for request in store.requests} == {"info"}
        assert groups_of(cli) > 1
        jobs = [cli.start("SampleChunkGroup", group=group, no_lock=True, **run) for group in range(groups_of(cli))]
        outcomes = [cli.wait(job) for job in jobs]
        assert [outcome.code for outcome in outcomes] == [0] * len(jobs), "\n".join(o.err for o in outcomes)
        assert not cli.result.exists()
        fetched = [request.path for request in store.requests if request.path != "info"]
        assert len(fetched) == len(set(fetched)) == 4 * 3 * 2
        store.clear()
        outcome = cli.run(**run)
        assert outcome.code == 0, outcome.err
        assert {request.path for request in store.requests} == {"info"}
        assert "decoded" not in outcome.err
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()


def test_the_last_command_does_what_jobs_left(cli: Any, data: dict[str, Path], array: Any, voxels: Any) -> None:
    """Groups whose jobs never ran are done by SamplePoints, and a group's job makes the plan if there is none."""
    outcome = cli.run("SampleChunkGroup", group=1, **data)
    assert outcome.code == 0, outcome.err
    outcome = cli.run(**data)
    assert outcome.code == 0, outcome.err
    assert "group 0: decoded" in outcome.err
    assert "group 1: decoded" not in outcome.err
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()


@pytest.mark.parametrize("group", [99, -1])
def test_a_group_that_is_not_there(group: int, cli: Any, data: dict[str, Path]) -> None:
    """A job with a number beyond the plan's groups fails, and says which numbers there are."""
    assert cli.run("PlanChunkGroups", **data).code == 0
    outcome = cli.run("SampleChunkGroup", group=group, no_lock=True, **data)
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err
    assert f"group {group}: the plan has {groups_of(cli)} groups, numbered from 0" in outcome.err


@pytest.mark.parametrize("place", ["working folder", "LUIGI_CONFIG_PATH"])
def test_a_volume_from_the_configuration(place: str, cli: Any, data: dict[str, Path], array: Any, voxels: Any) -> None:
    """A section [SamplePoints] gives any parameter, for the whole command and for its parts; the command line wins."""
    settings = f"[SamplePoints]\nvolume = {data['volume']}\ncoord_resolution = nm\nmissing_chunks = error\n"
    file = cli.folder / "cwd/luigi.cfg" if place == "working folder" else cli.folder / "lab.cfg"
    file.write_text(settings)
    env = {} if place == "working folder" else {"LUIGI_CONFIG_PATH": str(file)}
    more = {"points": data["points"], "coord_resolution": "4,4,40", "env": env}
    assert cli.run("PlanChunkGroups", **more).code == 0
    assert cli.run("SampleChunkGroup", group=0, **more).code == 0
    outcome = cli.run(**more)
    assert outcome.code == 0, outcome.err
    # There is one run: the parts had the same settings.
    provenance = json.loads(pq.read_schema(cli.result).metadata[b"voxelprobe"])
    assert (provenance["missing_chunks"], provenance["coord_resolution_nm"]) == ("error", ["4", "4", "40"])
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()
