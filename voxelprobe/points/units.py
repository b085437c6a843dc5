"""From the unit the points are in to voxels of a scale, exactly.

A unit is the size of the points' own voxels in nm (x, y, z), kept as decimal text: `17.2` is then the rational
number 172/10 on both sides of the division, and a point on a voxel's border falls where it does on paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Bool, Int64, Voxels
from voxelprobe.errors import InputError

Unit = tuple[str, str, str]
NANOMETRES: Unit = ("1", "1", "1")
# Voxels beyond +-LIMIT are moved there: outside of every volume, with room to subtract an offset in int64.
LIMIT = 2**62
# Where points without valid coordinates are put.
NOWHERE = -LIMIT

_DECIMAL = re.compile(r"(\d{1,15}(\.\d{0,12})?|\.\d{1,12})([eE][+-]?\d{1,2})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class UnitConversion:
    """Points in one unit to voxels of a scale.

    Attributes
    ----------
    ratios
        Voxels a unit (x, y, z).
    """

    ratios: tuple[Fraction, Fraction, Fraction]

    @classmethod
    def between(cls, unit: Unit, resolution: Sequence[float]) -> UnitConversion:
        """Return the conversion from `unit` to voxels of `resolution` nm (x, y, z)."""
        x, y, z = (Fraction(own) / Fraction(other)
                   for own, other in zip(unit, unit_of_resolution(resolution), strict=True))
        return cls((x, y, z))

    def to_voxels(self, values: npt.NDArray[Any], valid: Bool | None = None) -> Voxels:
        """Return the voxel that each point is in: the ratio times the coordinate, rounded towards -infinity.

        Integers are converted exactly. Floats are multiplied by the ratio's numerator and then divided by its
        denominator in float64, which is exact for whole numbers while that product is below 2^53.

        Parameters
        ----------
        values
            Shape (n, 3), int64 or float64, in the points' unit.
        valid
            Shape (n,); the other rows become `NOWHERE`. By default, all rows of finite coordinates.

        Returns
        -------
        Shape (n, 3), int64. Anything beyond +-2^62 is moved there, which no volume contains.
        """
        voxels = np.empty(values.shape, np.int64)
        for axis in range(3):
            np.clip(self.axis_to_voxels(values[:, axis], axis), -LIMIT, LIMIT, out=voxels[:, axis])
        if valid is None:
            valid = np.isfinite(values).all(axis=1)
        if not valid.all():
            voxels[~valid] = NOWHERE
        return voxels

    def axis_to_voxels(self, values: npt.NDArray[Any], axis: int) -> Int64:
        """Return the same for one axis, shape (n,): NaN becomes `NOWHERE`, and integers may stay beyond +-2^62.

        May be `values` itself.
        """
        convert = _floats_to_voxels if values.dtype.kind == "f" else _integers_to_voxels
        return convert(values, self.ratios[axis])


def parse_coord_resolution(text: str | Sequence[float] | None) -> Unit | None:
    """Return the unit of the points, or None for the default.

    Parameters
    ----------
    text
        Voxel size in nm as in `4,4,40` or `17.2,17.2,30`, or `nm`; or three numbers.

    Returns
    -------
    Three decimals in their shortest form, the same for `4,4,40` and `4.0,4.0,40`.

    Raises
    ------
    InputError
        If it isn't three positive numbers.
    """
    if text is None:
        return None
    if isinstance(text, str):
        if text.strip().lower() == "nm":
            return NANOMETRES
        parts = [part.strip() for part in text.split(",")]
    else:
        parts = [str(part) if isinstance(part, int) and not isinstance(part, bool)
                 else str(float(part)) if isinstance(part, float | np.number) else "" for part in text]
    if len(parts) != 3 or not all(_DECIMAL.fullmatch(part) and 1e-9 <= Decimal(part) < 1e15 for part in parts):
        raise InputError(f"coord-resolution {text!r}: expected nm, or the points' voxel size in nm as three positive "
                         "numbers such as 4,4,40")
    return (_shortest(parts[0]), _shortest(parts[1]), _shortest(parts[2]))


def unit_of_resolution(resolution: Sequence[float]) -> Unit:
    """Return the unit of points that are voxels of a scale, from its resolution in nm as the `info` gives it."""
    x, y, z = (_shortest(str(float(size))) for size in resolution)
    return (x, y, z)


def _shortest(number: str) -> str:
    return f"{Decimal(number).normalize():f}"


def _integers_to_voxels(points: Int64, ratio: Fraction) -> Int64:
    """Return floor(points * ratio), shape (n,); moved into +-LIMIT if the ratio isn't one over a whole number."""
    up, down = ratio.numerator, ratio.denominator
    if up == 1 and down < 2**62:
        if down & (down - 1) == 0:
            return points >> (down.bit_length() - 1) if down > 1 else points
        return points // down
    if up * down >= 2**60:
        # Resolutions such as 17.200000000000003: beyond int64, so with Python's integers (slower, as exact).
        exact = points.astype(object) * up // down
        return np.asarray(np.clip(exact, -LIMIT, LIMIT), dtype=np.int64)
    # points = whole * down + rest, so that no product leaves int64 unless the result does. What is clipped is beyond
    # LIMIT even after the rest, at most one more `up`, was added.
    bound = LIMIT // up + 2
    if down == 1:
        return np.asarray(np.clip(points, -bound, bound) * up, dtype=np.int64)
    whole = points // down
    rest = points - whole * down
    voxels = np.clip(whole, -bound, bound) * up + rest * up // down
    return np.asarray(np.clip(voxels, -LIMIT, LIMIT), dtype=np.int64)


def _floats_to_voxels(points: npt.NDArray[np.floating[Any]], ratio: Fraction) -> Int64:
    """Return floor(points * ratio), shape (n,), moved into +-LIMIT; NaN becomes NOWHERE."""
    with np.errstate(all="ignore"):  # 1e300 may well become infinite: it is clipped like the rest
        voxels = points.astype(np.float64)
        if ratio.numerator != 1:
            voxels *= float(ratio.numerator)
        if ratio.denominator != 1:
            voxels /= float(ratio.denominator)
        np.floor(voxels, out=voxels)
        np.fmax(voxels, -LIMIT, out=voxels)  # of a number and NaN, the number
        np.minimum(voxels, LIMIT, out=voxels)
        return voxels.astype(np.int64)
