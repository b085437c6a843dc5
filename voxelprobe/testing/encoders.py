"""Chunks in every encoding, by the packages that others write them with; no code is shared with `voxelprobe.codecs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.testing import encoding_floats, encoding_pictures

Chunk = npt.NDArray[Any]


def encode_chunk(chunk: Chunk, encoding: str, block_size: Sequence[int] = (8, 8, 8)) -> bytes:
    """Return the encoded bytes of a chunk of shape (x, y, z, channels)."""
    if encoding == "compressed_segmentation":
        return _encode_compressed_segmentation(chunk, block_size)
    if encoding not in ENCODERS:
        raise ValueError(f"no writer for encoding {encoding!r}")
    return ENCODERS[encoding](chunk)


def _encode_raw(chunk: Chunk) -> bytes:
    return chunk.tobytes("F")


def _encode_crackle(chunk: Chunk) -> bytes:
    import crackle

    return bytes(crackle.compress(_only_channel(chunk)))


def _encode_compresso(chunk: Chunk) -> bytes:
    import compresso

    return bytes(compresso.compress(_only_channel(chunk)))


def _encode_compressed_segmentation(chunk: npt.NDArray[Any], block_size: Sequence[int]) -> bytes:
    import compressed_segmentation

    # The package crashes on several channels: each is encoded alone and loses its header of one word.
    block = tuple(int(v) for v in block_size)
    parts = [compressed_segmentation.compress(np.array(chunk[..., c], order="F"), block_size=block, order="F")[4:]
             for c in range(chunk.shape[3])]
    words = np.cumsum([len(parts), *(len(part) // 4 for part in parts[:-1])], dtype="<u4")
    return words.astype("<u4").tobytes() + b"".join(parts)


def _only_channel(chunk: Chunk) -> Chunk:
    if chunk.shape[3] != 1:
        raise ValueError(f"expected one channel, found {chunk.shape[3]}")
    return np.asfortranarray(chunk[..., 0])


# Those that hold 64-bit labels as they are: what is said of volumes of labels is tested with each.
LABEL_ENCODINGS = ("raw", "compressed_segmentation", "crackle", "compresso")
ENCODERS: dict[str, Callable[[Chunk], bytes]] = {
    "raw": _encode_raw,
    "crackle": _encode_crackle,
    "compresso": _encode_compresso,
    "jpeg": encoding_pictures.encode_jpeg,
    "png": encoding_pictures.encode_png,
    "jxl": encoding_pictures.encode_jxl,
    "fpzip": encoding_floats.encode_fpzip,
    "kempressed": encoding_floats.encode_kempressed,
    "zfpc": encoding_floats.encode_zfpc,
}
