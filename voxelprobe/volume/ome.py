"""OME-Zarr multiscales: which arrays are the scales of a volume, how large their voxels are, and where they begin.

Format: https://ngff.openmicroscopy.org/0.4/ and /0.5/. Versions 0.1 to 0.3 have no voxel sizes: of those the first
scale alone is read, with voxels of 1 nm. A scale's size of a voxel is the product of its `scale` transformations and
those of the whole; axes without a unit are taken as nm, as CloudVolume takes them (Neuroglancer leaves them without).

Where a scale begins. Points are in voxels of mip 0, whose corners are whole numbers, as in every volume here. (By OME's
letter, and in Neuroglancer's OME-Zarr layers, whole numbers are centres: they name the same voxels, but fractions have
half a voxel to be added.) The first scale's translation has to be a whole number of its voxels and is its
`voxel_offset`. Of coarser scales writers give the centre of the first voxel, (s_L - s_0) / 2 beyond the first scale's,
or no translation of their own; both mean that the corners of all scales are one. With translations t and voxel sizes s,

    voxel_offset_L = ((t_L - s_L / 2) - (t_0 - s_0 / 2)) / s_L + voxel_offset_0 * s_0 / s_L

to the nearest whole number, halves toward zero: without a translation the first two terms come to (s_0 / s_L - 1) / 2,
which is above -1/2. Where the factor doesn't divide voxel_offset_0, scales are up to half a coarse voxel apart, as they
are in Precomputed volumes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.volume.boxes import Triple
from voxelprobe.volume.fields import Fields, parse_list, parse_numbers, parse_path

# Share of a voxel by which a translation may miss a whole number: what decimals such as 0.0324 leave.
_TOLERANCE = Fraction(1, 1000)
# By which a half may miss one. Scales without translations of their own, 4096 times coarser, miss it by 1/8192.
_HALF_TOLERANCE = Fraction(1, 1_000_000)
MAX_LEVELS = 64

_POWERS = {"yocto": -24, "zepto": -21, "atto": -18, "femto": -15, "pico": -12, "nano": -9, "micro": -6, "milli": -3,
           "centi": -2, "deci": -1, "": 0, "hecto": 2, "kilo": 3, "mega": 6, "giga": 9, "tera": 12}
_UNITS_NM = {f"{prefix}meter": Fraction(10) ** (power + 9) for prefix, power in _POWERS.items()} | {
    "angstrom": Fraction(1, 10), "inch": Fraction(25_400_000), "foot": Fraction(304_800_000),
    "yard": Fraction(914_400_000),
    # As n5 writers have them.
    "nm": Fraction(1), "um": Fraction(1000), "\u00b5m": Fraction(1000), "\u03bcm": Fraction(1000),
    "micron": Fraction(1000), "mm": Fraction(10**6), "m": Fraction(10**9),
}

Vector = tuple[Fraction, Fraction, Fraction]


@dataclass(frozen=True, slots=True)
class Level:
    """An array of a multiscale.

    Attributes
    ----------
    path
        Below the volume's folder.
    size_nm, translation_nm
        Of a voxel, and of the centre of its first voxel (x, y, z), in nm.
    """

    path: str
    size_nm: Vector
    translation_nm: Vector

    @property
    def resolution(self) -> tuple[float, float, float]:
        """Return the voxel size as numbers: that of the decimals in the metadata, to the last digit."""
        x, y, z = map(float, self.size_nm)
        return (x, y, z)


@dataclass(frozen=True, slots=True)
class Multiscale:
    """The arrays of a volume, finest first, and what their axes are called; None if that isn't said."""

    axis_names: tuple[str, ...] | None
    levels: tuple[Level, ...]


def exact(number: float) -> Fraction:
    """Return a number of the metadata as it is written there: 0.1 is a tenth."""
    return Fraction(repr(number))


def parse_unit(unit: object, where: str) -> Fraction:
    """Return how many nm a unit is.

    Raises
    ------
    UnsupportedError
        If it isn't a unit of length.
    """
    if unit is None or unit == "":
        return Fraction(1)
    name = unit.strip() if isinstance(unit, str) else ""
    for form in (name, name.lower(), name.lower().removesuffix("s"), name.lower().replace("metre", "meter")):
        if form in _UNITS_NM:
            return _UNITS_NM[form]
    raise UnsupportedError(f"{where}: unit {unit!r} is not a unit of length such as nanometer or micrometer")


