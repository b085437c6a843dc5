"""Whole zarr arrays as zarr-python writes them, with every option that a reader has to undo."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

V2_CODECS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "zlib": ("Zlib", ()), "gzip": ("GZip", ()), "bz2": ("BZ2", ()), "lzma": ("LZMA", ()), "lz4": ("LZ4", ()),
    "zstd": ("Zstd", ()), "blosc": ("Blosc", ("zstd", 5, 2)), "blosc lz4": ("Blosc", ("lz4", 5, 1)),
    "lzma alone": ("LZMA", (2,)), "shuffle": ("Shuffle", (8,)), "delta": ("Delta", ("<u8",)), "crc32": ("CRC32", ()),
    "adler32": ("Adler32", ()), "fletcher32": ("Fletcher32", ()),
    "offset": ("FixedScaleOffset", (0, 1, "<u8", "<u8")), "astype": ("AsType", ("<f8", "<u8")),
}
"""Compressors and filters of version 2, of uint64: the class in numcodecs and its arguments."""


def write_zarr(path: Path, array: npt.NDArray[Any], version: Literal[2, 3], **options: Any) -> Any:
    """Write an array as it is, in the order of its axes; return zarr-python's array.

    Parameters
    ----------
    options
        Of `zarr.create_array`; the dtype is the array's unless they say else.
    """
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of codecs beyond the specification
        stored = zarr.create_array(path, shape=array.shape, zarr_format=version, **({"dtype": array.dtype} | options))
        stored[...] = array
    return stored


def write_shards(
    path: Path,
    array: npt.NDArray[Any],
    chunk: Sequence[int],
    shard: Sequence[int],
    *,
    location: str = "end",
    checksum: bool = True,
    **options: Any,
) -> None:
    """Write an array of shape (x, y, z) or (x, y, z, channels) in shards of version 3, its axes reversed.

    Parameters
    ----------
    chunk, shard
        Their shapes, in the order of the array's axes.
    location, checksum
        Where a shard has its index ("start" or "end"), and whether a CRC32C follows it.
    options
        Of `zarr.create_array`, and `codecs`: those inside of a shard, zstd if left out.
    """
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

    codec = ShardingCodec(chunk_shape=tuple(chunk)[::-1], codecs=options.pop("codecs", [BytesCodec(), ZstdCodec()]),
                          index_location=location, index_codecs=[BytesCodec(), *([Crc32cCodec()] if checksum else [])])
    write_zarr(path, array.T, 3, chunks=tuple(shard)[::-1], serializer=codec, compressors=None, **options)


def make_v2_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of `write_zarr` with the compressor and filter that they name by `V2_CODECS` made."""
    import numcodecs

    made: dict[str, Any] = {}
    for name in ("compressors", "filters"):
        if options.get(name) is not None:
            codec, arguments = V2_CODECS[options[name]]
            made[name] = getattr(numcodecs, codec)(*arguments)
    if "filters" in made:
        made["filters"] = [made["filters"]]
    return options | made


def make_v3_options(name: str) -> dict[str, Any]:
    """Return the options of `write_zarr` for a form of version 3, of three axes and uint64."""
    from zarr import codecs

    numcodecs = codecs.numcodecs
    options: dict[str, dict[str, Any]] = {
        "transpose": {"filters": [codecs.TransposeCodec(order=(2, 0, 1))]},
        "transposes": {"filters": [codecs.TransposeCodec(order=(2, 0, 1)), codecs.TransposeCodec(order=(1, 0, 2))]},
        "big": {"serializer": codecs.BytesCodec(endian="big")},
        "dots": {"chunk_key_encoding": {"name": "default", "separator": "."}},
        "v2 names": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        "v2 slashes": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
        "none": {"compressors": None},
        "gzip": {"compressors": [codecs.GzipCodec()]},
        "zstd": {"compressors": [codecs.ZstdCodec(level=3, checksum=True)]},
        "blosc": {"compressors": [codecs.BloscCodec(cname="zstd", shuffle="bitshuffle")]},
        "crc32c": {"compressors": [codecs.GzipCodec(), codecs.Crc32cCodec()]},
        "zlib": {"compressors": [numcodecs.Zlib(level=2)]},
        "shuffle": {"compressors": [numcodecs.Shuffle(elementsize=8), numcodecs.LZMA()]},
        "delta": {"filters": [numcodecs.Delta(dtype="<u8")], "compressors": [numcodecs.BZ2()]},
        "delta transposed": {"filters": [codecs.TransposeCodec(order=(2, 0, 1)), numcodecs.Delta(dtype="<u8")]},
        "all": {"filters": [codecs.TransposeCodec(order=(1, 2, 0))], "serializer": codecs.BytesCodec(endian="big"),
                "compressors": [codecs.BloscCodec(cname="lz4"), codecs.Crc32cCodec()]},
    }
    return options[name]
