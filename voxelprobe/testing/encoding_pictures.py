"""Chunks stored as pictures, by the packages that CloudVolume writes them with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Chunk = npt.NDArray[Any]


def lay_out(chunk: Chunk) -> Chunk:
    """Return a chunk of shape (x, y, z, channels) as a picture of shape (y * z, x, channels), contiguous."""
    sx, sy, sz, channels = chunk.shape
    return np.ascontiguousarray(chunk.transpose(2, 1, 0, 3)).reshape(sy * sz, sx, channels)


def encode_jpeg(chunk: Chunk, *, quality: int = 85, subsampling: str = "444") -> bytes:
    """Return a grey or colour picture; values are close to the chunk's, not equal."""
    import simplejpeg

    picture = lay_out(chunk)
    if picture.shape[2] == 1:
        return bytes(simplejpeg.encode_jpeg(picture, quality, colorspace="GRAY", colorsubsampling="GRAY"))
    return bytes(simplejpeg.encode_jpeg(picture, quality, colorspace="RGB", colorsubsampling=subsampling))


def encode_png(chunk: Chunk, *, level: int = 9) -> bytes:
    """Return a picture of 1 to 4 channels of uint8 or uint16."""
    import pyspng

    picture = lay_out(chunk)
    if picture.dtype.itemsize == 2 and picture.shape[2] in (1, 3):
        import imagecodecs  # the other package doesn't write these

        return bytes(imagecodecs.png_encode(picture[..., 0] if picture.shape[2] == 1 else picture, level))
    return bytes(pyspng.encode(picture, compress_level=level))


def encode_jxl(chunk: Chunk, *, level: int | None = None, container: bool = False) -> bytes:
    """Return a grey picture, or three grey frames of the three channels; without `level`, lossless."""
    import imagecodecs

    picture = lay_out(chunk)
    is_grey = picture.shape[2] == 1
    return bytes(imagecodecs.jpegxl_encode(
        picture[..., 0] if is_grey else picture.transpose(2, 0, 1), photometric="GRAY" if is_grey else "RGB",
        level=level, lossless=level is None, effort=5, numthreads=1, usecontainer=container))
