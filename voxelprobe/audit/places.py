"""From a coordinate as the user wrote it to a chunk's name and a voxel in it: one point at a time, in Python's numbers.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from voxelprobe.errors import InputError
from voxelprobe.records import Status

Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class AuditedScale:
    """What an `info` says of one scale, and how many of its voxels a unit of the points is.

    Attributes
    ----------
    ratios
        Voxels a unit (x, y, z).
    sharding
        As in the `info`; None for a file a chunk.
    """

    key: str
    size: Triple
    voxel_offset: Triple
    chunk_size: Triple
    ratios: tuple[Fraction, Fraction, Fraction]
    encoding: str
    data_type: str
    channels: int
    block_size: Triple | None
    sharding: Mapping[str, Any] | None

    def chunk_shape(self, grid: Triple) -> Triple:
        """Return the size in voxels of the chunk at a grid position."""
        begin, end = self._box(grid)
        return _triple(stop - start for start, stop in zip(begin, end, strict=True))

    def chunk_name(self, grid: Triple) -> str:
        """Return the name below the volume's folder of the chunk at a grid position."""
        begin, end = self._box(grid)
        return f"{self.key}/" + "_".join(f"{start}-{stop}" for start, stop in zip(begin, end, strict=True))

    def _box(self, grid: Triple) -> tuple[Triple, Triple]:
        begin = [o + g * c for o, g, c in zip(self.voxel_offset, grid, self.chunk_size, strict=True)]
        last = [o + s for o, s in zip(self.voxel_offset, self.size, strict=True)]
        end = [min(b + c, e) for b, c, e in zip(begin, self.chunk_size, last, strict=True)]
        return _triple(begin), _triple(end)


def read_scale(document: Mapping[str, Any], mip: int, coord_resolution: str | None, where: str) -> AuditedScale:
    """Return a scale of a parsed `info`.

    Parameters
    ----------
    coord_resolution
        The points' unit as in the command: `4,4,40`, `nm`, or None for voxels of the first scale.

    Raises
    ------
    InputError
        If the `info` has become something else since the run began.
    """
    try:
        scale = document["scales"][mip]
        own = [Fraction(repr(float(size))) for size in scale["resolution"]]
        if coord_resolution is None:
            unit = [Fraction(repr(float(size))) for size in document["scales"][0]["resolution"]]
        elif coord_resolution.strip().lower() == "nm":
            unit = [Fraction(1)] * 3
        else:
            unit = [Fraction(part.strip()) for part in coord_resolution.split(",")]
        x, y, z = (of / to for of, to in zip(unit, own, strict=True))
        block = scale.get("compressed_segmentation_block_size")
        return AuditedScale(
            scale["key"].removeprefix("./").strip("/"), _triple(scale["size"]),
            _triple(scale.get("voxel_offset", (0, 0, 0))),
            _triple(scale["chunk_sizes"][0]), (x, y, z), scale.get("encoding", "raw").lower(),
            document["data_type"].lower(), int(document["num_channels"]), None if block is None else _triple(block),
            scale.get("sharding"),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{where}/info: expected what it was when the run began, found another: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where a point is: the chunk's grid position, and the voxel from the chunk's own origin (x, y, z)."""

    grid: Triple
    voxel: Triple


def find_place(scale: AuditedScale, point: Sequence[Any] | None) -> Place | Status:
    """Return where a point is, or why it is nowhere.

    Parameters
    ----------
    point
        x, y and z as the table has them, Python's numbers or None.
    """
    if point is None or any(value is None or (isinstance(value, float | Decimal) and not math.isfinite(value))
                            for value in point):
        return Status.INVALID_COORDINATE
    grid, voxel = [], []
    for axis, value in enumerate(point):
        inside = _to_voxel(value, scale.ratios[axis]) - scale.voxel_offset[axis]
        if not 0 <= inside < scale.size[axis]:
            return Status.OUT_OF_BOUNDS
        grid.append(int(inside) // scale.chunk_size[axis])
        voxel.append(int(inside) % scale.chunk_size[axis])
    return Place(_triple(grid), _triple(voxel))


def _to_voxel(value: Any, ratio: Fraction) -> float:
    if isinstance(value, int):
        return value * ratio.numerator // ratio.denominator
    # What the product promises of floats: times the numerator, then by the denominator, each in float64.
    try:
        voxel = float(value) * float(ratio.numerator) / float(ratio.denominator)
        return math.floor(voxel)
    except OverflowError:
        return math.inf


def _triple(values: Any) -> Triple:
    x, y, z = (int(value) for value in values)
    return (x, y, z)