def parse_multiscale(document: object, where: str) -> Multiscale:
    """Return the first of a list of multiscales.

    Raises
    ------
    InputError
        If it contradicts the format, or names arrays outside of the volume.
    UnsupportedError
        If it has transformations other than scales and translations, or axes other than x, y, z, channel and time.
    """
    entries = parse_list(document, where)
    if not entries:
        raise InputError(f"{where}: expected a multiscale, found none")
    fields = Fields(entries[0], f"{where}[0]")
    if "coordinateSystems" in fields.fields:
        raise UnsupportedError(f"{fields.where}: coordinateSystems, of OME-Zarr 0.6, can't be read; 0.5 and before can")
    datasets = [Fields(dataset, f"{fields.where}, dataset {i}") for i, dataset in enumerate(fields.items("datasets"))]
    if not 0 < len(datasets) <= MAX_LEVELS:
        raise InputError(f"{fields.where}: expected 1 to {MAX_LEVELS} datasets, found {len(datasets)}")
    names, units = _parse_axes(fields)
    have = ["coordinateTransformations" in dataset.fields for dataset in datasets]
    if not any(have) and "coordinateTransformations" not in fields.fields:
        path = parse_path(datasets[0].text("path"), datasets[0].where)
        return Multiscale(names, (Level(path, _triple([Fraction(1)] * 3), _triple([Fraction(0)] * 3)),))
    if names is None or not all(have):
        raise InputError(f"{fields.where}: expected axes, and coordinateTransformations of each dataset, found "
                         f"{sorted(fields.fields)!r}")
    whole = _parse_transforms(fields, len(names))
    levels = []
    for dataset in datasets:
        scale, translation = _parse_transforms(dataset, len(names))
        # The dataset's come first, and then those of the whole.
        scale, translation = _chain(scale, translation, *whole)
        places = [[name.lower() for name in names].index(axis) for axis in "xyz"]
        levels.append(Level(parse_path(dataset.text("path"), dataset.where),
                            _triple([scale[i] * units[i] for i in places]),
                            _triple([translation[i] * units[i] for i in places])))
        if not all(0 < size < 10**15 for size in levels[-1].resolution):
            raise InputError(f"{dataset.where}: expected voxels of some nm, found {levels[-1].resolution}")
    return Multiscale(names, tuple(levels))


def place_levels(levels: Sequence[Level], where: str) -> list[Triple]:
    """Return the `voxel_offset` of each level, by the rule at the head of this module.

    Raises
    ------
    UnsupportedError
        If the first one's translation isn't a whole number of its voxels.
    """
    first = levels[0]
    begins: list[int] = []
    for name, translation, voxel in zip("xyz", first.translation_nm, first.size_nm, strict=True):
        place = translation / voxel
        begins.append(round(place))
        if abs(place - begins[-1]) > _TOLERANCE:
            raise UnsupportedError(f"{where}: the first scale's translation along {name} is {float(place):g} of its "
                                   "voxels; expected a whole number")
    offsets = []
    for level in levels:
        places = []
        for axis, begin in enumerate(begins):
            size, base = level.size_nm[axis], first.size_nm[axis]
            between = (level.translation_nm[axis] - size / 2) - (first.translation_nm[axis] - base / 2)
            places.append(_nearest(between / size + begin * base / size))
        offsets.append((places[0], places[1], places[2]))
    return offsets


def _nearest(number: Fraction) -> int:
    # Halves, and what decimals make of them, go toward zero.
    whole = math.floor(abs(number) + Fraction(1, 2) - _HALF_TOLERANCE)
    return whole if number > 0 else -whole


def _parse_axes(fields: Fields) -> tuple[tuple[str, ...] | None, list[Fraction]]:
    """Return the names of the axes, channel and time as c and t, and nm a unit of each; no names if there are none."""
    if fields.fields.get("axes") is None:
        return None, []
    names, units = [], []
    for index, axis in enumerate(fields.items("axes")):
        where = f"{fields.where}, axis {index}"
        if isinstance(axis, str):
            names.append(axis)
            units.append(Fraction(1))
            continue
        described = Fields(axis, where)
        kind, name = described.fields.get("type"), described.text("name")
        is_space = kind == "space" or (kind is None and name.lower() in "xyz")
        names.append("c" if kind == "channel" else name if is_space or name.lower() in "ct" else f"{kind} {name}")
        units.append(parse_unit(described.fields.get("unit"), where) if is_space else Fraction(1))
    if any([name.lower() for name in names].count(axis) != 1 for axis in "xyz"):
        raise UnsupportedError(f"{fields.where}: axes {names!r}; expected x, y and z")
    return tuple(names), units


def _parse_transforms(fields: Fields, rank: int) -> tuple[list[Fraction], list[Fraction]]:
    """Return what an object's transformations come to, one after the other: scale and translation of each axis."""
    scale, translation = [Fraction(1)] * rank, [Fraction(0)] * rank
    found = fields.fields.get("coordinateTransformations")
    steps = [] if found is None else parse_list(found, f"{fields.where}: coordinateTransformations")
    for index, entry in enumerate(steps):
        step = Fields(entry, f"{fields.where}, transformation {index}")
        kind = step.text("type")
        if kind == "identity":
            continue
        if kind not in ("scale", "translation"):
            raise UnsupportedError(f"{step.where}: {kind!r} is not scale, translation or identity")
        if kind not in step.fields and "path" in step.fields:
            raise UnsupportedError(f"{step.where}: a {kind} in an array of its own (`path`) can't be read")
        vector = [exact(number) for number in parse_numbers(step.fields.get(kind), f"{step.where}: {kind}", rank)]
        if kind == "scale":
            if min(vector) <= 0:
                raise InputError(f"{step.where}: expected positive numbers for scale, found {step.fields.get(kind)!r}")
            scale, translation = _chain(scale, translation, vector, [Fraction(0)] * rank)
        else:
            translation = [t + v for t, v in zip(translation, vector, strict=True)]
    return scale, translation


def _chain(
    scale: list[Fraction], translation: list[Fraction], next_scale: list[Fraction], next_translation: list[Fraction]
) -> tuple[list[Fraction], list[Fraction]]:
    return ([s * n for s, n in zip(scale, next_scale, strict=True)],
            [t * n + m for t, n, m in zip(translation, next_scale, next_translation, strict=True)])


def _triple(numbers: list[Fraction]) -> Vector:
    return (numbers[0], numbers[1], numbers[2])
