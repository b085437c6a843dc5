"""Arrays and groups of zarr as their documents describe them.

Formats: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html, …/v3/core/index.html and …/v3/codecs/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from voxelprobe.audit.array_codecs import Step
from voxelprobe.audit.arrays import StoredArray
from voxelprobe.audit.box_shards import Shards
from voxelprobe.audit.multiscales import Level, list_levels, plain_level
from voxelprobe.errors import UnsupportedError

ReadJson = Callable[[str], Any]
"""Gives a document by its name below the volume's folder, parsed; None where there is none."""

_V3_MEMBERS = {"zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value",
               "codecs", "attributes", "storage_transformers", "dimension_names"}
_V3_CODECS = ("blosc", "gzip", "zstd", "crc32c")


def read_zarr(kind: str, read_json: ReadJson) -> tuple[list[Level], Callable[[str], StoredArray]]:
    """Return the levels of a volume and what reads the array at a level's path.

    Parameters
    ----------
    kind
        `zarr2`, `zarr3`, or `zarr` for the one that is there.
    """
    if kind == "zarr":
        kind = "zarr2" if read_json("zarr.json") is None else "zarr3"
    if kind == "zarr2":
        attributes: Any = read_json(".zattrs") or {}
        names = attributes.get("_ARRAY_DIMENSIONS")

        def read_v2(path: str) -> StoredArray:
            return parse_v2(read_json(_join(path, ".zarray")), names)

        read, multiscales = read_v2, attributes.get("multiscales")
    else:
        group: Any = read_json("zarr.json")
        attributes = group.get("attributes") or {}
        multiscales = None
        if group["node_type"] == "group":
            multiscales = attributes.get("ome", attributes)["multiscales"]

        def read_v3(path: str) -> StoredArray:
            return parse_v3(read_json(_join(path, "zarr.json")))

        read = read_v3
    if multiscales is None:
        array = read("")
        return [plain_level(name_axes(array.axis_names, len(array.shape)))], read
    return list_levels(multiscales, name_axes), read


def name_axes(names: Any, rank: int) -> tuple[str, ...]:
    """Return what each axis of an array is: x, y, z, c, or nothing.

    Unnamed, the last three are z, y, x; before them is the channel, and before that one of size 1.
    """
    if not names or not any(names):
        if not 3 <= rank <= 5:
            raise UnsupportedError(f"an array of {rank} axes")
        return ("", "c", "z", "y", "x")[5 - rank :]
    known = {"x": "x", "y": "y", "z": "z", "c": "c", "channel": "c"}
    axes = tuple(known.get(name.lower(), "") if isinstance(name, str) else "" for name in names)
    if len(axes) != rank or sorted(axis for axis in axes if axis not in ("", "c")) != ["x", "y", "z"] or (
            axes.count("c") > 1):
        raise UnsupportedError(f"axes {list(names)}")
    return axes


def parse_v2(document: Mapping[str, Any], axis_names: Any) -> StoredArray:
    """Return the array that a `.zarray` describes."""
    if document["zarr_format"] != 2:
        raise UnsupportedError(f"zarr_format {document['zarr_format']}")
    stored = np.dtype(document["dtype"])
    shape = sizes(document["shape"])
    steps: list[Step] = []
    if document.get("order", "C") == "F":
        steps.append(("transpose", {"order": list(range(len(shape)))[::-1]}))
    steps.append(("bytes", {"endian": "big" if stored.str[0] == ">" else "little"}))
    codecs = [*(document.get("filters") or []), *([document["compressor"]] if document.get("compressor") else [])]
    # The filters have dtypes of their own, with a byte order: what they are given and make is bytes here.
    steps += [(str(codec["id"]), {key: value for key, value in codec.items() if key != "id"}) for codec in codecs]
    dtype = number_type(stored)
    fill = document.get("fill_value")
    return StoredArray(shape, sizes(document["chunks"]), dtype, tuple(steps),
                       None if fill is None else parse_fill(fill, dtype), "",
                       separator_of(document.get("dimension_separator", ".")), axis_names)


