from __future__ import annotations

import math
import warnings
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voxelprobe.errors import InputError
from voxelprobe.points import UnitConversion, parse_coord_resolution, suggest_unit, unit_of_resolution
from voxelprobe.points.units import LIMIT, NOWHERE
from voxelprobe.volume.scale import Scale

SIZES = st.sampled_from(["1", "4", "8", "17.2", "30", "0.5", "6.0000000001", "17.200000000000003", "1e-3",
                         "123456789.5"])
UNITS = st.tuples(SIZES, SIZES, SIZES)


@pytest.fixture(autouse=True)
def no_warnings() -> None:
    """No law here holds by way of a warning."""
    warnings.simplefilter("error")


def convert(points: np.ndarray, unit: tuple[str, str, str], resolution: tuple[str, str, str]) -> list[list[int]]:
    return UnitConversion.between(unit, [float(r) for r in resolution]).to_voxels(points).tolist()


def exactly(value: int | float, unit: str, resolution: str) -> int:
    """The voxel on paper, moved into +-LIMIT."""
    return max(-LIMIT, min(LIMIT, math.floor(Fraction(value) * Fraction(unit) / Fraction(resolution))))


@settings(max_examples=200, deadline=None)
@given(points=st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**7), 10**7)] * 3), max_size=5),
       unit=UNITS, resolution=UNITS)
@example(points=[(2**63 - 1, -(2**63), -1)], unit=("1", "1", "1"), resolution=("1", "1", "1"))
@example(points=[(2**63 - 1, -(2**63), -1)], unit=("17.2",) * 3, resolution=("17.200000000000003",) * 3)
@example(points=[(-37_354_656_939, 37_354_656_939, 37_354_656_940)], unit=("123456789.5",) * 3, resolution=("1",) * 3)
@example(points=[(2**63 - 1, -(2**63), -1)], unit=("999999999999999",) * 3, resolution=("1",) * 3)
@example(points=[(2**63 - 1, -(2**63), -1)], unit=("1e-3",) * 3, resolution=("123456789.5",) * 3)
def test_integers_convert_exactly(points: list[tuple[int, int, int]], unit: tuple[str, str, str],
                                  resolution: tuple[str, str, str]) -> None:
    """Integers of any size become the floor of the exact quotient, or +-2^62 if that is nearer to zero."""
    found = convert(np.array(points, np.int64).reshape(-1, 3), unit, resolution)
    assert found == [[exactly(v, u, r) for v, u, r in zip(p, unit, resolution, strict=True)] for p in points]


@settings(max_examples=200, deadline=None)
@given(points=st.lists(st.tuples(*[st.integers(-(2**31), 2**31)] * 3), max_size=5),
       unit=st.tuples(*[st.sampled_from(["1", "4", "8", "17.2", "30", "0.5"])] * 3),
       resolution=st.tuples(*[st.sampled_from(["1", "4", "8", "17.2", "30", "0.5"])] * 3))
def test_whole_floats_convert_like_integers(points: list[tuple[int, int, int]], unit: tuple[str, str, str],
                                            resolution: tuple[str, str, str]) -> None:
    """A whole number of units is in the same voxel whether it is written as an integer or as a float."""
    array = np.array(points, np.int64).reshape(-1, 3)
    assert convert(array.astype(np.float64), unit, resolution) == convert(array, unit, resolution)


@settings(max_examples=200, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False), unit=SIZES, resolution=SIZES)
def test_floats_are_within_rounding(value: float, unit: str, resolution: str) -> None:
    """A float is in its exact voxel, or within three roundings of it, the last of which may be to zero."""
    found = convert(np.full((1, 3), value), (unit,) * 3, (resolution,) * 3)[0][0]
    exact = Fraction(value) * Fraction(unit) / Fraction(resolution)
    slack = abs(exact) * 4 / 2**53 + Fraction(1, 2**1074)
    low, high = math.floor(exact - slack), math.floor(exact + slack)
    assert max(-LIMIT, min(LIMIT, low)) <= found <= max(-LIMIT, min(LIMIT, high))


