"""What zarr and n5 do to the bytes of a chunk, undone and checked: compressors, filters, checksums.

The codecs are named and configured as numcodecs does, https://numcodecs.readthedocs.io, which is also what zarr v2
stores; of the configuration only what decoding needs is looked at. Never by numcodecs' registry: it would load whatever
a name in the metadata asks for, pickles too.

A chunk's size is known from its metadata, so what a codec makes is bounded before it is made, and its size checked.
What else is noticed: gzip, zlib, xz (as a rule), bz2 and the checksums notice flipped bits; zstd if its writer asked
for that, which is rare; blosc, lz4 and .lzma don't. Where they don't, an answer is what any other program reads from
the same bytes.

Fuzzed with 1.3 million reads of damaged chunks (docs/design/014-zarr-chunks.md), none ended the process, so the readers
that use this aren't isolated.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64
from voxelprobe.codecs import blosc_frame
from voxelprobe.codecs.decompressors import COMPRESSORS, Config, Content, make_lzma, undo_crc32c
from voxelprobe.errors import CorruptDataError, UnsupportedError

# Filters: of numcodecs' module NAME the class; and the fields of the configuration that name the dtypes of the values
# before and after it, None where they are bytes.
_FILTERS: Mapping[str, tuple[str, tuple[str, str] | None]] = {
    "astype": ("AsType", ("decode_dtype", "encode_dtype")),
    "delta": ("Delta", ("dtype", "astype")),
    "fixedscaleoffset": ("FixedScaleOffset", ("dtype", "astype")),
    "quantize": ("Quantize", ("dtype", "astype")),
    "shuffle": ("Shuffle", None),
}
_CHECKSUMS: Mapping[str, tuple[str, str]] = {
    "adler32": ("checksum32", "Adler32"),
    "crc32": ("checksum32", "CRC32"),
    "fletcher32": ("fletcher32", "Fletcher32"),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One codec, as it is undone.

    Attributes
    ----------
    undo
        Gives the bytes that the codec was given, of the bytes it made and the number of bytes to be had at most.
    encoded_bytes
        What a number of bytes becomes by the codec; None where that depends on the bytes.
    """

    name: str
    undo: Callable[[Content, int], Content]
    encoded_bytes: Callable[[int], int] | None = None


def require_numcodecs() -> None:
    """Import numcodecs, which takes some 50 ms: when a reader is loaded, and not when the first chunk is read.

    Raises
    ------
    ImportError
        If it isn't installed, or is and can't be used.
    """
    try:
        importlib.import_module("numcodecs")
    except ValueError as error:  # it takes zfpy's version apart
        raise ImportError(f"{error} (if that is of zfpy's version: pip install 'zfpy!=1.0.1.post0')",
                          name="numcodecs") from error


def make_layers(codecs: Sequence[Config]) -> tuple[Layer, ...]:
    """Return how to undo codecs, given in the order in which they were applied.

    Needs no package: metadata can be checked by it.

    Raises
    ------
    UnsupportedError
        If one of them can't be undone here; the message names it.
    """
    return tuple(map(_make_layer, codecs))


def read_values(
    content: Content, layers: Sequence[Layer], dtype: np.dtype[Any], count: int, places: Int64
) -> npt.NDArray[Any]:
    """Return some of the values that were encoded, undoing no more than is needed.

    Parameters
    ----------
    dtype, count
        Of all the values; their bytes are what the first of the layers was given.
    places
        Indices of those wanted, of any shape.

    Returns
    -------
    Shape of `places`, `dtype`.

    Raises
    ------
    CorruptDataError
        If a layer notices damage, or makes another number of bytes than it was given.
    UnsupportedError
        If the chunk's size isn't a multiple of what a filter takes.
    """
    size = count * dtype.itemsize
    sizes = _list_sizes(layers, size)
    if layers and layers[0].name == "blosc":
        frame = _undo(content, layers[1:], sizes[1:])
        return blosc_frame.take_values(frame, dtype, count, places)
    return np.frombuffer(_undo(content, layers, sizes), dtype).take(places)


