"""Floats like a probability map: fpzip, kempressed and zfpc.

Under zfpc the streams' axes stand, and the mode: `xyzc` is one stream, `xyz` one a channel, `xy` one a z slice.
"""

from __future__ import annotations

from collections.abc import Iterator

import fpzip
import numpy as np
import zfpc

from benchmarks.crossovers.cases import Case
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.encoding_floats import encode_fpzip, encode_kempressed, encode_zfpc

STREAMS = {"xyzc": (True, True, True, True), "xyz": (True, True, True, False), "xy": (True, True, False, False)}
MODES: dict[str, dict[str, float]] = {"lossless": {}, "rate 8": {"rate": 8}, "tolerance": {"tolerance": 1e-3}}


def grow_chunk(shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 like a probability map: smooth sheets between 0 and 1 with a little noise; one channel."""
    rng = np.random.default_rng(0)
    x, y, z = np.ix_(*(np.arange(size, dtype=np.float32) for size in shape))
    waves = sum(np.sin(x * a + y * b + z * c) for a, b, c in rng.normal(0, 0.2, (6, 3)).astype(np.float32))
    noise = rng.normal(0, 0.003, shape).astype(np.float32)
    return np.asfortranarray((1 / (1 + np.exp(-2 * waves)) + noise).clip(0, 1)[..., None])


def list_cases(shape: tuple[int, int, int]) -> Iterator[Case]:
    """Yield each encoding, and of zfpc its streams and modes."""
    array = grow_chunk(shape)
    layout = ChunkLayout(shape, 1, array.dtype)
    yield Case("fpzip", "fpzip", layout, encode_fpzip(array),
               lambda payload: fpzip.decompress(payload, order="F")[..., 0])
    yield Case("kempressed", "kempressed", layout, encode_kempressed(array),
               lambda payload: (np.swapaxes(fpzip.decompress(payload, order="F"), 2, 3) - 2.0)[..., 0])
    for streams, correlated in STREAMS.items():
        for mode, options in MODES.items():
            yield Case(f"zfpc {streams}, {mode}", "zfpc", layout, encode_zfpc(array, correlated, **options),
                       lambda payload: zfpc.decompress(payload)[..., 0])
