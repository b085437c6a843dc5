"""A scale of a volume of any kind, from its documents as they are now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voxelprobe.audit.places import AuditableScale, find_ratios
from voxelprobe.errors import UnsupportedError, VoxelProbeError


def read_any_scale(
    kind: str, read_json: Callable[[str], Any], mip: int, coord_resolution: str | None, where: str
) -> AuditableScale:
    """Return a scale.

    Parameters
    ----------
    kind
        As a cloudpath has it: `precomputed`, `zarr`, `zarr2`, `zarr3`, `n5`.
    read_json
        Gives a document by its name below the volume's folder, parsed; None where there is none.
    mip
        Its index.
    coord_resolution
        See `find_ratios`.
    where
        The volume, for messages.

    Raises
    ------
    UnsupportedError
        If it has something that isn't known here.
    InputError
        If an `info` has become something else since the run began.
    """
    if kind == "precomputed":
        from voxelprobe.audit.precomputed import read_scale

        return read_scale(read_json("info"), mip, coord_resolution, where)
    from voxelprobe.audit.arrays import ArrayScale
    from voxelprobe.audit.multiscales import find_offset
    from voxelprobe.audit.n5 import read_n5
    from voxelprobe.audit.zarr_metadata import name_axes, read_zarr

    try:
        levels, read_array = read_n5(read_json, mip) if kind == "n5" else read_zarr(kind, read_json)
        level = levels[mip]
        if min(*levels[0].size, *level.size) <= 0:
            raise ValueError(f"voxels of {level.resolution} nm")
        array = read_array(level.path)
        axes = level.axes or name_axes(None, len(array.shape))
        ratios = find_ratios(coord_resolution, levels[0].resolution, level.resolution)
        return ArrayScale(level.path, array, axes, find_offset(levels, mip), ratios)
    except VoxelProbeError:  # some are Python's kinds too
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # Not an error of the user's: their run began with these documents, or they changed, and the run says so.
        raise UnsupportedError(f"metadata that can't be followed here: {error!r}") from error
