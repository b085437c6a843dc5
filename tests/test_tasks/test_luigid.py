from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from luigi.execution_summary import LuigiRunResult, LuigiStatusCode
from luigi.scheduler import Scheduler
from luigi.worker import Worker

import pipeline
from voxelprobe.testing.volumes import write_volume

SHAPE = (48, 40, 24)
BIN = Path(sys.executable).parent


@pytest.mark.parametrize("apart", [0.0, 0.2, 0.4])
def test_two_commands_share_a_run_through_luigid(tmp_path: Path, luigid: int, apart: float) -> None:
    """Two workers of a real luigid do one run together, its table is right, and one of them says so."""
    rng = np.random.default_rng(0)
    array = rng.integers(1, 2**63, SHAPE, dtype=np.uint64)
    write_volume(tmp_path / "seg", array, encoding="compressed_segmentation", chunk_size=(8, 8, 8))
    points = rng.integers(0, SHAPE, (500, 3))
    np.save(tmp_path / "points.npy", points)
    # local_scheduler=false: the user's configuration comes before the package's settings.
    (tmp_path / "lab.cfg").write_text("[core]\nlocal_scheduler = false\n")
    commands = []
    for threads in (2, 3):
        commands.append(subprocess.Popen(
            [BIN / "luigi", "--module", "pipeline", "SamplePoints", "--scheduler-host", "127.0.0.1",
             "--scheduler-port", str(luigid), "--volume", f"file://{tmp_path}/seg", "--points",
             tmp_path / "points.npy", "--workspace", tmp_path / "ws", "--output", tmp_path / "out.parquet",
             "--no-lock", "--fetch-threads", str(threads)],
            cwd=tmp_path, env={**os.environ, "LUIGI_CONFIG_PATH": "lab.cfg"}, stderr=subprocess.PIPE, text=True,
        ))
        time.sleep(apart)
    messages = [command.communicate(timeout=120)[1] for command in commands]
    codes = {command.returncode for command in commands}
    assert 0 in codes, messages
    assert codes <= {0, 10, 20, 25}, messages
    table = pq.read_table(tmp_path / "out.parquet")
    assert (table["label"].to_numpy() == array[tuple(points.T)]).all()


@pytest.fixture
def task(tmp_path: Path) -> pipeline.SamplePoints:
    array = np.arange(1, 1 + 16**3, dtype=np.uint64).reshape(16, 16, 16)
    write_volume(tmp_path / "seg", array, encoding="raw", chunk_size=(8, 8, 8))
    np.save(tmp_path / "points.npy", np.argwhere(array)[::40])
    return pipeline.SamplePoints(volume=f"file://{tmp_path}/seg", points=str(tmp_path / "points.npy"),
                                 workspace=str(tmp_path / "ws"))


def test_what_another_worker_did_is_done(task: pipeline.SamplePoints) -> None:
    """A worker that finds everything done by another ends as if it had done it, and says so in its summary."""
    scheduler = Scheduler()
    with Worker(scheduler=scheduler, worker_id="ours") as ours, Worker(scheduler=scheduler, worker_id="other") as other:
        assert all([ours.add(task), other.add(task)])
        assert all([other.run(), ours.run()])
        result = LuigiRunResult(ours)
    assert result.status is LuigiStatusCode.SUCCESS
    assert "* 3 complete ones were encountered" in result.summary_text


def test_what_nobody_did_is_not_done(task: pipeline.SamplePoints) -> None:
    """A worker that leaves a run unfinished says so, whoever has it in hand."""
    with Worker(scheduler=Scheduler(), worker_id="ours") as ours:
        assert ours.add(task)
        assert LuigiRunResult(ours).status is LuigiStatusCode.NOT_RUN