@settings(max_examples=100, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_the_same_unit_is_the_floor(value: float) -> None:
    """In the scale's own unit a float's voxel is its floor, towards -infinity."""
    assert convert(np.full((1, 3), value), ("17.2",) * 3, ("17.2",) * 3)[0][0] == exactly(value, "1", "1")


@pytest.mark.parametrize(("value", "unit", "resolution", "voxel"), [
    (-1, "4", "8", -1), (-8, "1", "8", -1), (-9, "1", "8", -2), (7, "1", "8", 0), (8, "1", "8", 1),
    (51.6, "1", "17.2", 3), (51.59, "1", "17.2", 2), (-0.5, "1", "1", -1), (-0.0, "1", "1", 0),
    (1e300, "1", "1", LIMIT), (-1e300, "30", "1", -LIMIT), (1.7e308, "30", "1", LIMIT), (float(2**53), "1", "1", 2**53),
])
def test_voxels_by_hand(value: float, unit: str, resolution: str, voxel: int) -> None:
    """Borders belong to the voxel above, also for fractional sizes; far points saturate without a warning."""
    assert convert(np.full((1, 3), value), (unit,) * 3, (resolution,) * 3) == [[voxel] * 3]


def test_axes_convert_each_by_their_own() -> None:
    """Each axis has its own ratio."""
    conversion = UnitConversion.between(("1", "1", "1"), (4.0, 8.0, 40.0))
    assert conversion.ratios == (Fraction(1, 4), Fraction(1, 8), Fraction(1, 40))
    assert conversion.to_voxels(np.array([[80, 80, 80]])).tolist() == [[20, 10, 2]]


def test_invalid_rows_are_nowhere() -> None:
    """Rows that aren't valid, and NaN and infinities, are outside of every volume."""
    conversion = UnitConversion.between(("1", "1", "1"), (1.0, 1.0, 1.0))
    assert conversion.to_voxels(np.ones((2, 3), np.int64), np.array([True, False])).tolist() == [[1] * 3, [NOWHERE] * 3]
    floats = np.array([[1.0, math.nan, 1.0], [math.inf, 0.0, 0.0], [1.0, 2.0, 3.0]])
    assert conversion.to_voxels(floats).tolist() == [[NOWHERE] * 3, [NOWHERE] * 3, [1, 2, 3]]
    assert conversion.to_voxels(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(("text", "expected"), [
    (None, None), ("nm", ("1", "1", "1")), (" NM ", ("1", "1", "1")), ("4,4,40", ("4", "4", "40")),
    (" 4.0 , 4.00,40.", ("4", "4", "40")), ("17.2,17.2,30", ("17.2", "17.2", "30")),
    ("1e1,.5,2.50", ("10", "0.5", "2.5")),     ([4, 4, 40], ("4", "4", "40")),
    ((17.2, 1e-05, 30.0), ("17.2", "0.00001", "30")), (np.array([4.0, 8.0, 9.5]), ("4", "8", "9.5")),
])
def test_units_have_one_spelling(text: object, expected: tuple[str, str, str] | None) -> None:
    """The same voxel size is the same unit, however it is written."""
    assert parse_coord_resolution(text) == expected


@pytest.mark.parametrize("text", ["", "4", "4,4", "4,4,4,4", "4,4,x", "0,4,4", "-4,4,4", "nan,4,4", "inf,4,4", "4 4 40",
                                  "1e999999999,4,4", "µm", "1/3,4,4", [4, 4], [4, 4, True], [4, 4, "x"],
                                  [4, 4, math.nan], "4,4,1e20", "٤,4,4"])
def test_units_that_make_no_sense(text: object) -> None:
    """Anything but three positive numbers is refused, with an example of what would be right."""
    with pytest.raises(InputError, match=r"coord-resolution .*expected nm, or .* such as 4,4,40"):
        parse_coord_resolution(text)


def test_units_of_resolutions() -> None:
    """A resolution of an `info` is the unit with the same decimals."""
    assert unit_of_resolution((17.2, 4, 1e-05)) == ("17.2", "4", "0.00001")


SCALE = Scale(key="4_4_40", size=(10_000, 8_000, 500), voxel_offset=(1_000, 2_000, 0), resolution=(4.0, 4.0, 40.0),
              chunk_size=(64, 64, 64), encoding="raw", dtype=np.dtype("<u8"), num_channels=1)
COARSE = replace(SCALE, key="8_8_40", size=(5_000, 4_000, 500), voxel_offset=(500, 1_000, 0),
                 resolution=(8.0, 8.0, 40.0))
SCALES = [SCALE, COARSE]


def inside(count: int = 200) -> np.ndarray:
    """Points in voxels of SCALE, all inside, the z above what an x or y of a coarser unit could be."""
    rng = np.random.default_rng(0)
    low = np.array(SCALE.voxel_offset)
    return low + rng.integers(0, SCALE.size, (count, 3))


@pytest.mark.parametrize(("points", "unit", "text"), [
    (inside() * [4, 4, 40], None, "--coord-resolution nm"),
    (inside() * [4.0, 4.0, 40.0], ("8", "8", "40"), "--coord-resolution nm"),
    (inside()[:, ::-1], None, "columns in the order z,y,x"),
    (inside()[:, ::-1], ("4", "4", "40"), "columns in the order z,y,x"),
    ((inside() * [4, 4, 40])[:, ::-1], None, "--coord-resolution nm and columns in the order z,y,x"),
    (inside(), ("1", "1", "1"), "--coord-resolution 4,4,40"),
])
def test_the_unit_that_was_meant(points: np.ndarray, unit: tuple[str, str, str] | None, text: str) -> None:
    """Points in nm, in voxels or with swapped axes get the advice that puts all of them inside."""
    found = suggest_unit(points, SCALES, SCALE, unit)
    assert found is not None
    assert (found.text, found.share) == (text, 1.0)
    assert found.current_share < 0.6
    again = UnitConversion.between(found.unit, SCALE.resolution).to_voxels(points[:, found.order])
    assert again.tolist() == inside().tolist()


def test_coarser_scales_are_units_too() -> None:
    """Points in voxels of another scale are recognised, read from any scale."""
    coarse = inside() // [2, 2, 1]
    coarse[0] = [5_400, 4_900, 0]
    found = suggest_unit(coarse, SCALES, SCALE, ("4", "4", "40"))
    assert found is not None
    assert (found.text, found.share) == ("--coord-resolution 8,8,40", 1.0)
    assert suggest_unit(coarse, SCALES, COARSE, ("8", "8", "40")) is None


def test_no_advice_without_a_better_way() -> None:
    """Points that are inside already, or nowhere whatever the unit, or none at all, get no advice."""
    assert suggest_unit(inside(), SCALES, SCALE) is None
    assert suggest_unit(np.full((5, 3), -7), SCALES, SCALE) is None
    assert suggest_unit(np.full((5, 3), math.nan), SCALES, SCALE) is None
    assert suggest_unit(np.empty((0, 3), np.int64), SCALES, SCALE) is None
