"""A synthetic segmentation that looks like nervous tissue: branching processes, cell bodies, membranes.

Smooth paths grow through the volume; every voxel belongs to the nearest piece of a path, less its radius squared
(a power diagram), seen through a gentle warp so that borders curve; voxels at a border in x or y are background.
Distances are computed on whole numbers, so that the same seed gives the same labels on every machine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from voxelprobe.testing.volumes import iterate_chunks

Floats = npt.NDArray[np.float64]
# Positions are rounded to this fraction of a voxel, so that sums of squares are whole numbers.
_QUANTA = 4
_BLOCK = (16, 16, 4)
# Wavelengths and heights of the warp, in diameters.
_WAVES = ((2.3, 0.16), (1.1, 0.08), (0.6, 0.035))


class _Beads(NamedTuple):
    """Pieces of processes: centres (n, 3) and radii (n,) in voxels of x, owners (n,) from 0."""

    centre: Floats
    radius: Floats
    owner: npt.NDArray[np.int64]


def neurite_segmentation(
    shape: tuple[int, int, int],
    seed: int = 0,
    *,
    dtype: npt.DTypeLike = np.uint64,
    anisotropy: tuple[float, float, float] = (1.0, 1.0, 2.5),
    diameter: float = 20.0,
    bodies: int = 2,
    large_ids: bool = False,
) -> npt.NDArray[Any]:
    """Return labels of shape (x, y, z), Fortran-ordered, 0 where there is a membrane (5 to 20 %).

    Parameters
    ----------
    anisotropy
        Voxel size in voxels of x (x, y, z).
    diameter
        Of a usual process, in voxels of x.
    bodies
        Number of cell bodies.
    large_ids
        Ids spread over the upper half of `dtype` instead of 1, 2, 3, …: for uint64, above what int64 and float64 hold.
    """
    rng = np.random.default_rng(seed)
    scale = np.array(anisotropy, dtype=np.float64)
    beads = _grow_processes(rng, np.array(shape) * scale, diameter, bodies)
    owner = _nearest_owner(rng, shape, scale, beads, diameter)
    ids = _draw_ids(rng, int(beads.owner.max()) + 1, np.dtype(dtype), large_ids)
    labels = np.asfortranarray(ids[owner])
    labels[:-1][owner[:-1] != owner[1:]] = 0
    labels[:, :-1][owner[:, :-1] != owner[:, 1:]] = 0
    return labels


def _grow_processes(rng: np.random.Generator, extent: Floats, diameter: float, bodies: int) -> _Beads:
    margin = 1.5 * diameter
    room = extent + 2 * margin
    length = float(room.mean())
    # Processes fill space: as many as have the room's volume together.
    count = max(4, round(0.85 * float(room.prod()) / (0.785 * diameter**2 * length)))
    step = diameter / 3
    steps = int(0.6 * length / step) + 1
    start = rng.random((count, 3)) * room - margin
    width = diameter * (0.25 + 0.75 * rng.random(count) ** 3)
    heading = 2 * rng.random((count, 3)) - 1
    owner = np.arange(count)
    parts = [_walk(rng, start, sign * heading, width, owner, step=step, steps=steps) for sign in (1, -1)]
    trunk = _join(parts)
    twig = rng.integers(0, len(trunk.owner), count)
    parts.append(_walk(rng, trunk.centre[twig], 2 * rng.random((count, 3)) - 1, 0.6 * trunk.radius[twig],
                       trunk.owner[twig], step=step, steps=steps // 3 + 1))
    if bodies > 0:
        middle = rng.random((bodies, 3)) * extent
        size = min(3.2 * diameter, 0.3 * float(extent.min())) * (0.8 + 0.4 * rng.random(bodies))
        bumps = middle.repeat(6, 0) + (rng.random((6 * bodies, 3)) - 0.5) * 0.7 * size.repeat(6)[:, np.newaxis]
        soma = np.arange(count, count + bodies)
        parts.append(_Beads(bumps, size.repeat(6), soma.repeat(6)))
        parts.append(_walk(rng, middle.repeat(4, 0), 2 * rng.random((4 * bodies, 3)) - 1,
                           np.full(4 * bodies, 0.75 * diameter), soma.repeat(4), step=step, steps=steps))
    grown = _join(parts)
    inside = ((grown.centre > -margin) & (grown.centre < extent + margin)).all(1)
    return _Beads(grown.centre[inside], grown.radius[inside], grown.owner[inside])


def _walk(rng: np.random.Generator, start: Floats, heading: Floats, radius: Floats, owner: npt.NDArray[np.int64],
          *, step: float, steps: int) -> _Beads:
    """Return beads along smooth paths, one a row of `start`; radii swell and shrink on the way."""
    count = len(start)
    position, turn = start, np.zeros((count, 3))
    phase, pace = 6.3 * rng.random(count), 0.2 + 0.5 * rng.random(count)
    centres, radii = [], []
    for number in range(steps):
        turn = 0.75 * turn + 0.1 * (2 * rng.random((count, 3)) - 1)
        heading = heading + turn
        heading = heading / np.sqrt((heading**2).sum(1, keepdims=True))
        position = position + step * heading
        centres.append(position)
        radii.append(radius * (1 + 0.3 * np.sin(phase + pace * number)))
    return _Beads(np.concatenate(centres), np.concatenate(radii), np.tile(owner, steps))


def _join(parts: list[_Beads]) -> _Beads:
    return _Beads(np.concatenate([part.centre for part in parts]), np.concatenate([part.radius for part in parts]),
                  np.concatenate([part.owner for part in parts]))


def _nearest_owner(rng: np.random.Generator, shape: tuple[int, int, int], scale: Floats, beads: _Beads,
                   diameter: float) -> npt.NDArray[np.int64]:
    """Return each voxel's owner, block by block: only the beads that may win somewhere in a block are compared."""
    waves = np.array([(diameter * wave, diameter * height) for wave, height in _WAVES for _ in range(2)])
    direction = 2 * rng.random((len(waves), 3)) - 1
    direction /= np.sqrt((direction**2).sum(1, keepdims=True)) * waves[:, :1] / 6.3
    push = (2 * rng.random((len(waves), 3)) - 1) * waves[:, 1:]
    phase = 6.3 * rng.random(len(waves))
    centre = np.rint(beads.centre * _QUANTA)
    squares = np.rint((beads.radius * _QUANTA) ** 2)
    owner = np.empty(shape, np.int64, order="F")
    for _, where in iterate_chunks(shape, _BLOCK):
        grid = np.stack(np.meshgrid(*(np.arange(w.start, w.stop) for w in where), indexing="ij"), -1)
        voxels = grid.reshape(-1, 3) * scale
        points = np.rint((voxels + np.sin(voxels @ direction.T + phase) @ push) * _QUANTA)
        middle = np.rint((points.min(0) + points.max(0)) / 2)
        points, relative = points - middle, centre - middle
        reach = np.sqrt((points**2).sum(1).max())
        distance = np.sqrt((relative**2).sum(1))
        worst = ((distance + reach) ** 2 - squares).min()
        near = np.flatnonzero(np.maximum(distance - reach, 0) ** 2 - squares <= worst)
        power = _power(points, relative[near], squares[near])
        owner[where] = beads.owner[near[power.argmin(1)]].reshape(grid.shape[:3])
    return owner


