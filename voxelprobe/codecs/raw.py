"""Points of `raw` chunks: uncompressed voxels.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md#raw-chunk-encoding
x fastest, then y, z and the channel, little-endian, without a header: the length is the only thing that can be checked.
"""

from __future__ import annotations

from math import prod

import numpy as np

from voxelprobe.arrays import Labels, Voxels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError

ISOLATED = False


def read_points(payload: bytes | bytearray, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the labels of a few voxels, taken from their places in the bytes; see `PointReader`."""
    sx, sy, sz = layout.shape
    expected = prod(layout.shape) * layout.num_channels * layout.dtype.itemsize
    if len(payload) != expected:
        channels = f" in {layout.num_channels} channels" if layout.num_channels > 1 else ""
        raise CorruptDataError(f"a raw chunk of {sx} x {sy} x {sz} {layout.dtype.name} voxels{channels} has "
                               f"{expected} bytes, found {len(payload)}")
    stored = np.frombuffer(payload, layout.dtype)  # a view: the chunk is not copied
    places = voxels[:, 0] + sx * (voxels[:, 1] + sy * voxels[:, 2])
    if layout.num_channels == 1:
        return stored.take(places).reshape(-1, 1)
    return stored.take(places[:, None] + sx * sy * sz * np.arange(layout.num_channels))
