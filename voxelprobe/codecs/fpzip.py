"""Points of `fpzip` chunks: floats that are decoded as a whole, once for all points of a chunk.

Format: https://github.com/LLNL/fpzip, with sizes (x, y, z, channels) in the header; see `fpzip_stream`.

There are no checksums. A truncated chunk never gives numbers. Of chunks with flipped bits about 6 in 1,000 give other
numbers and go unnoticed; gzip's checksum and the store's guard against those.
"""

from __future__ import annotations

import numpy as np

from voxelprobe.arrays import Labels, Voxels
from voxelprobe.codecs.fpzip_stream import decode_stream
from voxelprobe.codecs.protocol import ChunkLayout

ISOLATED = True


def read_points(payload: bytes, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the values of a few voxels, decoding the chunk; see `PointReader`.

    Raises
    ------
    UnsupportedError
        If the volume isn't of floats.
    """
    values = decode_stream(payload, (*layout.shape, layout.num_channels), layout.dtype, encoding="fpzip")
    return np.asarray(values[tuple(voxels.T)])
