"""From a coordinate as the user wrote it to a chunk and a voxel in it: one point at a time, in Python's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

import numpy.typing as npt

from voxelprobe.records import Status
from voxelprobe.transport.sources import RetryingSource

Triple = tuple[int, int, int]
Ratios = tuple[Fraction, Fraction, Fraction]

Part = tuple[bytes, str | None]
"""The bytes of a stored object, and what its store says they are compressed with."""
FetchChunk = Callable[[Triple], Sequence[Part | None]]
"""Gives what the store has of the chunk at a grid position: one part, or one a chunk of channels; None for none."""


class AuditableScale(Protocol):
    """One scale of a volume of any kind, as the audit reads it."""

    @property
    def key(self) -> str:
        """Return the path of its folder below the volume's."""
        ...

    @property
    def size(self) -> Triple:
        """Return its size in voxels (x, y, z)."""
        ...

    @property
    def voxel_offset(self) -> Triple:
        """Return the voxel that it begins with."""
        ...

    @property
    def chunk_size(self) -> Triple:
        """Return a chunk's size in voxels."""
        ...

    @property
    def ratios(self) -> Ratios:
        """Return how many voxels a unit of the points is."""
        ...

    @property
    def encoding(self) -> str:
        """Return what its chunks are encoded with."""
        ...

    @property
    def data_type(self) -> str:
        """Return the name of the labels' dtype."""
        ...

    @property
    def channels(self) -> int:
        """Return the number of channels."""
        ...

    @property
    def max_bytes(self) -> int:
        """Return the most that an encoded chunk may take."""
        ...

    def chunk_name(self, grid: Triple) -> str:
        """Return what a message calls the chunk at a grid position."""
        ...

    def explain(self) -> str:
        """Return what decodes the chunks, or raise UnsupportedError if nothing does."""
        ...

    def open_chunks(self, source: RetryingSource) -> FetchChunk:
        """Return what fetches chunks; it raises CorruptDataError where the store contradicts the format."""
        ...

    def decode(self, grid: Triple, parts: Sequence[Part | None]) -> npt.NDArray[Any] | None:
        """Return a chunk's voxels, shape (x, y, z, channels), by what was fetched; None where there is no chunk.

        Raises
        ------
        CorruptDataError
            If it can't be done.
        """
        ...


def find_ratios(coord_resolution: str | None, first: Sequence[float], own: Sequence[float]) -> Ratios:
    """Return how many voxels of a scale a unit of the points is (x, y, z).

    Parameters
    ----------
    coord_resolution
        The points' unit as in the command: `4,4,40`, `nm`, or None for voxels of the first scale.
    first, own
        Voxel size in nm of the first scale and of this one, as the metadata have it.
    """
    if coord_resolution is None:
        unit = [Fraction(repr(float(size))) for size in first]
    elif coord_resolution.strip().lower() == "nm":
        unit = [Fraction(1)] * 3
    else:
        unit = [Fraction(part.strip()) for part in coord_resolution.split(",")]
    x, y, z = (of / Fraction(repr(float(to))) for of, to in zip(unit, own, strict=True))
    return (x, y, z)


def name_box(scale: AuditableScale, grid: Triple) -> str:
    """Return where the chunk at a grid position begins and ends, as in `0-64_0-64_0-40`."""
    begin = [o + g * c for o, g, c in zip(scale.voxel_offset, grid, scale.chunk_size, strict=True)]
    last = [o + s for o, s in zip(scale.voxel_offset, scale.size, strict=True)]
    end = [min(b + c, e) for b, c, e in zip(begin, scale.chunk_size, last, strict=True)]
    return "_".join(f"{start}-{stop}" for start, stop in zip(begin, end, strict=True))


def clip_chunk(scale: AuditableScale, grid: Triple) -> Triple:
    """Return the size of the chunk at a grid position without what is beyond the volume's end."""
    return triple(min(c, s - g * c) for c, s, g in zip(scale.chunk_size, scale.size, grid, strict=True))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a point is: the chunk's grid position, and the voxel from the chunk's own origin (x, y, z)."""

    grid: Triple
    voxel: Triple


def find_place(scale: AuditableScale, point: Sequence[Any] | None) -> Place | Status:
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
    for value, ratio, begin, size, chunk in zip(point, scale.ratios, scale.voxel_offset, scale.size, scale.chunk_size,
                                                strict=True):
        inside = _to_voxel(value, ratio) - begin
        if not 0 <= inside < size:
            return Status.OUT_OF_BOUNDS
        grid.append(int(inside) // chunk)
        voxel.append(int(inside) % chunk)
    return Place(triple(grid), triple(voxel))


def _to_voxel(value: Any, ratio: Fraction) -> float:
    if isinstance(value, int):
        return value * ratio.numerator // ratio.denominator
    # What the product promises of floats: times the numerator, then by the denominator, each in float64.
    try:
        voxel = float(value) * float(ratio.numerator) / float(ratio.denominator)
        return math.floor(voxel)
    except OverflowError:
        return math.inf


def triple(values: Any) -> Triple:
    """Return three whole numbers."""
    x, y, z = (int(value) for value in values)
    return (x, y, z)
