from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    runpy.run_path(str(DEMO / "make_demo.py"))["main"](folder)
    return folder


def read(folder: Path, mip: int) -> np.ndarray[Any, Any]:
    from cloudvolume import CloudVolume

    volume = CloudVolume(f"file://{folder / 'volume'}", mip=mip, fill_missing=True, progress=False)
    return np.asarray(volume[:])[..., 0]


def test_the_demo_is_what_its_script_makes(rebuilt: Path) -> None:
    """Running make_demo.py again gives the same files, `info`, labels of both scales, and points."""
    names = [sorted(str(p.relative_to(f)) for p in f.glob("volume/**/*") if p.is_file()) for f in (DEMO, rebuilt)]
    assert names[0] == names[1]
    assert (DEMO / "volume/info").read_text() == (rebuilt / "volume/info").read_text()
    for mip in range(2):
        np.testing.assert_array_equal(read(DEMO, mip), read(rebuilt, mip))
    committed, made = (pq.read_table(folder / "synapses.parquet") for folder in (DEMO, rebuilt))
    assert committed.schema == made.schema
    for name in committed.column_names:
        assert committed[name].is_null().equals(made[name].is_null())
        np.testing.assert_array_equal(committed[name].to_numpy(), made[name].to_numpy())


def test_the_demo_shows_each_status() -> None:
    """The points of synapses.parquet have the statuses that the README counts."""
    labels = read(DEMO, 0)
    table = pq.read_table(DEMO / "synapses.parquet")
    points = np.stack([table[name].to_numpy() for name in "xyz"], 1)
    valid = np.isfinite(points).all(1)
    nulls = [table[name].null_count for name in "xyz"]
    assert (nulls, np.isnan(points).any(1).sum(), np.isinf(points).sum()) == ([1, 1, 1], 2, 1)
    voxels = np.floor(points[valid] / (16, 16, 40)).astype(np.int64) - (1201, 803, 52)
    inside = ((voxels >= 0) & (voxels < labels.shape)).all(1)
    voxels = voxels[inside]
    missing = (voxels // 64 == (3, 3, 1)).all(1)
    found = labels[tuple(voxels[~missing].T)]
    counts = [len(found), (found == 0).sum(), missing.sum(), (~inside).sum(), (~valid).sum()]
    said = re.search(
        r"`ok` \| ([\d,]+), of which (\d+) .*`missing_chunk` \| (\d+) .*`out_of_bounds` \| (\d+) .*"
        r"`invalid_coordinate` \| (\d+) ", (DEMO / "README.md").read_text(), re.DOTALL)
    assert said is not None
    assert counts == [int(number.replace(",", "")) for number in said.groups()] == [1960, 98, 34, 3, 3]
    assert found[found > 0].min() > 2**63


def test_the_demo_is_small() -> None:
    """The demo's files are below a megabyte together."""
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 1_000_000
