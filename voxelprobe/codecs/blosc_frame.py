"""Values out of a blosc frame, of which only the blocks needed are decoded.

Format: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
version | version of the compressor's format | flags | typesize | nbytes | blocksize | cbytes (uint32le) | where each
block begins (uint32le) | the blocks, in any order. Each block is compressed by itself, the last one may be short.

numcodecs (0.16) offers no partial decode, so it is given a small frame made of the blocks needed. A frame
has no checksum: what is damaged inside of a block may read as other values, as it does by any other program.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64
from voxelprobe.errors import CorruptDataError

Content: TypeAlias = bytes | bytearray | memoryview

_HEADER = struct.Struct("<4B3I")
_STORED = 2  # a flag: the values follow as they are
_RESERVED = 8  # a flag that no frame has
_VERSION = 2


@dataclass(frozen=True, slots=True)
class _Header:
    flags: int
    nbytes: int
    blocksize: int


def decompress(frame: Content, most: int) -> Content:
    """Return all of a frame, at most `most` bytes.

    Raises
    ------
    CorruptDataError
        If it contradicts its header or can't be decoded.
    """
    _parse_header(frame, most)
    return _decompress(frame)


def take_values(frame: Content, dtype: np.dtype[Any], count: int, places: Int64) -> npt.NDArray[Any]:
    """Return the values at some places, shape of `places`, of the `count` that a frame holds.

    Raises
    ------
    CorruptDataError
        If the frame holds another number of bytes, contradicts its header, or one of the blocks needed can't be
        decoded.
    """
    size = count * dtype.itemsize
    header = _parse_header(frame, size)
    if header.nbytes != size:
        raise CorruptDataError(f"expected {size} bytes of blosc, the header promises {header.nbytes}")
    if header.flags & _STORED:
        if len(frame) != size + _HEADER.size:
            raise CorruptDataError(f"blosc: {size} bytes stored as they are don't fill the frame's {len(frame)}")
        return _take(memoryview(frame)[_HEADER.size :], dtype, places)
    blocksize = header.blocksize
    if blocksize < size and blocksize % dtype.itemsize == 0:
        values_a_block = blocksize // dtype.itemsize
        block = places // values_a_block
        is_needed = np.zeros(-(-size // blocksize), np.bool_)
        is_needed[block] = True
        # A frame is never shorter than a block: a short one at the end doesn't stand alone.
        if size % blocksize and np.count_nonzero(is_needed) == 1:
            is_needed[-2] |= is_needed[-1]
        if not is_needed.all():
            some = _decompress(_select_blocks(frame, header, np.flatnonzero(is_needed)))
            place = places - (block - (np.cumsum(is_needed) - 1)[block]) * values_a_block
            return _take(some, dtype, place)
    return _take(_decompress(frame), dtype, places)


def _take(content: Content, dtype: np.dtype[Any], places: Int64) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.frombuffer(content, dtype)
    return values.take(places)


def _parse_header(frame: Content, most: int) -> _Header:
    if len(frame) < _HEADER.size:
        raise CorruptDataError(f"a blosc frame has a header of {_HEADER.size} bytes, found {len(frame)} bytes")
    version, _, flags, typesize, nbytes, blocksize, cbytes = _HEADER.unpack_from(frame)
    # Also where the values are stored as they are, and numcodecs isn't asked.
    if version != _VERSION or flags & _RESERVED or typesize == 0:
        raise CorruptDataError(f"blosc: expected a frame of format {_VERSION}, found {version} with flags {flags:#x} "
                               f"and values of {typesize} bytes")
    # numcodecs takes the frame's word for its length, and for the memory that it needs.
    if cbytes != len(frame):
        raise CorruptDataError(f"blosc: the header promises a frame of {cbytes} bytes, found {len(frame)}")
    if not 0 < nbytes <= most:
        raise CorruptDataError(f"blosc: expected at most {most} bytes, the header promises {nbytes}")
    if not 0 < blocksize <= nbytes:
        raise CorruptDataError(f"blosc: expected blocks of at most {nbytes} bytes, the header has {blocksize}")
    return _Header(flags, nbytes, blocksize)


def _select_blocks(frame: Content, header: _Header, blocks: npt.NDArray[np.intp]) -> bytes:
    """Return a frame of some of a frame's blocks, in ascending order."""
    number = -(-header.nbytes // header.blocksize)
    begin = _HEADER.size + 4 * number
    if begin > len(frame):
        raise CorruptDataError(f"blosc: the places of {number} blocks don't fit {len(frame)} bytes")
    starts = np.frombuffer(frame, "<u4", number, _HEADER.size).astype(np.int64)
    if starts.min() < begin or starts.max() >= len(frame):
        raise CorruptDataError(f"blosc: expected blocks from byte {begin} to {len(frame)}, found them to begin at "
                               f"{starts.min()} to {starts.max()}")
    # A block goes on to where any other one begins.
    bounds = np.append(np.sort(starts), len(frame))
    ends = bounds[np.searchsorted(bounds, starts[blocks], "right")]
    sizes = ends - starts[blocks]
    last = int(blocks[-1])
    nbytes = (len(blocks) - 1) * header.blocksize + min(header.blocksize, header.nbytes - last * header.blocksize)
    head = _HEADER.size + 4 * len(blocks)
    places = np.append(0, np.cumsum(sizes)) + head
    return b"".join((
        _HEADER.pack(*frame[:4], nbytes, header.blocksize, int(places[-1])),
        places[:-1].astype("<u4").tobytes(),
        *(frame[start:end] for start, end in zip(starts[blocks].tolist(), ends.tolist(), strict=True)),
    ))


def _decompress(frame: Content) -> bytes:
    try:
        decoded: bytes = _load_blosc().decompress(frame)
    except (RuntimeError, ValueError) as error:
        raise CorruptDataError(f"blosc: {error}") from error
    return decoded


@functools.cache
def _load_blosc() -> Any:
    from numcodecs import blosc

    # Its threads are shared by the process and lost in a fork; workers are processes here.
    blosc.use_threads = False
    return blosc