def parse_v3(document: Mapping[str, Any]) -> StoredArray:
    """Return the array that a `zarr.json` describes."""
    if document["node_type"] != "array" or document["zarr_format"] != 3:
        raise UnsupportedError(f"a {document['node_type']} of zarr_format {document['zarr_format']}")
    for name, value in document.items():
        ignorable = isinstance(value, dict) and value.get("must_understand") is False
        if (name not in _V3_MEMBERS and not ignorable) or (name == "storage_transformers" and value):
            raise UnsupportedError(f"{name} in zarr.json")
    dtype = number_type(np.dtype(document["data_type"]))
    grid, facts = _extension(document["chunk_grid"])
    if grid != "regular":
        raise UnsupportedError(f"chunk_grid {grid}")
    shape, chunk = sizes(document["shape"]), sizes(facts["chunk_shape"])
    codecs = [_extension(codec) for codec in document["codecs"]]
    shards = None
    if [name for name, _ in codecs] == ["sharding_indexed"]:
        facts = codecs[0][1]
        shards, chunk = _parse_shards(chunk, facts), sizes(facts["chunk_shape"])
        codecs = [_extension(codec) for codec in facts["codecs"]]
        if any(whole % inner for whole, inner in zip(shards.shape, chunk, strict=True)):
            raise UnsupportedError(f"shards of {shards.shape} values and chunks of {chunk}")
    keys, facts = _extension(document.get("chunk_key_encoding", "default"))
    if keys not in ("default", "v2"):
        raise UnsupportedError(f"chunk_key_encoding {keys}")
    separator = separator_of(facts.get("separator", "/" if keys == "default" else "."))
    steps, fill = _parse_steps(codecs, dtype, len(shape)), parse_fill(document["fill_value"], dtype)
    return StoredArray(shape, chunk, dtype, steps, fill, "c" + separator if keys == "default" else "", separator,
                       document.get("dimension_names"), shards)


def _parse_steps(codecs: list[tuple[str, Mapping[str, Any]]], dtype: np.dtype[Any], rank: int) -> tuple[Step, ...]:
    steps: list[Step] = []
    in_bytes = False
    for name, facts in codecs:
        if name == "transpose" and not in_bytes:
            if sorted(facts["order"]) != list(range(rank)):
                raise UnsupportedError(f"an order of axes {facts['order']}")
            steps.append((name, facts))
        elif name == "bytes" and not in_bytes:
            in_bytes = True
            steps.append((name, facts))
        elif name.startswith("numcodecs."):
            steps.append((name.removeprefix("numcodecs."), facts if in_bytes else {"dtype": dtype.str, **facts}))
        elif name in _V3_CODECS and in_bytes:
            steps.append((name, facts))
        else:
            raise UnsupportedError(f"codec {name} {'after' if in_bytes else 'before'} bytes")
    if not in_bytes:
        raise UnsupportedError("codecs without bytes")
    return tuple(steps)


def _parse_shards(shape: tuple[int, ...], facts: Mapping[str, Any]) -> Shards:
    index = [_extension(codec) for codec in facts["index_codecs"]]
    names = [name for name, _ in index]
    if names not in (["bytes"], ["bytes", "crc32c"]) or index[0][1].get("endian") != "little":
        raise UnsupportedError(f"index_codecs {names}")
    place = facts.get("index_location", "end")
    if place not in ("start", "end"):
        raise UnsupportedError(f"index_location {place}")
    return Shards(shape, place == "end", len(names) == 2)


def _extension(value: Any) -> tuple[str, Mapping[str, Any]]:
    """Return an extension point's name and configuration; it may be its name alone."""
    if isinstance(value, str):
        return value, {}
    return str(value["name"]), dict(value.get("configuration") or {})


def number_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of labels of an array of `dtype`: booleans are bytes."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UnsupportedError(f"values of {dtype}")
    return np.dtype("u1") if dtype.kind == "b" else dtype.newbyteorder("<")


def parse_fill(value: Any, dtype: np.dtype[Any]) -> int | float:
    """Return a fill value: a number, the name of one, or the bits of a float in hexadecimal, the highest first."""
    if dtype.kind == "f":
        if isinstance(value, str) and re.fullmatch("0x[0-9a-fA-F]+", value):
            return float(np.frombuffer(bytes.fromhex(value[2:])[::-1], dtype)[0])
        return {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value] if isinstance(value, str) else (
            float(value))
    if isinstance(value, str) or int(value) != value:
        raise UnsupportedError(f"fill_value {value!r} of {dtype.name}")
    return int(value)


def sizes(values: Any) -> tuple[int, ...]:
    """Return whole numbers of at least 1."""
    numbers = tuple(int(value) for value in values)
    if min(numbers) < 1:
        raise ValueError(f"sizes {values}")
    return numbers


def separator_of(text: Any) -> str:
    """Return what stands between the numbers of a chunk's name."""
    if text not in (".", "/"):
        raise UnsupportedError(f"separator {text!r}")
    return str(text)


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
