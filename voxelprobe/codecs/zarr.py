"""Points of the chunks of zarr arrays, versions 2 and 3.

Format: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html and https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
A chunk is always whole, at the array's end too: what is beyond the end is filled up. No header: the size is all that
can be checked where the codecs have no checksum.

What `ChunkLayout.codecs` has to say, sorted keys of a JSON object: see `parts.StoredChunk`; `codecs` are
configurations of numcodecs in the order of writing. Zarr v2: the `filters`, then the `compressor`, as they are. Zarr
v3: `transpose` goes into `order`, the endian of `bytes` into `dtype`, `{"name": NAME, "configuration": {...}}` becomes
`{"id": NAME, ...}`, NAME without `numcodecs.`; `crc32c` is its own id. A filter of numcodecs before `bytes` has dtypes
of its own: their byte order, as stored, is that of `bytes`.
"""

from __future__ import annotations

from math import prod

import numpy as np

from voxelprobe.arrays import Labels, Voxels
from voxelprobe.codecs.compression import read_values, require_numcodecs
from voxelprobe.codecs.parts import parse_stored_chunk
from voxelprobe.codecs.protocol import ChunkLayout

require_numcodecs()

ISOLATED = False


def read_points(payload: bytes | bytearray, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the labels of a few voxels; of blosc only the blocks that they are in are decoded. See `PointReader`.

    Raises
    ------
    UnsupportedError
        If a codec can't be undone here.
    """
    stored = parse_stored_chunk(layout.codecs)
    labels = np.empty((len(voxels), layout.num_channels), layout.dtype)
    if len(voxels) == 0:
        return labels
    count = prod(stored.chunk)
    for channels, part in stored.read_stored(payload, layout):
        if isinstance(part, np.generic):
            labels[:, channels] = part
        else:
            num_channels = channels.stop - channels.start
            stored.check_shape(stored.chunk, layout, num_channels)
            places = stored.places(stored.chunk, voxels, num_channels)
            labels[:, channels] = read_values(part, stored.layers, stored.dtype, count, places)
    return labels
