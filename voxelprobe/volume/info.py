"""The `info` of a Neuroglancer Precomputed volume, checked once and frozen.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
An `info` comes from outside: whatever is used of it is checked here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.sharding.spec import Compression, Sharding
from voxelprobe.volume.fields import Fields, parse_path, parse_triple
from voxelprobe.volume.scale import ReadJson, Scale, VolumeInfo

# A shard index has 16 bytes a minishard and is read whole; published volumes have 13 bits at most.
MAX_MINISHARD_BITS = 20
# Folders that an info names beside its scales. They aren't read here; who writes one that leads out means no good.
_OTHER_PATHS = ("mesh", "mesh_dir", "skeletons", "segment_properties")
DATA_TYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32",
              "float64")


def read_info(read_json: ReadJson, where: str) -> VolumeInfo:
    """Return the volume whose documents `read_json` gives by name; None where there is none.

    Raises
    ------
    InputError, UnsupportedError
        If there is no `info`, or as `parse_info` does.
    """
    document = read_json("info")
    if document is None:
        raise InputError(f"no volume at {where}: expected a file named info there, found none")
    return parse_info(document, where)


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
    info = Fields(document, f"{where}/info")
    kind = info.text("type", default="image")
    if "scales" not in info.fields:
        raise InputError(f"{where}/info: expected a volume with `scales`, found {sorted(info.fields)[:8]}")
    for name in _OTHER_PATHS:
        if isinstance(path := info.fields.get(name), str):
            parse_path(path, f"{where}/info", name)
    dtype_name = info.text("data_type").lower()
    if dtype_name not in DATA_TYPES:
        raise UnsupportedError(f"{where}/info: data_type {dtype_name!r} is not one of {', '.join(DATA_TYPES)}")
    channels = info.integer("num_channels", at_least=1)
    scales = info.fields["scales"]
    if not isinstance(scales, Sequence) or isinstance(scales, str) or not scales:
        raise InputError(f"{where}/info: expected a list of scales, found {scales!r}")
    dtype = np.dtype(dtype_name).newbyteorder("<")
    return VolumeInfo(kind, tuple(
        _parse_scale(Fields(scale, f"{where}/info, scale {i}"), dtype, channels) for i, scale in enumerate(scales)
    ))


def _parse_scale(fields: Fields, dtype: np.dtype[Any], channels: int) -> Scale:
    key = parse_path(fields.text("key"), fields.where, "key")
    if not key:
        raise InputError(f"{fields.where}: expected a path for key, found {key!r}")
    resolution = fields.numbers("resolution")
    chunk_sizes = fields.fields.get("chunk_sizes")
    if not isinstance(chunk_sizes, Sequence) or isinstance(chunk_sizes, str) or not chunk_sizes:
        raise InputError(f"{fields.where}: expected a list of chunk_sizes, found {chunk_sizes!r}")
    chunk_size = parse_triple(chunk_sizes[0], f"{fields.where}: chunk_sizes[0]", at_least=1)
    if int(np.prod([int(c) for c in chunk_size], dtype=object)) >= 2**32:
        raise UnsupportedError(f"{fields.where}: chunks of {chunk_size} voxels; fewer than 2^32 a chunk are supported")
    encoding = fields.text("encoding", default="raw").lower()
    block_size = None
    if encoding == "compressed_segmentation":
        block_size = parse_triple(fields.fields.get("compressed_segmentation_block_size"),
                             f"{fields.where}: compressed_segmentation_block_size", at_least=1)
    sharding = fields.fields.get("sharding")
    return Scale(
        key=key,
        size=parse_triple(fields.fields.get("size"), f"{fields.where}: size", at_least=1),
        voxel_offset=parse_triple(fields.fields.get("voxel_offset", (0, 0, 0)), f"{fields.where}: voxel_offset"),
        resolution=resolution,
        chunk_size=chunk_size,
        encoding=encoding,
        dtype=dtype,
        num_channels=channels,
        block_size=block_size,
        sharding=None if sharding is None else _parse_sharding(Fields(sharding, f"{fields.where}: sharding")),
    )


def _parse_sharding(fields: Fields) -> Sharding:
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
