"""OME-Zarr multiscales: sizes, units, places and axes, and labels of pyramids where a naive user looks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe import InputError, UnsupportedError, sample_points
from voxelprobe.opening import open_volume
from voxelprobe.volume.formats import read_volume
from voxelprobe.volume.ome import Level, parse_multiscale, parse_unit, place_levels

ZARRAY = {"zarr_format": 2, "shape": [30, 40, 50], "chunks": [8, 8, 8], "dtype": "<u4", "order": "C", "filters": None,
          "compressor": None, "fill_value": 0}


def axes_of(names: str, unit: str | None = "nanometer") -> list[dict[str, Any]]:
    kinds = {"t": "time", "c": "channel"}
    return [{"name": name, "type": kinds.get(name, "space")}
            | ({"unit": unit} if unit and name in "xyz" else {}) for name in names]


def entry(levels: list[tuple[Any, ...]], names: str = "zyx", unit: str | None = "nanometer", **more: Any) -> Any:
    """Return a multiscale of levels of (scale, translation or None)."""
    datasets = [{"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": list(scale)}] + (
        [] if translation is None else [{"type": "translation", "translation": list(translation)}])}
        for i, (scale, translation) in enumerate(levels)]
    return {"version": "0.4", "axes": axes_of(names, unit), "datasets": datasets} | more


def read(multiscale: Any, zarrays: Mapping[str, Any] | None = None) -> Any:
    """Return the scales of a v2 group of that multiscale, whose arrays are all `ZARRAY` unless they are given."""
    documents = {".zattrs": {"multiscales": [multiscale]}}
    for i in range(3):
        documents[f"{i}/.zarray"] = ZARRAY | dict((zarrays or {}).get(str(i), {}))
    return read_volume("zarr", lambda name: deepcopy(documents.get(name)), "mem://v").scales


def test_sizes_are_the_products_of_all_scales_in_nm() -> None:
    """A voxel's size is the product of the level's scale and the whole's, by axis, in nm, to the last digit."""
    whole = [{"type": "scale", "scale": [2, 1, 1]}, {"type": "identity"}]
    (first, second) = read(entry([((0.0172, 0.004, 0.0041), None), ((0.0344, 0.008, 0.0082), None)], unit="micrometer",
                                 coordinateTransformations=whole))
    assert first.resolution == (4.1, 4.0, 34.4)
    assert second.resolution == (8.2, 8.0, 68.8)
    assert (first.key, first.size, first.chunk_size, second.key) == ("0", (50, 40, 30), (8, 8, 8), "1")


@pytest.mark.parametrize(("unit", "nm"), [
    ("nanometer", 1), ("micrometer", 1000), ("angstrom", Fraction(1, 10)), ("millimeter", 10**6), ("meter", 10**9),
    ("picometer", Fraction(1, 1000)), ("inch", 25_400_000), (None, 1), ("", 1), ("nm", 1), ("um", 1000),
    ("\u00b5m", 1000), ("microns", 1000), ("nanometers", 1), ("Micrometer", 1000), ("nanometre", 1),
    ("centimeter", 10**7),
])
def test_units_in_nm(unit: Any, nm: Any) -> None:
    """Units of length are so many nm; none is nm."""
    assert parse_unit(unit, "here") == nm


@pytest.mark.parametrize("unit", ["second", "pixel", 3, ["nm"], "lightyear"])
def test_other_units_are_named(unit: Any) -> None:
    """A unit that isn't known is not guessed."""
    with pytest.raises(UnsupportedError, match=r"here: unit .* is not a unit of length"):
        parse_unit(unit, "here")


def centres(base: Any, factor: int, offset: int = 0) -> tuple[Any, Any]:
    """Return scale and translation of a coarser level as writers give them that know of centres."""
    return (tuple(s * factor for s in base), tuple(s * (factor - 1) / 2 + offset * s for s in base))


