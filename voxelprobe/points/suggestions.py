"""Which unit or axis order a user probably meant, when the points don't fall into the volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from voxelprobe.points.columns import AXES
from voxelprobe.points.units import NANOMETRES, Unit, UnitConversion, unit_of_resolution

if TYPE_CHECKING:
    from voxelprobe.arrays import Bool, Voxels
    from voxelprobe.volume.scale import Scale

# As it is first, then reversed (arrays are often z y x), then by how much they move.
_AXIS_ORDERS = ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1))


@dataclass(frozen=True, slots=True)
class UnitSuggestion:
    """A unit and axis order that would put more points inside the volume.

    Attributes
    ----------
    text
        What to tell the user, as in `--coord-resolution nm` or `columns in the order z,y,x`.
    share
        Part of the sample inside the volume with it, 0 to 1.
    current_share
        The same with the unit and order that were given.
    unit
        The points' voxel size in nm.
    order
        Which of the given columns are x, y and z.
    """

    text: str
    share: float
    current_share: float
    unit: Unit
    order: tuple[int, int, int]


def suggest_unit(values: npt.NDArray[Any], scales: Sequence[Scale], scale: Scale, unit: Unit | None = None,
                 ) -> UnitSuggestion | None:
    """Return the unit and axis order that put the most points inside the volume, or None if none is better.

    Tried are the given unit, nm, and voxels of each scale, in all six axis orders. Of those that are equally good, the
    first counts: the given axis order before others, the given unit before nm before finer before coarser scales.

    Parameters
    ----------
    values
        A sample of the points, shape (n, 3), int64 or float64, in the given unit and order.
    scales
        All scales of the volume.
    scale
        The scale to read from, whose bounds count.
    unit
        The given unit; voxels of the first scale by default.
    """
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) == 0:
        return None
    current = unit if unit is not None else unit_of_resolution(scales[0].resolution)
    # A dict keeps the order and drops what is there twice.
    units = list(dict.fromkeys([current, NANOMETRES, *(unit_of_resolution(s.resolution) for s in scales)]))
    counts = {
        (order, candidate): int(_is_inside(UnitConversion.between(candidate, scale.resolution)
                                           .to_voxels(values[:, order]), scale).sum())
        for order in _AXIS_ORDERS for candidate in units
    }
    order, best = max(counts, key=lambda key: counts[key])  # the first of equals
    now = counts[_AXIS_ORDERS[0], current]
    if counts[order, best] <= now:
        return None
    advice = []
    if best != current:
        advice.append("--coord-resolution " + ("nm" if best == NANOMETRES else ",".join(best)))
    if order != _AXIS_ORDERS[0]:
        advice.append("columns in the order " + ",".join(AXES[axis] for axis in order))
    return UnitSuggestion(" and ".join(advice), counts[order, best] / len(values), now / len(values), best, order)


def _is_inside(voxels: Voxels, scale: Scale) -> Bool:
    low = np.asarray(scale.voxel_offset, np.int64)
    inside = (voxels >= low) & (voxels < low + np.asarray(scale.size, np.int64))
    return inside[:, 0] & inside[:, 1] & inside[:, 2]
