"""The `info` of a Neuroglancer Precomputed volume, checked once and frozen.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
An `info` comes from outside: whatever is used of it is checked here, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.sharding.spec import Compression, Sharding

# A shard index has 16 bytes a minishard and is read whole; published volumes have 13 bits at most.
MAX_MINISHARD_BITS = 20
DATA_TYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")
Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Scale:
    """One resolution of a volume, with all that is needed to find and read a voxel.

    Attributes
    ----------
    size, voxel_offset
        Extent in voxels of this scale (x, y, z) and where it begins.
    resolution
        Voxel size in nm (x, y, z); may be fractional.
    chunk_size
        Voxels a chunk (x, y, z); the first of the `info`'s `chunk_sizes`.
    """

    key: str
    size: Triple
    voxel_offset: Triple
    resolution: tuple[float, float, float]
    chunk_size: Triple
    encoding: str
    dtype: np.dtype[Any]
    num_channels: int
    block_size: Triple | None = None
    sharding: Sharding | None = None

    @property
    def fingerprint(self) -> str:
        """Return a digest of everything that decides where a voxel is and how it is read."""
        facts: list[Any] = [self.key, self.size, self.voxel_offset, self.resolution, self.chunk_size, self.encoding,
                 self.dtype.str, self.num_channels, self.block_size]
        if (spec := self.sharding) is not None:
            facts.append([getattr(spec, name) for name in spec.__slots__])
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()

    def chunk_layout(self, shape: Triple) -> ChunkLayout:
        """Return what a point reader needs to know of a chunk of `shape` voxels."""
        return ChunkLayout(shape, self.num_channels, self.dtype, self.block_size)


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """A volume's scales, finest first as the `info` lists them."""

    kind: str
    scales: tuple[Scale, ...]

    def scale_at(self, mip: str | int, where: str) -> tuple[int, Scale]:
        """Return the index and the scale named by `mip`: an index, or a resolution as in `8,8,40`.

        Raises
        ------
        InputError
            If there is no such scale; the message lists those there are.
        """
        listing = "; ".join(f"{i}: {_comma(s.resolution)} nm" for i, s in enumerate(self.scales))
        text = str(mip).strip()
        if re.fullmatch(r"\d+", text):
            if int(text) < len(self.scales):
                return int(text), self.scales[int(text)]
        else:
            try:
                wanted = tuple(float(part) for part in text.split(","))
            except ValueError:
                wanted = ()
            if len(wanted) != 3:
                raise InputError(f"mip {text!r}: expected a scale's index or its resolution as in 8,8,40")
            for index, scale in enumerate(self.scales):
                if np.allclose(scale.resolution, wanted, rtol=1e-9, atol=0):
                    return index, scale
        raise InputError(f"{where} has no mip {text}; its scales are {listing}")


def parse_info(document: object, where: str) -> VolumeInfo:
    """Return the volume that an `info` document describes.

    Parameters
    ----------
    document
        The parsed JSON.
    where
        The volume's cloudpath, for messages.

    Raises
    ------
    InputError
        If the document isn't a volume's `info`, or contradicts itself.
    UnsupportedError
        If it is one that can't be read here.
    """
    info = _Fields(document, f"{where}/info")
    kind = info.text("type", default="image")
    if "scales" not in info.fields:
        raise InputError(f"{where}/info: expected a volume with `scales`, found {sorted(info.fields)[:8]}")
    dtype_name = info.text("data_type").lower()
    if dtype_name not in DATA_TYPES:
        raise UnsupportedError(f"{where}/info: data_type {dtype_name!r} is not one of {', '.join(DATA_TYPES)}")
    channels = info.integer("num_channels", at_least=1)
    scales = info.fields["scales"]
    if not isinstance(scales, Sequence) or isinstance(scales, str) or not scales:
        raise InputError(f"{where}/info: expected a list of scales, found {scales!r}")
    dtype = np.dtype(dtype_name).newbyteorder("<")
    return VolumeInfo(kind, tuple(
        _parse_scale(_Fields(scale, f"{where}/info, scale {i}"), dtype, channels) for i, scale in enumerate(scales)
    ))


