"""Levels of OME-Zarr: their paths, voxel sizes and places.

Format: https://ngff.openmicroscopy.org/0.4/ and /0.5/. What a place means here: docs/design/015-kinds-of-volumes.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from voxelprobe.audit.places import Triple
from voxelprobe.errors import UnsupportedError

Vector = tuple[Fraction, Fraction, Fraction]
NameAxes = Callable[[Any, int], tuple[str, ...]]

_METRES = {"yoctometer": -24, "zeptometer": -21, "attometer": -18, "femtometer": -15, "picometer": -12, "nanometer": -9,
           "micrometer": -6, "millimeter": -3, "centimeter": -2, "decimeter": -1, "meter": 0, "hectometer": 2,
           "kilometer": 3, "megameter": 6, "gigameter": 9, "terameter": 12,
           "nm": -9, "um": -6, "µm": -6, "μm": -6, "micron": -6, "mm": -3, "m": 0}
_INCHES = {"inch": 1, "foot": 12, "yard": 36}
# By which halves may miss one and still be halves.
_HALF = Fraction(1, 2) + Fraction(1, 10**6)


@dataclass(frozen=True, slots=True)
class Level:
    """One array of a volume.

    Attributes
    ----------
    axes
        What its axes are; None if they aren't named.
    size, centre
        Of a voxel, and of the centre of the first one, in nm (x, y, z).
    """

    path: str
    axes: tuple[str, ...] | None
    size: Vector
    centre: Vector

    @property
    def resolution(self) -> list[float]:
        """Return the voxel size in nm as numbers."""
        return [float(size) for size in self.size]


def plain_level(axes: tuple[str, ...], path: str = "") -> Level:
    """Return an array of voxels of 1 nm."""
    one, zero = Fraction(1), Fraction(0)
    return Level(path, axes or None, (one, one, one), (zero, zero, zero))


def list_levels(multiscales: Sequence[Any], name_axes: NameAxes) -> list[Level]:
    """Return the levels of the first multiscale."""
    whole = multiscales[0]
    if "coordinateSystems" in whole:
        raise UnsupportedError("coordinateSystems of OME-Zarr 0.6")
    described = whole.get("axes")
    datasets = whole["datasets"]
    if "coordinateTransformations" not in whole and not any("coordinateTransformations" in d for d in datasets):
        axes = name_axes([_axis_name(axis) for axis in described], len(described)) if described else ()
        return [plain_level(axes, clean_path(datasets[0]["path"]))]
    axes = name_axes([_axis_name(axis) for axis in described], len(described))
    units = [parse_unit(axis.get("unit")) if name in ("x", "y", "z") and isinstance(axis, dict) else Fraction(1)
             for axis, name in zip(described, axes, strict=True)]
    levels = []
    for dataset in datasets:
        # Of a voxel of the array, first and last corner of a unit cube: where the transformations take them.
        zero, one = [Fraction(0)] * len(axes), [Fraction(1)] * len(axes)
        steps = [*(dataset.get("coordinateTransformations") or []), *(whole.get("coordinateTransformations") or [])]
        for step in steps:
            zero, one = _apply(step, zero), _apply(step, one)
        places = [axes.index(axis) for axis in "xyz"]
        x, y, z = ((one[i] - zero[i]) * units[i] for i in places)
        cx, cy, cz = (zero[i] * units[i] for i in places)
        levels.append(Level(clean_path(dataset["path"]), axes, (x, y, z), (cx, cy, cz)))
    return levels


def find_offset(levels: Sequence[Level], mip: int) -> Triple:
    """Return the voxel of a level that its array begins with.

    The first level's first voxel is as many of its voxels from 0 as its centre is away from 0. Its corner, and the way
    from there to the corner of another level's first voxel, give that one's place, to the nearest voxel.
    """
    first, level = levels[0], levels[mip]
    offset = []
    for axis in range(3):
        begin = round(first.centre[axis] / first.size[axis])
        way = (level.centre[axis] - level.size[axis] / 2) - (first.centre[axis] - first.size[axis] / 2)
        offset.append(_round((begin * first.size[axis] + way) / level.size[axis]))
    return (offset[0], offset[1], offset[2])


def _round(number: Fraction) -> int:
    """Return the nearest whole number; of two, the one closer to 0."""
    if number < 0:
        return -_round(-number)
    below = math.floor(number)
    return below + 1 if number - below >= _HALF else below


def parse_unit(unit: Any) -> Fraction:
    """Return how many nm a unit is; none is nm."""
    if unit is None or unit == "":
        return Fraction(1)
    word = str(unit).strip()
    for name in (word, word.lower(), word.lower().removesuffix("s"), word.lower().replace("metre", "meter")):
        if name in _METRES:
            return Fraction(10) ** (_METRES[name] + 9)
        if name in _INCHES:
            return _INCHES[name] * Fraction(25_400_000)
        if name == "angstrom":
            return Fraction(1, 10)
    raise UnsupportedError(f"unit {unit!r}")


def exact(number: Any) -> Fraction:
    """Return a number as the metadata have it: 0.1 is a tenth."""
    return Fraction(repr(number))


def clean_path(path: str) -> str:
    """Return a path without what says nothing."""
    return "" if path == "." else path.removeprefix("./").strip("/")


def _axis_name(axis: Any) -> str:
    if isinstance(axis, str):
        return axis
    kind, name = axis.get("type"), str(axis["name"])
    if kind == "channel":
        return "c"
    return name if kind in (None, "space") or name.lower() == "c" else ""


def _apply(step: Any, point: Sequence[Fraction]) -> list[Fraction]:
    """Return where one transformation takes a point."""
    if step["type"] == "identity":
        return list(point)
    if step["type"] not in ("scale", "translation") or step["type"] not in step:
        raise UnsupportedError(f"transformation {step['type']}")
    numbers = [exact(number) for number in step[step["type"]]]
    if step["type"] == "scale":
        return [p * n for p, n in zip(point, numbers, strict=True)]
    return [p + n for p, n in zip(point, numbers, strict=True)]
