"""Grey pictures: jpeg, png and jxl of smooth tissue with the noise of an electron microscope."""

from __future__ import annotations

from collections.abc import Iterator

import imagecodecs
import numpy as np
import pyspng
import simplejpeg

from benchmarks.crossovers.cases import Case
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.encoders import encode_chunk
from voxelprobe.testing.encoding_pictures import encode_jxl


def make_tissue(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return a grey chunk of shape (x, y, z, 1)."""
    rng = np.random.default_rng(seed)
    field = rng.normal(0, 1, shape)
    for _ in range(3):
        for axis in range(3):
            field = (field + np.roll(field, 1, axis) + np.roll(field, -1, axis)) / 3
    noisy = 128 + 40 * (field / field.std() + rng.normal(0, 0.25, shape))
    return np.asfortranarray(noisy.clip(0, 255).astype(np.uint8))[..., None]


def list_cases(shape: tuple[int, int, int]) -> Iterator[Case]:
    """Yield each encoding, with the levels that CloudVolume writes by default."""
    chunk = make_tissue(shape)
    layout = ChunkLayout(shape, 1, chunk.dtype)
    yield Case("jpeg", "jpeg", layout, encode_chunk(chunk, "jpeg"),
               lambda payload: simplejpeg.decode_jpeg(payload, colorspace="GRAY").ravel().reshape(shape, order="F"))
    yield Case("png", "png", layout, encode_chunk(chunk, "png"),
               lambda payload: pyspng.load(payload).ravel().reshape(shape, order="F"))
    yield Case("jxl", "jxl", layout, encode_jxl(chunk, level=85),
               lambda payload: imagecodecs.jpegxl_decode(payload, numthreads=1).ravel().reshape(shape, order="F"))
