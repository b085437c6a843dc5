"""Zarr v3 volumes: an array, or a group that is an OME-Zarr multiscale.

Format: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html. Of `sharding_indexed` one level is read: it is
the array's only codec, and its chunks have no shards inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.volume.arrays import DTYPES, ShardedChunks, StoredArray, parse_fill
from voxelprobe.volume.fields import Fields, parse_list
from voxelprobe.volume.scale import ReadJson, VolumeInfo
from voxelprobe.volume.zarr2 import plain_scale, read_multiscale
from voxelprobe.volume.zarr_codecs import Codec, named, parse_v3_codec, parse_v3_filter

_MEMBERS = {"zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value",
            "codecs", "attributes", "storage_transformers", "dimension_names"}


def read_info(read_json: ReadJson, where: str) -> VolumeInfo:
    """Return the volume whose documents `read_json` gives by name; None where there is none.

    Raises
    ------
    InputError, UnsupportedError
        If there is no array and no multiscale, or one that contradicts itself or can't be read here.
    """
    document = read_json("zarr.json")
    if document is None:
        raise InputError(f"no volume at {where}: expected a file named zarr.json there, found none")
    node = Fields(document, f"{where}/zarr.json")
    if (kind := node.text("node_type")) not in ("array", "group"):
        raise InputError(f"{node.where}: expected node_type array or group, found {kind!r}")
    if kind == "array":
        return VolumeInfo("image", (plain_scale(parse_array(document, node.where)),))
    attributes = Fields(node.fields.get("attributes") or {}, f"{node.where}: attributes")
    # Some writers keep the older place in a group of v3.
    ome = attributes.child("ome") if "ome" in attributes.fields else attributes
    if "multiscales" not in ome.fields:
        raise InputError(f"{node.where}: expected an array, or a group with multiscales; found a group with attributes "
                         f"{sorted(attributes.fields)[:8]}")

    def read_level(path: str) -> StoredArray:
        name = f"{path}/zarr.json" if path else "zarr.json"
        level = read_json(name)
        if level is None:
            raise InputError(f"{where}: expected an array at {path!r}, found no {name}")
        return parse_array(level, f"{where}/{name}")

    scales = read_multiscale(ome.fields["multiscales"], f"{ome.where}: multiscales", read_level)
    return VolumeInfo("segmentation" if "image-label" in ome.fields else "image", scales)


def parse_array(document: object, where: str) -> StoredArray:
    """Return the array that a `zarr.json` document describes.

    Raises
    ------
    InputError, UnsupportedError
        If it contradicts the format, or has a data type, a codec or anything else that can't be read here.
    """
    fields = Fields(document, where)
    if (kind := fields.text("node_type")) != "array":
        raise InputError(f"{where}: expected node_type array, found {kind!r}")
    if (version := fields.integer("zarr_format", at_least=0)) != 3:
        raise UnsupportedError(f"{where}: expected zarr_format 3, found {version}")
    for name, value in fields.fields.items():
        if name not in _MEMBERS and not (isinstance(value, dict) and value.get("must_understand") is False):
            raise UnsupportedError(f"{where}: {name!r} is not understood here")
    if fields.fields.get("storage_transformers"):
        raise UnsupportedError(f"{where}: storage_transformers can't be read")
    data_type = fields.fields.get("data_type")
    if not isinstance(data_type, str) or data_type not in DTYPES:
        raise UnsupportedError(f"{where}: data_type {data_type!r} is not one of {', '.join(DTYPES)}")
    native = np.dtype(DTYPES[data_type])
    shape = fields.sizes("shape")
    grid, grid_facts = _extension(fields.fields.get("chunk_grid"), f"{where}: chunk_grid")
    if grid != "regular":
        raise UnsupportedError(f"{where}: chunk_grid {grid!r} is not regular")
    chunk = Fields(grid_facts, f"{where}: chunk_grid").sizes("chunk_shape", len(shape))
    chain = _parse_chain(fields.items("codecs"), f"{where}: codecs", chunk, native)
    prefix, separator = _parse_keys(fields.fields.get("chunk_key_encoding"), f"{where}: chunk_key_encoding")
    names = fields.fields.get("dimension_names")
    fill = parse_fill(fields.fields.get("fill_value"), native, where)
    return StoredArray(
        where, "zarr", shape, chain.chunk, chain.dtype, chain.order, fill, chain.codecs, prefix, separator,
        None if names is None else parse_list(names, f"{where}: dimension_names"), chain.sharded,
    )


class _Chain:
    """What a list of codecs comes to."""

    def __init__(self, chunk: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.chunk = chunk
        self.dtype = dtype
        self.order = tuple(range(len(chunk)))
        self.codecs: list[Codec] = []
        self.sharded: ShardedChunks | None = None


def _parse_chain(steps: list[Any], where: str, chunk: tuple[int, ...], dtype: np.dtype[Any]) -> _Chain:
    """Return what codecs come to: transpositions, then bytes or shards, then those from bytes to bytes."""
    chain = _Chain(chunk, dtype)
    in_bytes, filters = False, list[str]()
    for index, step in enumerate(steps):
        at = f"{where}[{index}]"
        name, facts = _extension(step, at)
        if not in_bytes and name == "transpose":
            if "numcodecs.delta" in filters:  # its differences are along the order before
                raise UnsupportedError(f"{at}: transpose after numcodecs.delta can't be read; before it, it can")
            chain.order = _transpose(chain.order, facts, at)
        elif not in_bytes and name == "bytes":
            in_bytes = True
            chain.dtype = _with_byte_order(dtype, facts.get("endian"), at)
        elif not in_bytes and name == "sharding_indexed":
            if len(steps) != 1:
                others = [_extension(other, at)[0] for other in steps if other is not step]
                raise UnsupportedError(f"{at}: sharding_indexed beside {', '.join(others)} can't be read; expected it "
                                       "alone")
            return _parse_sharding(Fields(facts, at), chunk, dtype)
        elif in_bytes:
            chain.codecs.append(parse_v3_codec(name, facts, at))
        else:
            filters.append(name)
            chain.codecs.append(parse_v3_filter(name, facts, dtype, at))
    if filters and chain.dtype.str.startswith(">"):
        raise UnsupportedError(f"{where}: {', '.join(filters)} of big-endian values can't be read")
    if not in_bytes:
        raise InputError(f"{where}: expected a codec named bytes or sharding_indexed, found none")
    return chain


def _parse_sharding(fields: Fields, shard: tuple[int, ...], dtype: np.dtype[Any]) -> _Chain:
    inner = fields.sizes("chunk_shape", len(shard))
    chain = _parse_chain(fields.items("codecs"), f"{fields.where}: codecs", inner, dtype)
    if chain.sharded is not None:
        raise UnsupportedError(f"{fields.where}: shards in shards can't be read")
    index = [_extension(step, f"{fields.where}: index_codecs") for step in fields.items("index_codecs")]
    if [name for name, _ in index] not in (["bytes"], ["bytes", "crc32c"]) or index[0][1].get("endian") != "little":
        raise UnsupportedError(f"{fields.where}: index_codecs {[name for name, _ in index]} can't be read; expected "
                               "bytes, little-endian, and crc32c")
    place = fields.text("index_location", default="end")
    if place not in ("start", "end"):
        raise InputError(f"{fields.where}: expected start or end for index_location, found {place!r}")
    chain.sharded = ShardedChunks(shard, place == "end", len(index) == 2)
    return chain


def _transpose(order: tuple[int, ...], facts: dict[str, Any], where: str) -> tuple[int, ...]:
    permutation = facts.get("order")
    if (not isinstance(permutation, list) or not all(type(axis) is int for axis in permutation)
            or sorted(permutation) != list(range(len(order)))):
        raise InputError(f"{where}: expected an order of {len(order)} axes, found {permutation!r}")
    return tuple(order[axis] for axis in permutation)


def _with_byte_order(dtype: np.dtype[Any], endian: object, where: str) -> np.dtype[Any]:
    if endian not in ("little", "big") and not (endian is None and dtype.itemsize == 1):
        raise InputError(f"{where}: expected little or big for endian, found {endian!r}")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _parse_keys(document: object, where: str) -> tuple[str, str]:
    """Return the prefix and the separator of chunks' names."""
    name, facts = ("default", {}) if document is None else _extension(document, where)
    if name not in ("default", "v2"):
        raise UnsupportedError(f"{where}: {name!r} is not default or v2")
    separator = facts.get("separator", "/" if name == "default" else ".")
    if separator not in ("/", "."):
        raise InputError(f"{where}: expected / or . for separator, found {separator!r}")
    return ("c" + separator if name == "default" else ""), separator


def _extension(document: object, where: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the configuration of an extension point, which may be written as its name alone."""
    return named(Fields({"name": document} if isinstance(document, str) else document, where))
