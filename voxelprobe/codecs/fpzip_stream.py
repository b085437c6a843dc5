"""The fpzip stream that `fpzip` and `kempressed` chunks are: its header compared, its floats decoded, its end found.

Format: https://github.com/LLNL/fpzip (a header and the values in one range code; no index, no checksum)
Each value is coded as its difference to a prediction from those before, so that nothing can be skipped. What follows
the values wanted could be left out, and isn't: that the code ends where the bytes do is the only thing that tells
damage. The package's `decompress` drops that place, and holds the interpreter lock; so its library is called here, as
the library's public header `fpzip.h` has it. Zeros after the end are ignored: before 1.1.1 the package wrote them.

The library trusts its bytes: what no encoder wrote makes it read and write outside of its tables. Readers are
`ISOLATED` for that. Of 8,000 chunks with flipped bits 6,143 ended the process, 1,806 were a `CorruptDataError`, 2 gave
the exact values and 49 others; of 2,000 truncated ones 191 ended the process and the rest were a `CorruptDataError`.
"""

from __future__ import annotations

import ctypes
import mmap
from math import prod
from typing import Any

import fpzip
import numpy as np
import numpy.typing as npt

from voxelprobe.errors import CorruptDataError, UnsupportedError

# Names of the header's types of values.
_DTYPES = ("float32", "float64")
# The library reads past the end of a truncated stream: so many zeros a value lie there.
_SPARE_BYTES_A_VALUE = 16


class _Header(ctypes.Structure):
    """What the library calls FPZ: type of the values, bits kept of each (0: all), and sizes, the first fastest."""

    _fields_ = (("type", ctypes.c_int), ("precision", ctypes.c_int), ("nx", ctypes.c_int), ("ny", ctypes.c_int),
                ("nz", ctypes.c_int), ("nf", ctypes.c_int))


def _load_library() -> ctypes.CDLL:
    library = ctypes.CDLL(fpzip.__file__)
    if not hasattr(library, "fpzip_read_from_buffer"):
        raise ImportError("its extension doesn't show the library's functions", name="fpzip")
    handle = ctypes.POINTER(_Header)
    library.fpzip_read_from_buffer.argtypes = [ctypes.c_void_p]
    library.fpzip_read_from_buffer.restype = handle
    library.fpzip_read_header.argtypes = [handle]
    library.fpzip_read_header.restype = ctypes.c_int
    library.fpzip_read.argtypes = [handle, ctypes.c_void_p]
    library.fpzip_read.restype = ctypes.c_size_t
    library.fpzip_read_close.argtypes = [handle]
    library.fpzip_read_close.restype = None
    return library


_LIBRARY = _load_library()


def decode_stream(
    payload: bytes, size: tuple[int, int, int, int], dtype: np.dtype[Any], *, encoding: str
) -> npt.NDArray[Any]:
    """Return all values of a stream, after its header was compared.

    Parameters
    ----------
    size
        What the header must say (nx, ny, nz, nf), the first fastest.
    dtype
        What the volume's values are.
    encoding
        For messages.

    Returns
    -------
    Shape `size`, dtype `dtype`.

    Raises
    ------
    CorruptDataError
        If the header says something else, or the code doesn't end with the payload.
    UnsupportedError
        If the volume isn't of floats.
    """
    if dtype.name not in _DTYPES:
        raise UnsupportedError(f"{encoding} holds float32 or float64, the volume has {dtype.name}")
    count = prod(size)
    memory = mmap.mmap(-1, len(payload) + _SPARE_BYTES_A_VALUE * (count + 8),
                       flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:len(payload)] = payload
    handle = _LIBRARY.fpzip_read_from_buffer(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    try:
        if not _LIBRARY.fpzip_read_header(handle):
            raise CorruptDataError(f"{encoding}: expected the header of an fpzip stream of the format that the package "
                                   f"reads, found {payload[:12]!r} in {len(payload)} bytes")
        header = handle.contents
        found = (header.nx, header.ny, header.nz, header.nf)
        if found != size or _DTYPES[header.type & 1] != dtype.name:
            raise CorruptDataError(f"{encoding}: expected {dtype.name} of {size}, the header has "
                                   f"{_DTYPES[header.type & 1]} of {found}")
        values = np.empty(size, dtype, order="F")
        end = _LIBRARY.fpzip_read(handle, values.ctypes.data)
        if end == 0:
            raise CorruptDataError(f"{encoding}: the package can't decode the chunk, which has {header.precision} bits "
                                   f"a value")
    finally:
        _LIBRARY.fpzip_read_close(handle)
    if end > len(payload) or any(payload[end:]):
        raise CorruptDataError(f"{encoding}: {count} values end at byte {end}, found {len(payload)} bytes")
    return values
