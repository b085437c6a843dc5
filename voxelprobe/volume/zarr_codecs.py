"""The codecs that the metadata of zarr and n5 name, as configurations of numcodecs for the point readers.

Formats: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html, …/v3/codecs/, https://numcodecs.readthedocs.io and
https://github.com/saalfeldlab/n5. What can be undone `codecs.compression` knows; it is asked here, before a chunk is
fetched.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxelprobe.codecs.compression import make_layers
from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.volume.fields import Fields

Codec = dict[str, Any]

_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_V3_NAMES = ("blosc", "gzip", "zstd", "crc32c")
# Filters of numcodecs from values to values, which zarr v3 has before `bytes`; unsaid, the dtype is the array's.
_V3_FILTERS = ("numcodecs.delta", "numcodecs.fixedscaleoffset", "numcodecs.quantize", "numcodecs.bitround")
# xz's own format is 1.
_N5_TYPES: dict[str, Codec] = {"bzip2": {"id": "bz2"}, "gzip": {"id": "gzip"}, "xz": {"id": "lzma", "format": 1},
                               "zstd": {"id": "zstd"}}


def parse_numcodecs(document: object, where: str) -> Codec:
    """Return a configuration as zarr v2 has it, `{"id": …}`.

    Raises
    ------
    UnsupportedError
        If the codec can't be undone here.
    """
    fields = Fields(document, where)
    codec: Codec = {"id": fields.text("id")}
    for key, value in fields.fields.items():
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise UnsupportedError(f"{where}: {key} of codec {codec['id']!r} can't be read: {value!r}")
        codec[key] = value
    if codec["id"] == "crc32c" and codec.get("location", "end") != "end":
        raise UnsupportedError(f"{where}: a crc32c before the data can't be read")
    try:
        make_layers([codec])
    except UnsupportedError as error:
        raise UnsupportedError(f"{where}: {error}") from error
    return codec


def parse_v3_codec(name: str, configuration: dict[str, Any], where: str) -> Codec:
    """Return the configuration for a codec from bytes to bytes of zarr v3: one of its own, or `numcodecs.NAME`."""
    if name.startswith("numcodecs."):
        return parse_numcodecs(configuration | {"id": name.removeprefix("numcodecs.")}, where)
    if name not in _V3_NAMES:
        raise UnsupportedError(f"{where}: codec {name!r} can't be read; the known ones are {', '.join(_V3_NAMES)} and "
                               "numcodecs.NAME")
    if name == "blosc":
        shuffle = configuration.get("shuffle", "noshuffle")
        if not isinstance(shuffle, str) or shuffle not in _SHUFFLES:
            raise InputError(f"{where}: expected noshuffle, shuffle or bitshuffle, found {shuffle!r}")
        configuration = configuration | {"shuffle": _SHUFFLES[shuffle]}
    return parse_numcodecs(configuration | {"id": name}, where)


def parse_v3_filter(name: str, configuration: dict[str, Any], dtype: np.dtype[Any], where: str) -> Codec:
    """Return the configuration for a codec from values to values of zarr v3."""
    if name not in _V3_FILTERS:
        raise UnsupportedError(f"{where}: codec {name!r} can't be read; before bytes, transpose and "
                               f"{', '.join(_V3_FILTERS)} can")
    return parse_v3_codec(name, {"dtype": dtype.str} | configuration, where)


def named(fields: Fields) -> tuple[str, dict[str, Any]]:
    """Return the name and a copy of the configuration of an extension point of zarr v3."""
    configuration = fields.fields.get("configuration")
    return fields.text("name"), dict(Fields({} if configuration is None else configuration, fields.where).fields)


def parse_n5_compression(document: object, where: str) -> list[Codec]:
    """Return the configurations for the `compression` of an n5 data set, `{"type": …}`; none for raw.

    Raises
    ------
    UnsupportedError
        If it can't be undone here; n5's lz4 is in blocks of a format of its own.
    """
    fields = Fields(document, where)
    kind = fields.text("type")
    if kind == "raw":
        return []
    if kind == "blosc":
        return [parse_numcodecs({"id": "blosc", "cname": fields.text("cname", default="lz4")}, where)]
    if kind == "gzip" and fields.fields.get("useZlib") is True:
        return [{"id": "zlib"}]
    if kind not in _N5_TYPES:
        raise UnsupportedError(f"{where}: compression {kind!r} can't be read; the known ones are raw, blosc, "
                               f"{', '.join(_N5_TYPES)}")
    return [_N5_TYPES[kind]]
