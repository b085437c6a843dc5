"""Points of `jpeg` chunks: one decode of the picture serves all points of a chunk.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md#jpeg-chunk-encoding
A grey picture for one channel of uint8, a colour picture for three. Values are those of libjpeg-turbo with its exact
integer transform, which CloudVolume uses too; other decoders may differ by one or two. Marks of how to show a picture
(orientation, profiles) are not applied. A colour picture in a volume of one channel gives its luminance, as with
CloudVolume; a grey one in a volume of three, and four colours, are refused.

jpeg has no checksum. What libjpeg only warns of (an early end, bytes between markers, codes that don't exist) is an
error here, so no truncated picture gives values. A flipped bit that leaves a picture gives that picture's values:
they equal every other full decode of the same bytes.

Not isolated: no crash in the fuzzing of docs/design/010-pictures.md. No maintained package decodes some rows of a
picture and still notices that it ends early.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from voxelprobe.arrays import Labels, Voxels
from voxelprobe.codecs.pictures import check_size, place_voxels, take_pixels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError

ISOLATED = False

# Channels of the volume -> colour spaces a picture may have, and the one that is asked of the package.
_COLORS = {1: (("Gray", "YCbCr", "RGB"), "GRAY"), 3: (("YCbCr", "RGB"), "RGB")}


def read_points(payload: bytes | bytearray, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the values of a few voxels, out of the decoded picture; see `PointReader`.

    Raises
    ------
    UnsupportedError
        If the volume isn't of uint8, or has neither one channel nor three.
    """
    if layout.dtype != np.uint8 or layout.num_channels not in _COLORS:
        raise UnsupportedError(f"jpeg holds one channel or three of uint8, the volume has {layout.num_channels} of "
                               f"{layout.dtype.name}")
    expected, wanted = _COLORS[layout.num_channels]
    try:
        height, width, found, _ = simplejpeg.decode_jpeg_header(payload)
    except (ValueError, KeyError, MemoryError) as error:  # KeyError: of a sampling without a name
        raise CorruptDataError(f"jpeg: the package can't read the header of {len(payload)} bytes: {error}") from error
    check_size("jpeg", width, height, layout)
    if found not in expected:
        raise CorruptDataError(f"jpeg: expected a picture of {layout.num_channels} channels ({', '.join(expected)}), "
                               f"the header has {found}")
    if len(voxels) == 0:
        return np.empty((0, layout.num_channels), layout.dtype)
    try:
        picture = simplejpeg.decode_jpeg(payload, colorspace=wanted, strict=True)
    except (ValueError, MemoryError) as error:
        raise CorruptDataError(f"jpeg: the package can't decode the picture: {error}") from error
    return take_pixels(picture, layout, place_voxels(layout, voxels))
