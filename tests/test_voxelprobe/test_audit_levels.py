"""The audit's own reading of OME-Zarr's and n5's levels, against what the product makes of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe.opening import open_volume
from voxelprobe.testing.audited_scales import open_scale
from voxelprobe.testing.zarr_volumes import write_zarr


def multiscales(levels: list[tuple[Any, Any]], unit: str = "micrometer", **more: Any) -> list[Any]:
    """Return OME's description of levels of (scale, translation or None), z, y, x."""
    datasets = [{"path": f"s{i}", "coordinateTransformations": [{"type": "scale", "scale": scale}] + (
        [] if place is None else [{"type": "translation", "translation": place}])}
        for i, (scale, place) in enumerate(levels)]
    return [{"version": "0.4", "datasets": datasets,
             "axes": [{"name": axis, "type": "space", "unit": unit} for axis in "zyx"], **more}]


def pyramid(array: Any, mips: int) -> list[Any]:
    return [array[:: 2**mip, :: 2**mip, :: 2**mip] for mip in range(mips)]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("place", ["none", "first's", "centres"])
@pytest.mark.parametrize("whole", [None, [{"type": "scale", "scale": [2, 1, 1]},
                                          {"type": "translation", "translation": [0.16, 0, 0.008]}]])
def test_levels_of_ome(version: int, place: str, whole: Any, tmp_path: Path) -> None:
    """Of every level, its key, offset and units agree with what the product makes of scales and translations."""
    array = np.random.default_rng(7).integers(0, 2**64, (21, 18, 11), np.uint64)
    levels = []
    for mip in range(3):
        size = [0.04 * 2**mip, 0.004 * 2**mip, 0.0172 * 2**mip]
        begin = [0.08, 0.012, 0.0344] if place != "none" else [0, 0, 0]
        centre = [b + (s - s / 2**mip) / 2 for b, s in zip(begin, size, strict=True)]
        levels.append((size, {"none": None, "first's": begin, "centres": centre}[place]))
    document = multiscales(levels)
    if whole is not None:
        document[0]["coordinateTransformations"] = whole
        document[0]["coordinateTransformations"][1]["translation"][2] = 0.0172 * 3
    import zarr

    attributes = {"multiscales": document} if version == 2 else {"ome": {"version": "0.5", "multiscales": document}}
    zarr.create_group(tmp_path, zarr_format=version, attributes=attributes)
    for mip, level in enumerate(pyramid(array, 3)):
        write_zarr(tmp_path / f"s{mip}", level.T, version, chunks=(4, 8, 8))
    for mip, unit in itertools.product(range(3), (None, "nm", "8,8,40")):
        scale = open_scale("zarr", tmp_path, mip, unit)
        began = open_volume(f"zarr://file://{tmp_path}", mip=mip).scale
        assert (scale.key, scale.voxel_offset, scale.size) == (f"s{mip}", began.voxel_offset, began.size)
        expected = {None: [2**mip] * 3, "nm": began.resolution,
                    "8,8,40": [r / s for r, s in zip(began.resolution, (8, 8, 40), strict=True)]}[unit]
        np.testing.assert_allclose([float(1 / ratio) for ratio in scale.ratios], expected, rtol=1e-12)


N5_GROUPS: list[tuple[Any, list[Any]]] = [
    ({"scales": [[1, 1, 1], [2, 2, 4]], "pixelResolution": {"unit": "nm", "dimensions": [4, 4, 40]}}, [{}, {}]),
    ({"downsamplingFactors": [[1, 1, 1], [2, 2, 4]], "resolution": [4, 4, 40]}, [{}, {}]),
    ({"pixelResolution": {"unit": "um", "dimensions": [0.004, 0.004, 0.04]}}, [{}, {"downsamplingFactors": [2, 2, 4]}]),
    ({"resolution": [0.004, 4, 40], "units": ["um", "nm", "nanometer"]}, [{}, {"downsamplingFactors": [2, 2, 4]}]),
    (None, [{"pixelResolution": [4, 4, 40]}, {"pixelResolution": [4, 4, 40], "downsamplingFactors": [2, 2, 4]}]),
    (None, [{"resolution": [4, 4, 40]}, {"resolution": [8, 8, 160]}]),
    (None, [{}, {"downsamplingFactors": [2, 2, 2]}]),
    ({"multiscales": [{"datasets": [{"path": "s0"}, {"path": "s1"}]}]},
     [{"transform": {"axes": list("zyx"), "scale": [40, 4, 4], "translate": [400, 0, 8], "units": ["nm"] * 3}},
      {"transform": {"axes": list("zyx"), "scale": [160, 8, 8], "translate": [460, 2, 10], "units": ["nm"] * 3}}]),
]


@pytest.mark.parametrize(("root", "own"), N5_GROUPS)
def test_levels_of_n5(root: Any, own: Any, tmp_path: Path) -> None:
    """However a group says how large voxels are, the audit and the product have the same units and places."""
    described = {"dimensions": [50, 40, 30], "blockSize": [16, 16, 8], "dataType": "uint32",
                 "compression": {"type": "gzip"}}
    for name, document in [("", root), *((f"s{i}/", described | more) for i, more in enumerate(own))]:
        if document is not None:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / f"{name}attributes.json").write_text(json.dumps(document))
    for mip in (0, 1):
        scale, began = open_scale("n5", tmp_path, mip, "nm"), open_volume(f"n5://file://{tmp_path}", mip=mip).scale
        assert (scale.key, scale.voxel_offset, scale.size) == (began.key, began.voxel_offset, began.size)
        assert [float(1 / ratio) for ratio in scale.ratios] == list(began.resolution)