@pytest.mark.parametrize("factor", [2, 3, 4, 7, 64, 4096])
@pytest.mark.parametrize("offset", [0, 1, 3, -5, 640, 12345, 12288, -12288])
@pytest.mark.parametrize("base", [(1.0, 1.0, 1.0), (40.0, 4.0, 4.0), (0.0324, 0.0041, 0.0172)])
def test_corners_are_one(base: Any, offset: int, factor: int) -> None:
    """Coarser levels with centres, or with no more than the first one's translation, begin where it does.

    That is its offset over the factor, to the nearest whole number; halves go toward zero.
    """
    first = (base, tuple(offset * s for s in base))
    exact = Fraction(offset, factor)
    nearest = {round(exact)} if exact.denominator != 2 else {int(exact)}
    scales = read(entry([first, centres(base, factor, offset)]))
    assert scales[0].voxel_offset == (offset,) * 3
    assert set(scales[1].voxel_offset) == nearest
    (unmoved,) = set(read(entry([first, (tuple(s * factor for s in base), first[1])]))[1].voxel_offset)
    shifted = exact + Fraction(1, 2 * factor) - Fraction(1, 2)
    assert abs(unmoved - shifted) <= Fraction(1, 2)
    if offset % factor == 0:
        assert unmoved == offset // factor


@given(st.lists(st.fractions(1, 100, max_denominator=50), min_size=3, max_size=3),
       st.lists(st.integers(-10**6, 10**6), min_size=3, max_size=3), st.integers(1, 512))
def test_no_level_is_off_by_more_than_half_a_voxel(sizes: Any, offset: Any, factor: int) -> None:
    """The corner of a level by its rounded offset is within half its voxel of the one its translation gives."""
    one = tuple(sizes)
    first = Level("0", one, tuple(o * s for o, s in zip(offset, one, strict=True)))
    coarse = Level("1", tuple(s * factor for s in one), tuple(
        o * s + (factor - 1) * s / 2 for o, s in zip(offset, one, strict=True)))
    placed = place_levels([first, coarse], "here")
    assert placed[0] == tuple(offset)
    for at, begin in zip(placed[1], offset, strict=True):
        assert abs(at * factor - begin) <= Fraction(factor, 2) + Fraction(factor, 1000)


def test_translations_of_the_whole_come_last() -> None:
    """The whole's scale also scales the levels' translations; its translation is added."""
    whole = [{"type": "scale", "scale": [2, 2, 2]}, {"type": "translation", "translation": [10, 0, 0]}]
    (first,) = read(entry([((5, 4, 4), (15, 8, 12))], coordinateTransformations=whole))
    assert (first.resolution, first.voxel_offset) == ((8.0, 8.0, 10.0), (3, 2, 4))


@pytest.mark.parametrize("translation", [(0, 2, 0), (0, 0, 4.01), (-0.5, 0, 0)])
def test_a_first_level_between_voxels_is_refused(translation: Any) -> None:
    """A translation of half a voxel can't be an offset in voxels; what decimals leave is none."""
    with pytest.raises(UnsupportedError, match=r"first scale's translation along [xyz] is .* expected a whole number"):
        read(entry([((4, 4, 4), translation)]))
    assert read(entry([((0.1, 0.1, 0.1), (0.3, 0.7, 0.30000000000000004))]))[0].voxel_offset == (3, 7, 3)


def test_versions_without_sizes_have_their_first_level() -> None:
    """0.1 and 0.2 name no axes, 0.3 a list of names; no version before 0.4 has sizes: voxels of 1 nm, one scale."""
    five = {"shape": [1, 2, 30, 40, 50], "chunks": [1, 1, 8, 8, 8]}
    for more in ({}, {"axes": list("tczyx")}):
        (scale,) = read({"version": "0.2", "datasets": [{"path": "0"}, {"path": "1"}]} | more, {"0": five, "1": five})
        assert (scale.size, scale.num_channels, scale.num_parts) == ((50, 40, 30), 2, 2)
        assert (scale.resolution, scale.voxel_offset) == ((1.0, 1.0, 1.0), (0, 0, 0))


