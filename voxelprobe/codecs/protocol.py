"""What a point reader is: one module an encoding, all with the same two names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from voxelprobe.arrays import Labels, Voxels


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """What a reader has to know of a chunk before it looks into it.

    Attributes
    ----------
    shape
        Size of this chunk in voxels (x, y, z). Chunks at the volume's end are smaller than the grid's.
    num_channels
        Channels a voxel.
    dtype
        The volume's data type, little-endian.
    block_size
        `compressed_segmentation` only: size of a block in voxels (x, y, z).
    codecs
        `zarr` and `n5` only: what their metadata say of how a chunk is encoded, as JSON in the reader's own form.
    """

    shape: tuple[int, int, int]
    num_channels: int
    dtype: np.dtype[Any]
    block_size: tuple[int, int, int] | None = None
    codecs: str = ""


class PointReader(Protocol):
    """A module that reads single voxels out of an encoded chunk."""

    ISOLATED: bool
    """Whether damaged bytes may crash the process, so that it has to run in one of its own."""

    def read_points(self, payload: bytes | bytearray, layout: ChunkLayout, voxels: Voxels) -> Labels:
        """Return the labels of a few voxels, decoding as little of the chunk as pays.

        Parameters
        ----------
        payload
            The encoded chunk, after gzip or brotli was stripped; isolated readers are given `bytes`.
        layout
            The chunk's shape, channels and dtype, as the volume's `info` has them.
        voxels
            Shape (n, 3), int64, x y z from the chunk's own origin, in any order, with repeats. n may be 0.

        Returns
        -------
        Shape (n, channels), dtype `layout.dtype`, in the order of `voxels`.

        Raises
        ------
        CorruptDataError
            If `payload` contradicts the format or `layout`. The message says what was expected and
            what was found; the caller adds the chunk's name.
        """
        ...