def _power(points: Floats, centres: Floats, squares: Floats) -> npt.NDArray[Any]:
    """Return |point - centre|² - radius², less what depends on the point alone; exact for whole numbers."""
    own = (centres**2).sum(1) - squares
    largest = np.abs(own).max() + 6 * np.abs(points).max() * np.abs(centres).max()
    kind = np.float32 if largest < 2**24 else np.float64
    twice, columns = (-2 * points).astype(kind), centres.T.astype(kind)
    # Three plain products: for so few terms the threads of a matrix library cost more than they give.
    power: npt.NDArray[Any] = twice[:, :1] * columns[0]
    power += own.astype(kind)
    for axis in (1, 2):
        power += twice[:, axis, np.newaxis] * columns[axis]
    return power


def _draw_ids(rng: np.random.Generator, count: int, dtype: np.dtype[Any], large: bool) -> npt.NDArray[Any]:
    if not large:
        return np.arange(1, count + 1, dtype=dtype)
    top = int(np.iinfo(dtype).max)
    width = (top // 2) // count
    offsets = (rng.random(count) * width).astype(np.uint64)
    ids = np.uint64(top // 2 + 1) + np.arange(count, dtype=np.uint64) * np.uint64(width) + offsets
    return ids[np.argsort(rng.random(count))].astype(dtype)