def _list_sizes(layers: Sequence[Layer], size: int) -> list[tuple[int, bool]]:
    """Return the number of bytes before and after each layer, and whether there have to be as many or at most."""
    sizes = [(size, True)]
    for layer in layers:
        size, is_exact = sizes[-1]
        if layer.encoded_bytes is None:
            # Incompressible bytes get longer: 2 % is granted.
            sizes.append((size + size // 50 + 1024, False))
        else:
            sizes.append((layer.encoded_bytes(size), is_exact))
    return sizes


def _undo(content: Content, layers: Sequence[Layer], sizes: Sequence[tuple[int, bool]]) -> Content:
    source = "the stored object"
    _check_size(source, content, *sizes[-1])
    for layer, (size, is_exact) in zip(reversed(layers), reversed(sizes[:-1]), strict=True):
        source = layer.name
        try:
            content = layer.undo(content, size)
        except (ValueError, RuntimeError, TypeError, IndexError, OverflowError, MemoryError) as error:
            raise CorruptDataError(f"{source}: {error}") from error
        _check_size(source, content, size, is_exact)
    return content


def _check_size(source: str, content: Content, size: int, is_exact: bool) -> None:
    if is_exact and len(content) != size:
        raise CorruptDataError(f"expected {size} bytes of {source}, found {len(content)}")


def _make_layer(config: Config) -> Layer:
    name = str(config.get("id"))
    if name == "blosc" and config.get("cname") == "snappy":
        raise UnsupportedError("codec blosc with snappy can't be read: numcodecs is made without it")
    if name in COMPRESSORS:
        return Layer(name, COMPRESSORS[name])
    if name == "lzma":
        return Layer(name, make_lzma(config))
    if name == "crc32c":
        return Layer(name, undo_crc32c, lambda size: size + 4)
    if name in _CHECKSUMS:
        module, class_name = _CHECKSUMS[name]
        return Layer(name, _undo_by_numcodecs(module, class_name, config), lambda size: size + 4)
    if name in _FILTERS:
        return _make_filter(name, config)
    if name == "packbits":
        return Layer(name, _undo_by_numcodecs("packbits", "PackBits", config), lambda size: 1 + -(-size // 8))
    if name == "bitround":  # what it rounds off is gone
        return Layer(name, lambda content, most: content, lambda size: size)
    known = sorted({*COMPRESSORS, *_CHECKSUMS, *_FILTERS, "bitround", "crc32c", "lzma", "packbits"})
    raise UnsupportedError(f"codec {name!r} can't be read; the known ones are {', '.join(known)}")


def _make_filter(name: str, config: Config) -> Layer:
    class_name, fields = _FILTERS[name]
    if fields is None:
        return Layer(name, _undo_by_numcodecs(name, class_name, config), lambda size: size)
    before = _parse_dtype(name, config.get(fields[0]))
    # All but astype's may be left out, or null, which is the same.
    stored = config.get(fields[1])
    after = before if stored is None and name != "astype" else _parse_dtype(name, stored)
    undo = _undo_by_numcodecs(name, class_name, {**config, fields[0]: before.str, fields[1]: after.str})

    def encoded_bytes(size: int) -> int:
        if size % before.itemsize:
            raise UnsupportedError(f"codec {name!r} is of {before.str} values, which {size} bytes are not")
        return size // before.itemsize * after.itemsize

    return Layer(name, undo, encoded_bytes)


def _parse_dtype(name: str, value: Any) -> np.dtype[Any]:
    """Return a dtype of numbers; numpy would take one with objects in it too."""
    try:
        dtype = np.dtype(value if isinstance(value, str) else "")
    except (TypeError, ValueError, SyntaxError):  # by what is wrong with the text
        dtype = None
    if dtype is None or dtype.kind not in "biuf":
        raise UnsupportedError(f"codec {name!r} is of values {value!r}, which can't be read")
    return dtype


def _undo_by_numcodecs(module: str, class_name: str, config: Config) -> Callable[[Content, int], Content]:
    codec: Any = None

    def undo(content: Content, most: int) -> Content:
        nonlocal codec
        if codec is None:
            arguments = {key: value for key, value in config.items() if key != "id"}
            try:
                codec = getattr(importlib.import_module(f"numcodecs.{module}"), class_name)(**arguments)
            except (TypeError, ValueError) as error:
                raise UnsupportedError(f"codec {config['id']!r} can't be set up as {arguments}: {error}") from error
        with np.errstate(all="ignore"):  # damaged numbers
            decoded = np.ascontiguousarray(codec.decode(content))
        return decoded.reshape(-1).view(np.uint8).data

    return undo