@pytest.mark.parametrize("names", ["zyx", "xyz", "czyx", "tczyx", "xyzc", "tzyx", "zcyx", "ZYX"])
def test_axes_by_name_in_any_order(names: str) -> None:
    """Sizes, places and voxel sizes go along the axes as they are named."""
    facts = {"x": (50, 4.0), "y": (40, 5.0), "z": (30, 6.0), "c": (2, 1.0), "t": (1, 9.0)}
    chosen = [facts[name.lower()] for name in names]
    zarray = {"shape": [size for size, _ in chosen], "chunks": [min(size, 8) for size, _ in chosen]}
    multiscale = entry([([size for _, size in chosen], [10 * size for _, size in chosen])], names)
    (scale,) = read(multiscale, {"0": zarray})
    assert (scale.size, scale.resolution, scale.voxel_offset) == ((50, 40, 30), (4.0, 5.0, 6.0), (10, 10, 10))
    assert scale.num_channels == (2 if "c" in names else 1)
    assert scale.names.of(None, (1, 2, 3)) == (
        ".".join({"x": "1", "y": "2", "z": "3", "c": "0", "t": "0"}[name.lower()] for name in names),)


ONE = ((4, 4, 4), None)


@pytest.mark.parametrize(("multiscale", "zarray", "error", "said"), [
    (entry([ONE]), {"shape": [2, 2, 2, 2], "chunks": [1, 1, 1, 1]}, InputError, "expected the names of 4 axes"),
    (entry([((1, 4, 4, 4), None)], "tzyx"), {"shape": [2, 9, 9, 9], "chunks": [1, 3, 3, 3]}, UnsupportedError,
     "has an axis of 2 that is neither x, y, z nor a channel"),
    (entry([((4, 4), None)], "yx"), {}, UnsupportedError, r"axes \['y', 'x'\]; expected x, y and z"),
    (entry([((4, 4, 4), None)], "zyy"), {}, UnsupportedError, "expected x, y and z"),
    (entry([((4, 4), None)]), {}, InputError, "expected a list of 3, found"),
    (entry([((4, 4, "4"), None)]), {}, InputError, "expected 3 numbers"),
    (entry([((4, 4, 0), None)]), {}, InputError, "expected positive numbers"),
    (entry([((4, 4, float("nan")), None)]), {}, InputError, "expected 3 numbers"),
    (entry([((4, 4, 1e-320), None)], unit="yoctometer"), {}, InputError, "expected voxels of some nm"),
    (entry([ONE], unit="lightyear"), {}, UnsupportedError, "'lightyear' is not a unit of length"),
    (entry([]), {}, InputError, "expected 1 to 64 datasets, found 0"),
    (entry([ONE]) | {"axes": None}, {}, InputError, "expected axes, and coordinateTransformations of each dataset"),
    (entry([ONE]) | {"axes": "zyx"}, {}, InputError, "expected a list"),
    (entry([ONE]) | {"axes": [3]}, {}, InputError, "expected a JSON object, found int"),
    (entry([ONE]) | {"coordinateSystems": []}, {}, UnsupportedError, "of OME-Zarr 0.6"),
    (entry([ONE]) | {"datasets": [{"path": "../0", "coordinateTransformations": []}]}, {}, InputError,
     "path '../0' leads out of the volume"),
    (entry([ONE]) | {"datasets": [{"path": "/0", "coordinateTransformations": []}]}, {}, InputError, "leads out of"),
    (entry([ONE]) | {"datasets": [{"path": "gs://b/0", "coordinateTransformations": []}]}, {}, InputError,
     "leads out of"),
    (entry([ONE]) | {"datasets": [{"path": "7", "coordinateTransformations": []}]}, {}, InputError,
     "expected an array at '7', found no 7/.zarray"),
    (entry([ONE]) | {"datasets": {"path": "0"}}, {}, InputError, "expected a list"),
    (entry([ONE], coordinateTransformations=[{"type": "affine"}]), {}, UnsupportedError, "'affine' is not scale"),
    (entry([ONE], coordinateTransformations=[{"type": "scale", "path": "p"}]), {}, UnsupportedError, "of its own"),
    (entry([ONE], coordinateTransformations={"type": "scale"}), {}, InputError, "expected a list"),
    ("x", {}, InputError, "expected a JSON object, found str"),
])
def test_what_is_refused(multiscale: Any, zarray: Any, error: type[Exception], said: str) -> None:
    """A multiscale that can't be read says where and why."""
    with pytest.raises(error, match=said) as caught:
        read(multiscale, {"0": zarray})
    assert "mem://v/" in str(caught.value) or str(caught.value).startswith("mem://v:")


