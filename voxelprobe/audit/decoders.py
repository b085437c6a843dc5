"""Whole chunks by the packages that others read them with, and none of `voxelprobe.codecs`.

They trust their bytes: damaged ones may end the process. So this runs isolated (`voxelprobe.processes`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from voxelprobe.audit.places import Triple
from voxelprobe.errors import CorruptDataError, UnsupportedError

if TYPE_CHECKING:
    from voxelprobe.audit.precomputed import AuditedScale

Chunk = npt.NDArray[Any]


def explain_decoder(scale: AuditedScale) -> str:
    """Return which package decodes chunks of a scale here.

    Raises
    ------
    UnsupportedError
        If there is none, or it isn't installed.
    """
    if scale.encoding not in _DECODERS:
        raise UnsupportedError(f"encoding {scale.encoding}")
    package = _package(scale)
    try:
        importlib.import_module(package.partition(".")[0])
    except ImportError as error:
        raise UnsupportedError(f"encoding {scale.encoding} of {scale.data_type}: it takes the package "
                               f"{package.partition('.')[0]}, which isn't there") from error
    return package


def decode_chunk(payload: bytes, scale: AuditedScale, shape: Triple) -> Chunk:
    """Return a whole chunk, shape (x, y, z, channels), in the volume's dtype.

    Raises
    ------
    CorruptDataError
        If the package can't, or makes something else of it.
    """
    whole = (*shape, scale.channels)
    dtype = np.dtype(scale.data_type).newbyteorder("<")
    try:
        chunk = _DECODERS[scale.encoding][1](payload, whole, dtype, scale)
    except CorruptDataError:
        raise
    except Exception as error:  # whatever those packages raise
        raise CorruptDataError(f"{_package(scale)} can't decode it: {type(error).__name__}: {error}") from error
    if chunk.shape != whole or not np.can_cast(chunk.dtype, dtype, "safe"):
        raise CorruptDataError(f"{_package(scale)}: expected {whole} of {dtype.name}, found {chunk.shape} of "
                               f"{chunk.dtype.name}")
    return chunk.astype(dtype, copy=False)


def _package(scale: AuditedScale) -> str:
    # Its own package leaves half of grey pictures of 16 bits undone, and gives colour a fourth channel.
    deep = scale.encoding == "png" and scale.data_type == "uint16"
    return "imagecodecs.png_decode" if deep else _DECODERS[scale.encoding][0]


def _decode_raw(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    return np.frombuffer(payload, dtype).reshape(shape, order="F")


def _decode_segmentation(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    import compressed_segmentation

    return np.asarray(compressed_segmentation.decompress(payload, shape, dtype.newbyteorder("="), scale.block_size,
                                                         order="F"))


def _decode_crackle(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    import crackle

    return np.asarray(crackle.decompress(payload, parallel=1))[..., np.newaxis]


def _decode_compresso(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    import compresso

    return np.asarray(compresso.decompress(payload))[..., np.newaxis]


def _decode_jpeg(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    import simplejpeg

    return _of_picture(simplejpeg.decode_jpeg(payload, colorspace="RGB" if shape[3] == 3 else "GRAY"), shape)


def _decode_png(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    if dtype.itemsize == 2:
        import imagecodecs

        return _of_picture(imagecodecs.png_decode(payload), shape)
    import pyspng

    return _of_picture(pyspng.load(payload), shape)


def _decode_jxl(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    import imagecodecs

    # Several channels are frames, or in narrow chunks what comes to the same values in the same order.
    frames = np.asarray(imagecodecs.jpegxl_decode(payload, numthreads=1))
    return frames.reshape(-1).reshape(shape, order="F")


def _decode_fpzip(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    import fpzip

    return np.asarray(fpzip.decompress(payload, order="F"))


def _decode_kempressed(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    import fpzip

    return np.asarray(np.swapaxes(fpzip.decompress(payload, order="F"), 3, 2) - dtype.type(2))


def _decode_zfpc(payload: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], scale: AuditedScale) -> Chunk:
    import zfpc

    if dtype == np.float32:
        return np.asarray(zfpc.decompress(payload)).reshape(shape)
    # The package rounds all other dtypes to float32 (docs/design/011-floats.md): its parts, without that.
    import zfpy

    header = zfpc.ZfpcHeader.frombytes(payload)
    chunk = np.zeros(header.shape(), dtype)
    for part, stream in zip(zfpc.compute_slices(header), zfpc.disassemble_container(header, payload), strict=True):
        chunk[part] = zfpy.decompress_numpy(stream)
    return chunk.reshape(shape)


def _of_picture(picture: Chunk, shape: tuple[int, ...]) -> Chunk:
    """Return a picture's samples as voxels: rows of x, after them y, then z; a pixel's samples are the channels."""
    x, y, z, channels = shape
    return np.ascontiguousarray(picture).reshape(z, y, x, channels).transpose(2, 1, 0, 3)


_DECODERS: dict[str, tuple[str, Callable[[bytes, tuple[int, ...], np.dtype[Any], AuditedScale], Chunk]]] = {
    "raw": ("numpy.frombuffer", _decode_raw),
    "compressed_segmentation": ("compressed_segmentation.decompress", _decode_segmentation),
    "crackle": ("crackle.decompress", _decode_crackle),
    "compresso": ("compresso.decompress", _decode_compresso),
    "jpeg": ("simplejpeg.decode_jpeg", _decode_jpeg),
    "png": ("pyspng.load", _decode_png),
    "jxl": ("imagecodecs.jpegxl_decode", _decode_jxl),
    "fpzip": ("fpzip.decompress", _decode_fpzip),
    "kempressed": ("fpzip.decompress", _decode_kempressed),
    "zfpc": ("zfpc.decompress", _decode_zfpc),
}
