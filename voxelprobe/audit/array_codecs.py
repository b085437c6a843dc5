"""What the metadata of zarr and n5 say was done to a chunk, undone step by step from the last to the first.

A chunk of zarr v3 goes through codecs from array to array, then `bytes`, then codecs from bytes to bytes:
https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html. Chunks of zarr v2 and n5 are written here as such a
chain too. What Python has a module for is undone by that, the rest by classes of numcodecs, which others read zarr
with: by those listed here, and not by its registry, which would load whatever a name asks for, pickles too.
"""

from __future__ import annotations

import importlib
import lzma
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.audit.stripping import strip
from voxelprobe.errors import CorruptDataError, UnsupportedError

Step = tuple[str, Mapping[str, Any]]
"""A codec's name, `transpose`, `bytes` or as numcodecs has it, and its configuration."""

# By `strip`: whole streams, checksums compared, and no more than a given number of bytes.
_STREAMS = ("gzip", "bz2", "zstd")
_PACKAGES = {"gzip": "gzip", "bz2": "bz2", "zstd": "zstandard", "lzma": "lzma", "zlib": "zlib",
             "crc32c": "google_crc32c"}
# Where the header of what they made says how long the content is: little-endian, 4 bytes.
_LENGTH_AT = {"blosc": 4, "lz4": 0}
# Filters of numbers, and which member of the configuration has the dtype that they make; unsaid, it is the array's.
_FILTERS = {"delta": "astype", "fixedscaleoffset": "astype", "quantize": "astype", "astype": "encode_dtype",
            "bitround": "dtype"}
# Their classes in numcodecs.
_CLASSES = {"blosc": "Blosc", "lz4": "LZ4", "adler32": "Adler32", "crc32": "CRC32", "fletcher32": "Fletcher32",
            "shuffle": "Shuffle", "packbits": "PackBits", "delta": "Delta", "fixedscaleoffset": "FixedScaleOffset",
            "quantize": "Quantize", "astype": "AsType", "bitround": "BitRound"}


def explain_steps(steps: Sequence[Step]) -> str:
    """Return what undoes some steps.

    Raises
    ------
    UnsupportedError
        If nothing does here, or its package isn't installed.
    """
    packages = ["numpy.frombuffer"]
    for name, config in steps:
        if name in ("transpose", "bytes"):
            continue
        if name == "blosc" and config.get("cname") == "snappy":
            raise UnsupportedError("codec blosc with snappy")
        if name not in {*_PACKAGES, *_CLASSES} or (name == "lzma" and config.get("format", 1) not in (0, 1, 2)):
            raise UnsupportedError(f"codec {name}")
        for member in ("dtype", "astype", "encode_dtype", "decode_dtype"):
            _check_numbers(name, config.get(member))
        package = _PACKAGES.get(name, "numcodecs")
        try:
            importlib.import_module(package)
        except (ImportError, ValueError) as error:  # numcodecs takes zfpy's version apart
            raise UnsupportedError(f"codec {name}: it takes the package {package}, which can't be used") from error
        packages.append(f"numcodecs.{name}" if package == "numcodecs" else package)
    return " and ".join(dict.fromkeys(packages))


def undo_steps(
    content: bytes, steps: Sequence[Step], shape: tuple[int, ...], dtype: np.dtype[Any], most: int
) -> npt.NDArray[Any]:
    """Return the array that went through `steps` and became `content`.

    Parameters
    ----------
    shape, dtype
        Of that array; there are as many values.
    most
        Bytes that no step's content may be longer than.

    Raises
    ------
    CorruptDataError
        If it can't have become that.
    """
    # What each step was given.
    given: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
    for name, config in steps:
        given.append((shape, dtype))
        if name == "transpose":
            shape = tuple(shape[axis] for axis in config["order"])
        elif name in _FILTERS:
            dtype = np.dtype(config.get(_FILTERS[name]) or dtype)
    value: Any = content
    for (name, config), (shape, dtype) in zip(reversed(steps), reversed(given), strict=True):
        try:
            if name == "bytes":
                value = _to_array(value, shape, dtype, config.get("endian"))
            elif name == "transpose":
                value = np.transpose(value, np.argsort(config["order"]))
            elif isinstance(value, np.ndarray):
                plain = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"))
                value = np.frombuffer(_decode(name, config, plain.tobytes(), most), dtype).reshape(shape)
            else:
                value = _decode(name, config, value, most)
        except CorruptDataError:
            raise
        except Exception as error:  # whatever those packages raise
            raise CorruptDataError(f"{name} can't be undone: {type(error).__name__}: {error}") from error
    return np.asarray(value)


def _check_numbers(name: str, dtype: Any) -> None:
    """Raise UnsupportedError if a filter's dtype is one of anything but numbers."""
    try:
        kind = "f" if dtype is None else np.dtype(dtype if isinstance(dtype, str) else "O").kind
    except (TypeError, ValueError, SyntaxError):  # by what is wrong with the text
        kind = "O"
    if kind not in "biuf":
        raise UnsupportedError(f"codec {name} of {dtype!r}")


def _to_array(content: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], endian: object) -> npt.NDArray[Any]:
    stored = dtype.newbyteorder(">" if endian == "big" else "<")
    if len(content) != math.prod(shape) * stored.itemsize:
        raise CorruptDataError(f"expected {shape} values of {stored.itemsize} bytes, found {len(content)} bytes")
    return np.frombuffer(content, stored).reshape(shape)


def _decode(name: str, config: Mapping[str, Any], content: bytes, most: int) -> bytes:
    """Return what a codec was given, of what it made."""
    if not content:
        raise CorruptDataError(f"{name}: expected some bytes, found none")
    if name in _STREAMS:
        return strip(content, name, most)
    if name == "lzma":
        with lzma.LZMAFile(BytesIO(content), format=config.get("format", lzma.FORMAT_XZ)) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise CorruptDataError(f"lzma: expected at most {most} bytes, found more")
        return content
    if name == "zlib":
        stream = zlib.decompressobj()
        inflated = stream.decompress(content, most)
        if not stream.eof:
            raise CorruptDataError(f"zlib: expected whole data of at most {most} bytes")
        return inflated
    if name == "crc32c":
        import google_crc32c

        if int.from_bytes(content[-4:], "little") != google_crc32c.value(content[:-4]):
            raise CorruptDataError("crc32c: the checksum doesn't match")
        return content[:-4]
    if name == "bitround":  # what it rounds off is gone
        return content
    if name in _LENGTH_AT:
        (size,) = struct.unpack_from("<I", content, _LENGTH_AT[name])
        if size > most:
            raise CorruptDataError(f"{name}: expected at most {most} bytes, the header promises {size}")
        config = {}  # all is in the header
    import numcodecs
    import numcodecs.blosc

    # Threads of its own don't survive the fork that this runs in.
    numcodecs.blosc.use_threads = False
    decoded = getattr(numcodecs, _CLASSES[name])(**config).decode(content)
    return np.ascontiguousarray(decoded).tobytes() if isinstance(decoded, np.ndarray) else bytes(decoded)
