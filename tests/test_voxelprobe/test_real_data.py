"""A published volume on this disk, if there is one: pinky40, in the folder that VOXELPROBE_PINKY40 names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from voxelprobe import sample_points

PINKY40 = os.environ.get("VOXELPROBE_PINKY40", "")
pytestmark = pytest.mark.skipif(not PINKY40, reason="VOXELPROBE_PINKY40 names no folder")


@pytest.mark.parametrize("mip", [0, 1])
@pytest.mark.parametrize("cached", [False, True])
def test_random_points_equal_cloudvolumes_full_decode(tmp_path: Path, mip: int, cached: bool) -> None:
    """Random points, corners and points outside of each scale equal what CloudVolume decodes of the whole scale."""
    from cloudvolume import CloudVolume

    folder = Path(PINKY40).resolve()
    scale = json.loads((folder / "info").read_text())["scales"][mip]
    begin, size = np.array(scale["voxel_offset"]), np.array(scale["size"])
    volume = CloudVolume(f"file://{folder}", mip=mip, fill_missing=True, progress=False)
    rng = np.random.default_rng(mip)
    points = np.concatenate([rng.integers(-3, size + 3, (200_000, 3)),
                             np.array(list(np.ndindex(2, 2, 2))) * (size - 1)])
    inside = ((points >= 0) & (points < size)).all(axis=1)
    expected = np.asarray(volume[:])[..., 0][tuple(points[inside].T)]
    for _ in range(2 if cached else 1):
        labels, status = sample_points(
            f"precomputed://file://{folder}", points + begin, mip=mip, coord_resolution=scale["resolution"],
            cache=tmp_path if cached else None, return_status=True,
        )
        np.testing.assert_array_equal(status == "out_of_bounds", ~inside)
        missing = (status == "missing_chunk")[inside]
        np.testing.assert_array_equal(expected[missing], 0)
        np.testing.assert_array_equal(labels[status == "ok"].data, expected[~missing])
        assert labels.dtype == volume.dtype