def _parse_scale(fields: _Fields, dtype: np.dtype[Any], channels: int) -> Scale:
    key = fields.text("key")
    if not key or not key.isprintable():
        raise InputError(f"{fields.where}: expected a path for key, found {key!r}")
    if key.startswith("/") or ":" in key or "\\" in key or ".." in key.split("/"):
        # A key is joined to the volume's path: it must not lead out of it.
        raise InputError(f"{fields.where}: key {key!r} leads out of the volume")
    resolution = fields.numbers("resolution")
    chunk_sizes = fields.fields.get("chunk_sizes")
    if not isinstance(chunk_sizes, Sequence) or isinstance(chunk_sizes, str) or not chunk_sizes:
        raise InputError(f"{fields.where}: expected a list of chunk_sizes, found {chunk_sizes!r}")
    chunk_size = _triple(chunk_sizes[0], f"{fields.where}: chunk_sizes[0]", at_least=1)
    if int(np.prod([int(c) for c in chunk_size], dtype=object)) >= 2**32:
        raise UnsupportedError(f"{fields.where}: chunks of {chunk_size} voxels; fewer than 2^32 a chunk are supported")
    encoding = fields.text("encoding", default="raw").lower()
    block_size = None
    if encoding == "compressed_segmentation":
        block_size = _triple(fields.fields.get("compressed_segmentation_block_size"),
                             f"{fields.where}: compressed_segmentation_block_size", at_least=1)
    sharding = fields.fields.get("sharding")
    return Scale(
        key=key.strip("/"),
        size=_triple(fields.fields.get("size"), f"{fields.where}: size", at_least=1),
        voxel_offset=_triple(fields.fields.get("voxel_offset", (0, 0, 0)), f"{fields.where}: voxel_offset"),
        resolution=resolution,
        chunk_size=chunk_size,
        encoding=encoding,
        dtype=dtype,
        num_channels=channels,
        block_size=block_size,
        sharding=None if sharding is None else _parse_sharding(_Fields(sharding, f"{fields.where}: sharding")),
    )


def _parse_sharding(fields: _Fields) -> Sharding:
    kind = fields.text("@type")
    if kind != "neuroglancer_uint64_sharded_v1":
        raise UnsupportedError(f"{fields.where}: @type {kind!r} is not neuroglancer_uint64_sharded_v1")
    hash_name = fields.text("hash")
    if hash_name not in ("identity", "murmurhash3_x86_128"):
        raise UnsupportedError(f"{fields.where}: hash {hash_name!r} is not identity or murmurhash3_x86_128")
    bits = [fields.integer(name, at_least=0) for name in ("preshift_bits", "minishard_bits", "shard_bits")]
    if max(bits) > 64 or bits[1] + bits[2] > 64 or bits[1] > MAX_MINISHARD_BITS:
        raise InputError(f"{fields.where}: preshift, minishard and shard bits {bits} don't fit 64-bit chunk ids")
    encodings = [fields.text(name, default="raw") for name in ("minishard_index_encoding", "data_encoding")]
    for encoding in encodings:
        if encoding not in ("raw", "gzip"):
            raise UnsupportedError(f"{fields.where}: encoding {encoding!r} is not raw or gzip")
    return Sharding(
        hash=cast(Literal["identity", "murmurhash3_x86_128"], hash_name),
        preshift_bits=bits[0], minishard_bits=bits[1], shard_bits=bits[2],
        minishard_index_encoding=cast(Compression, encodings[0]), data_encoding=cast(Compression, encodings[1]),
    )


class _Fields:
    """A JSON object whose members are asked for by name and type; complaints say where it stands."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, Mapping):
            raise InputError(f"{where}: expected a JSON object, found {type(document).__name__}")
        self.fields: Mapping[str, Any] = document
        self.where = where

    def text(self, name: str, default: str | None = None) -> str:
        value = self.fields.get(name, default)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: expected a text for {name}, found {value!r}")
        return value

    def integer(self, name: str, at_least: int) -> int:
        return _integer(self.fields.get(name), f"{self.where}: {name}", at_least)

    def numbers(self, name: str) -> tuple[float, float, float]:
        value = self.fields.get(name)
        if (not isinstance(value, Sequence) or len(value) != 3
                or not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e15 for v in value)):
            raise InputError(f"{self.where}: expected three positive numbers for {name}, found {value!r}")
        return (float(value[0]), float(value[1]), float(value[2]))


def _integer(value: object, where: str, at_least: int | None = None) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 2**53:
        raise InputError(f"{where}: expected a whole number, found {value!r}")
    if at_least is not None and value < at_least:
        raise InputError(f"{where}: expected at least {at_least}, found {value}")
    return value


def _triple(value: object, where: str, at_least: int | None = None) -> Triple:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise InputError(f"{where}: expected three whole numbers, found {value!r}")
    return (_integer(value[0], where, at_least), _integer(value[1], where, at_least),
            _integer(value[2], where, at_least))


def _comma(values: tuple[float, float, float]) -> str:
    # All digits, so that what is listed can be asked for.
    return ",".join(f"{int(v)}" if v.is_integer() else repr(v) for v in values)
