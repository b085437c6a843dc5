"""What chunks stored as 2-D pictures (`jpeg`, `png`, `jxl`) have in common.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md#jpeg-chunk-encoding
The rows of the picture, one after the other, are the chunk's voxels with x fastest, then y, then z; a pixel has the
voxel's channels. Width x and height y * z is usual, and any other size with as many pixels is as good.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from voxelprobe.arrays import Int64, Labels, Voxels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError


def check_size(encoding: str, width: int, height: int, layout: ChunkLayout) -> None:
    """Make sure that a picture has one pixel a voxel, before anything of its size is made.

    Raises
    ------
    CorruptDataError
        If it has more or fewer.
    """
    if width * height != prod(layout.shape):
        sx, sy, sz = layout.shape
        raise CorruptDataError(f"{encoding}: expected a picture of {prod(layout.shape)} pixels, one for each of "
                               f"{sx} x {sy} x {sz} voxels, the header has {width} x {height}")


def place_voxels(layout: ChunkLayout, voxels: Voxels) -> Int64:
    """Return the number of each voxel's pixel, shape (n,), counted along the rows from the first."""
    sx, sy, _ = layout.shape
    return np.asarray(voxels[:, 0] + sx * (voxels[:, 1] + sy * voxels[:, 2]))


def take_pixels(samples: np.ndarray[Any, Any], layout: ChunkLayout, places: Int64) -> Labels:
    """Return the channels of a few pixels, shape (n, channels), out of a picture of shape (height, width[, samples]).

    Samples after the layout's channels, such as an opacity that the package added, are left.
    """
    rows = samples.reshape(samples.shape[0] * samples.shape[1], -1)
    return rows[places, : layout.num_channels].astype(layout.dtype, copy=False)
