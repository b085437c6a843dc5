"""Chunks of floats by the packages that CloudVolume writes them with: fpzip, kempressed and zfpc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Chunk = npt.NDArray[Any]


def encode_fpzip(chunk: Chunk, precision: int = 0) -> bytes:
    """Return a chunk of shape (x, y, z, channels) with `precision` bits kept of each value; 0 keeps all."""
    import fpzip

    return bytes(fpzip.compress(np.asfortranarray(chunk), order="F", precision=precision))


def encode_kempressed(chunk: Chunk) -> bytes:
    """Return a chunk of shape (x, y, z, channels) as fpzip of value + 2, channels before z."""
    import fpzip

    # Written in this order, whatever the array's own: CloudVolume's writer mixes the values of C-ordered arrays up.
    shifted = np.asfortranarray(chunk.swapaxes(2, 3) + chunk.dtype.type(2))
    return bytes(fpzip.compress(shifted, order="F"))


def encode_zfpc(chunk: Chunk, correlated: Sequence[bool] = (True, True, True, True), **mode: float) -> bytes:
    """Return a chunk of shape (x, y, z, channels).

    Parameters
    ----------
    correlated
        Axes (x, y, z, channels) that zfp streams go along; there is a stream for each place along the others.
    mode
        At most one of `rate` (bits a value), `precision` (bits) and `tolerance`; without, nothing is lost.
    """
    import zfpc

    return bytes(zfpc.compress(np.asfortranarray(chunk), correlated_dims=list(correlated), **mode))
