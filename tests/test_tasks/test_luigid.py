from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from voxelprobe.testing.volumes import write_volume

SHAPE = (48, 40, 24)
BIN = Path(sys.executable).parent


def test_two_commands_share_a_run_through_luigid(tmp_path: Path, luigid: int) -> None:
    """Two workers of a real luigid do one run together, and its table is right."""
    rng = np.random.default_rng(0)
    array = rng.integers(1, 2**63, SHAPE, dtype=np.uint64)
    write_volume(tmp_path / "seg", array, encoding="compressed_segmentation", chunk_size=(8, 8, 8))
    points = rng.integers(0, SHAPE, (500, 3))
    np.save(tmp_path / "points.npy", points)
    # local_scheduler=false: the user's configuration comes before the package's settings.
    (tmp_path / "lab.cfg").write_text("[core]\nlocal_scheduler = false\n")
    commands = [
        subprocess.Popen(
            [BIN / "luigi", "--module", "pipeline", "SamplePoints", "--scheduler-host", "127.0.0.1",
             "--scheduler-port", str(luigid), "--volume", f"file://{tmp_path}/seg", "--points",
             tmp_path / "points.npy", "--workspace", tmp_path / "ws", "--output", tmp_path / "out.parquet",
             "--no-lock", "--fetch-threads", str(threads)],
            cwd=tmp_path, env={**os.environ, "LUIGI_CONFIG_PATH": "lab.cfg"}, stderr=subprocess.PIPE, text=True,
        )
        for threads in (2, 3)
    ]
    messages = [command.communicate(timeout=120)[1] for command in commands]
    assert any(command.returncode == 0 for command in commands), messages
    table = pq.read_table(tmp_path / "out.parquet")
    assert (table["label"].to_numpy() == array[tuple(points.T)]).all()
