"""Whole runs with everything in Google's store: volume, points, output and workspace, against the emulator."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.mark.parametrize("encoding", ["compressed_segmentation", "raw"])
def test_everything_in_a_bucket(tmp_path: Path, oracle: Any, gcs: Any, encoding: str) -> None:
    """The command reads and writes gs:// alone; another machine finds the run done and the table there."""
    oracle.write(tmp_path / "seg", encoding=encoding, compress="gzip" if encoding == "raw" else None)
    volume = gcs.upload(tmp_path / "seg", "data/seg")
    points = oracle.points()
    table = pa.table({"id": np.arange(len(points)), **{axis: points[:, i] for i, axis in enumerate("xyz")}})
    pq.write_table(table, tmp_path / "points.parquet")
    gcs.put("points.parquet", (tmp_path / "points.parquet").read_bytes())
    command = [Path(sys.executable).parent / "luigi", "--module", "pipeline", "SamplePoints", "--volume", volume,
               "--points", f"{gcs.url}/points.parquet", "--workspace", f"{gcs.url}/ws",
               "--output", f"{gcs.url}/out/labelled.parquet", "--workers", "2"]
    said = []
    for machine in ("one", "other"):
        home = tmp_path / machine
        home.mkdir()
        env = os.environ | {"HOME": str(home), "TMPDIR": str(home), "NO_GCE_CHECK": "true"}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=home, timeout=120)
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stdout + ended.stderr)
        content = gcs.bucket.blob("out/labelled.parquet").download_as_bytes()
        result = pq.read_table(io.BytesIO(content))
        assert set(result["status"].to_pylist()) == {"ok"}
        assert result["id"].to_pylist() == list(range(len(points)))
        np.testing.assert_array_equal(result["label"].to_numpy(), oracle.at(points))
    assert "nothing to do" not in said[0]
    assert "nothing to do" in said[1]
    names = [blob.name for blob in gcs.bucket.list_blobs()]
    assert sum(name.endswith("report.json") for name in names) == 1
    assert not [name for name in names if ".tmp-" in name]
