"""Points of `kempressed` chunks: floats + 2 with channels before z, decoded as a whole for all points of a chunk.

Format: https://github.com/seung-lab/cloud-volume (`encode_kempressed` in chunks.py) in
https://github.com/LLNL/fpzip, with sizes (x, y, channels, z) in the header; see `fpzip_stream`.

The 2 is subtracted in the volume's own arithmetic. So values are what CloudVolume decodes, to the last bit; what was
written differs from that by the rounding of + 2. What damage goes unnoticed is said in `fpzip`.
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
    sx, sy, sz = layout.shape
    values = decode_stream(payload, (sx, sy, layout.num_channels, sz), layout.dtype, encoding="kempressed")
    x, y, z = voxels.T
    return np.asarray(values[x, y, :, z] - layout.dtype.type(2))