@pytest.mark.parametrize("document", [{}, [], None, "x"])
def test_a_list_of_multiscales(document: Any) -> None:
    """Multiscales are a list of at least one."""
    with pytest.raises(InputError, match="here: expected a"):
        parse_multiscale(document, "here")


STRIDE: Callable[..., Any] = lambda array, factor: array[::factor, ::factor, ::factor]  # noqa: E731


def mean(array: Any, factor: int) -> Any:
    x, y, z = (n // factor for n in array.shape)
    blocks = array[:x * factor, :y * factor, :z * factor].reshape(x, factor, y, factor, z, factor)
    return blocks.mean(axis=(1, 3, 5)).astype(array.dtype)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("shrink", "translated"), [(STRIDE, False), (STRIDE, True), (mean, True), (mean, False)])
def test_pyramids(tmp_path: Path, shrink: Any, translated: bool, version: int) -> None:
    """A point has, at each mip, the value of the coarse voxel over its own: strided or mean, with centres or not."""
    import zarr

    offset, base = (16, 32, 64), (4.0, 4.0, 40.0)
    array = np.random.default_rng(1).integers(0, 2**32, (40, 36, 24), dtype=np.uint32)
    levels, entries = [array, shrink(array, 2), shrink(array, 8)], []
    for i, (level, factor) in enumerate(zip(levels, (1, 2, 8), strict=True)):
        stored = zarr.create_array(tmp_path / str(i), shape=level.T.shape, chunks=(8, 8, 8), dtype="uint32",
                                   zarr_format=version)
        stored[...] = level.T
        size = [s * factor for s in base]
        place = [o * s + (s * (factor - 1) / 2 if translated else 0) for o, s in zip(offset, base, strict=True)]
        entries.append((size[::-1], place[::-1]))
    multiscale = entry(entries)
    if version == 2:
        (tmp_path / ".zattrs").write_text(json.dumps({"multiscales": [multiscale]}))
    else:
        attributes = {"ome": {"version": "0.5", "multiscales": [multiscale]}}
        (tmp_path / "zarr.json").write_text(
            json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    voxels = np.random.default_rng(2).integers(0, np.array(levels[2].shape) * 8, (300, 3))
    cloudpath = f"zarr://file://{tmp_path}"
    for mip, (level, factor) in enumerate(zip(levels, (1, 2, 8), strict=True)):
        scale = open_volume(cloudpath, mip=mip).scale
        assert scale.voxel_offset == tuple(o // factor for o in offset)
        inside = (voxels // factor < level.shape).all(axis=1)
        labels = sample_points(cloudpath, voxels[inside] + offset, mip=mip)
        assert len(labels) > 200
        np.testing.assert_array_equal(labels.data, level[tuple((voxels[inside] // factor).T)])
        in_nm = (voxels[inside] + offset + 0.5) * base
        by_size = ",".join(map(str, scale.resolution))
        np.testing.assert_array_equal(sample_points(cloudpath, in_nm, mip=by_size, coord_resolution="nm").data,
                                      labels.data)
