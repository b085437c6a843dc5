"""What the documents of zarr arrays say, and those that are refused."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest

from voxelprobe import InputError, UnsupportedError
from voxelprobe.codecs.compression import make_layers
from voxelprobe.volume.formats import read_volume

V2 = {"zarr_format": 2, "shape": [30, 40, 50], "chunks": [8, 8, 16], "dtype": "<u4", "order": "C", "filters": None,
      "compressor": {"id": "zstd", "level": 1}, "fill_value": 0}
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
V3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [30, 40, 50], "data_type": "uint32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 8, 16]}},
    "chunk_key_encoding": {"name": "default"}, "fill_value": 0, "codecs": [BYTES], "attributes": {},
}


def sharding(**more: Any) -> dict[str, Any]:
    return {"name": "sharding_indexed", "configuration": {
        "chunk_shape": [4, 4, 4], "codecs": [BYTES], "index_codecs": [BYTES, {"name": "crc32c"}]} | more}


def read(documents: dict[str, Any], kind: str = "zarr") -> Any:
    return read_volume(kind, lambda name: deepcopy(documents.get(name)), "mem://v")


def read_v2(attributes: Any = None, **changed: Any) -> Any:
    (scale,) = read({".zarray": V2 | changed} | ({} if attributes is None else {".zattrs": attributes})).scales
    return scale


def read_v3(**changed: Any) -> Any:
    (scale,) = read({"zarr.json": V3 | changed}).scales
    return scale


def test_a_plain_array_is_one_scale() -> None:
    """An array without a multiscale has voxels of 1 nm, begins at 0, and its last three axes are z, y, x."""
    for scale in (read_v2(), read_v3()):
        assert (scale.key, scale.encoding, scale.size, scale.chunk_size) == ("", "zarr", (50, 40, 30), (16, 8, 8))
        assert (scale.resolution, scale.voxel_offset) == ((1.0, 1.0, 1.0), (0, 0, 0))
        assert (scale.num_channels, scale.num_parts, scale.fill_value, scale.sharding) == (1, 1, 0, None)
    assert read_v2().names.of(None, (3, 2, 1)) == ("1.2.3",)
    assert read_v3().names.of(None, (3, 2, 1)) == ("c/1/2/3",)


@pytest.mark.parametrize(("encoding", "name"), [
    ({"name": "default", "configuration": {"separator": "."}}, "c.1.2.3"), ("default", "c/1/2/3"),
    ({"name": "v2"}, "1.2.3"), ("v2", "1.2.3"), ({"name": "v2", "configuration": {"separator": "/"}}, "1/2/3"),
])
def test_names_of_version_3(encoding: Any, name: str) -> None:
    """Chunks of v3 are named by its encoding of keys, which may be its name alone."""
    assert read_v3(chunk_key_encoding=encoding).names.of(None, (3, 2, 1)) == (name,)


def test_what_the_reader_is_told() -> None:
    """`codecs` is JSON with sorted keys: axes, order, dtype, fill value, parts and the codecs in order of writing."""
    scale = read_v2(shape=[3, 30, 40, 50], chunks=[2, 8, 8, 16], dtype=">f4", order="F", fill_value="NaN",
                    filters=[{"id": "shuffle", "elementsize": 4}])
    facts = json.loads(scale.codecs)
    assert list(facts) == sorted(facts)
    assert facts == {
        "axes": [3, 2, 1, 0], "chunk": [2, 8, 8, 16], "order": [3, 2, 1, 0], "dtype": ">f4", "fill_value": "NaN",
        "parts": 2, "codecs": [{"id": "shuffle", "elementsize": 4}, {"id": "zstd", "level": 1}],
    }
    assert (scale.dtype.str, scale.num_channels, scale.num_parts) == ("<f4", 3, 2)
    assert scale.chunk_bytes == 2 * 2 * 8 * 8 * 16 * 4
    steps = [{"name": "transpose", "configuration": {"order": [2, 0, 1]}},
             {"name": "bytes", "configuration": {"endian": "big"}},
             {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "typesize": 4,
                                                 "blocksize": 0}}, {"name": "crc32c"}, "numcodecs.zlib"]
    facts = json.loads(read_v3(codecs=steps, fill_value=2**32 - 1).codecs)
    assert (facts["order"], facts["dtype"], facts["fill_value"]) == ([2, 0, 1], ">u4", 2**32 - 1)
    assert [codec["id"] for codec in facts["codecs"]] == ["blosc", "crc32c", "zlib"]
    assert facts["codecs"][0]["shuffle"] == 2
    make_layers(facts["codecs"])


@pytest.mark.parametrize(("data_type", "value", "expected"), [
    ("uint64", 2**64 - 1, 2**64 - 1), ("int64", -(2**63), -(2**63)), ("uint8", 3.0, 3), ("bool", True, 1),
    ("float32", "NaN", math.nan), ("float64", "-Infinity", -math.inf), ("float32", "0x7fc00000", math.nan),
    ("float32", "0xbf800000", -1.0), ("float64", "0x3ff8000000000000", 1.5), ("float16", "0x3c00", 1.0),
    ("float64", 7, 7.0),
])
def test_fill_values_to_the_last_bit(data_type: str, value: Any, expected: Any) -> None:
    """A fill value is a number, the name of one, or a float's bits; whole numbers never go through floats."""
    found = read_v3(data_type=data_type, fill_value=value).fill_value
    assert found == expected or (math.isnan(found) and math.isnan(expected))
    assert type(found) is type(expected)


@pytest.mark.parametrize(("data_type", "value"), [
    ("uint8", 256), ("uint8", -1), ("uint64", 2.0**64), ("uint64", "7"), ("uint64", 0.5), ("uint64", None),
    ("uint64", 1e300), ("float32", "nan"), ("float32", "0x7fc0"), ("float32", [1]), ("float64", 10**400), ("uint8", {}),
])
def test_fill_values_that_the_dtype_does_not_have(data_type: str, value: Any) -> None:
    """What isn't a value of the array's type is refused, not rounded."""
    with pytest.raises(InputError, match="expected a fill_value of"):
        read_v3(data_type=data_type, fill_value=value)


HUGE = [2**40] * 3


@pytest.mark.parametrize(("changed", "error", "said"), [
    ({"zarr_format": 3}, UnsupportedError, "expected zarr_format 2, found 3"),
    ({"shape": [30, 40]}, InputError, "expected 2 whole numbers, found 3"),
    ({"shape": [30, 40], "chunks": [8, 8]}, UnsupportedError, "an array of 2 axes; expected x, y and z"),
    ({"shape": [1] * 6, "chunks": [1] * 6}, UnsupportedError, "an array of 6 axes"),
    ({"shape": [30, 40, -1]}, InputError, "expected at least 1, found -1"),
    ({"shape": [30, 40, 0]}, InputError, "expected at least 1, found 0"),
    ({"shape": "30"}, InputError, "expected a list, found '30'"),
    ({"shape": [30, 40, True]}, InputError, "expected a whole number, found True"),
    ({"shape": [30, 40, 2**60]}, InputError, "expected a whole number"),
    ({"chunks": [8, 8, 0]}, InputError, "expected at least 1, found 0"),
    ({"chunks": [8, 8, None]}, InputError, "expected a whole number, found None"),
    ({"chunks": HUGE, "shape": HUGE}, UnsupportedError, "fewer than 2^32 values a chunk"),
    ({"dtype": "<U4"}, UnsupportedError, "dtype '<U4' can't be read"),
    ({"dtype": "|O"}, UnsupportedError, "dtype '|O' can't be read"),
    ({"dtype": [["a", "<u4"]]}, UnsupportedError, "can't be read"),
    ({"dtype": "<c8"}, UnsupportedError, "can't be read"),
    ({"order": "K"}, InputError, "expected C or F for order"),
    ({"dimension_separator": "-"}, InputError, "expected . or / for dimension_separator"),
    ({"compressor": {"id": "pickle"}}, UnsupportedError, "compressor: codec 'pickle' can't be read"),
    ({"compressor": "zlib"}, InputError, "compressor: expected a JSON object, found str"),
    ({"compressor": {"level": 1}}, InputError, "expected a text for id"),
    ({"filters": [{"id": "vlen-utf8"}]}, UnsupportedError, r"filters[0]: codec 'vlen-utf8' can't be read"),
    ({"filters": {"id": "delta"}}, InputError, "expected a list"),
    ({"filters": [{"id": "delta", "dtype": "|O"}]}, UnsupportedError, "can't be read"),
    ({"filters": [{"id": "delta", "dtype": "\ud800"}]}, UnsupportedError, "can't be read"),
    ({"fill_value": -1}, InputError, "expected a fill_value of uint32, found -1"),
    ({"fill_value": "AAAA"}, InputError, "expected a fill_value of uint32"),
    ({"shape": [2**17, 30, 40, 50], "chunks": [1, 8, 8, 8]}, UnsupportedError, "131072 channels; at most 65536"),
    ({"shape": [2, 2, 30, 40, 50], "chunks": [1, 1, 8, 8, 8]}, UnsupportedError, "an axis of 2 that is neither"),
])
def test_arrays_of_version_2_that_are_refused(changed: dict[str, Any], error: type[Exception], said: str) -> None:
    """A `.zarray` that can't be read says where and why."""
    with pytest.raises(error) as caught:
        read_v2(**changed)
    assert said in str(caught.value)
    assert "mem://v/.zarray" in str(caught.value)


def in_order(*order: Any) -> list[Any]:
    return [{"name": "transpose", "configuration": {"order": list(order)}}, BYTES]


@pytest.mark.parametrize(("changed", "error", "said"), [
    ({"zarr_format": 4}, UnsupportedError, "expected zarr_format 3, found 4"),
    ({"node_type": "table"}, InputError, "expected node_type array or group, found 'table'"),
    ({"shape": [30, 40]}, InputError, "expected 2 whole numbers"),
    ({"data_type": "string"}, UnsupportedError, "data_type 'string' is not one of bool, uint8"),
    ({"data_type": {"name": "numpy.datetime64"}}, UnsupportedError, "is not one of"),
    ({"data_type": "complex64"}, UnsupportedError, "is not one of"),
    ({"chunk_grid": {"name": "rectilinear"}}, UnsupportedError, "chunk_grid 'rectilinear' is not regular"),
    ({"chunk_grid": None}, InputError, "expected a JSON object"),
    ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 8, -8]}}}, InputError, "at least 1"),
    ({"chunk_key_encoding": {"name": "fanout"}}, UnsupportedError, "'fanout' is not default or v2"),
    ({"chunk_key_encoding": {"name": "v2", "configuration": {"separator": ".."}}}, InputError, "expected / or ."),
    ({"codecs": []}, InputError, "expected a codec named bytes or sharding_indexed, found none"),
    ({"codecs": None}, InputError, "expected a list"),
    ({"codecs": [{"name": "vlen-bytes"}]}, UnsupportedError, "codec 'vlen-bytes' can't be read"),
    ({"codecs": [BYTES, {"name": "pcodec"}]}, UnsupportedError, "codec 'pcodec' can't be read"),
    ({"codecs": [BYTES, {"name": "numcodecs.pickle"}]}, UnsupportedError, "codec 'pickle' can't be read"),
    ({"codecs": [{"name": "bytes"}]}, InputError, "expected little or big for endian, found None"),
    ({"codecs": [BYTES, {"name": "blosc", "configuration": {"shuffle": 1}}]}, InputError, "expected noshuffle"),
    ({"codecs": in_order(0, 1)}, InputError, "expected an order of 3 axes, found [0, 1]"),
    ({"codecs": in_order(0, 1, 1)}, InputError, "expected an order of 3 axes"),
    ({"codecs": in_order(0, 1, [2])}, InputError, "expected an order of 3 axes"),
    ({"codecs": [{"name": "numcodecs.delta"}, {"name": "bytes", "configuration": {"endian": "big"}}]},
     UnsupportedError, "numcodecs.delta of big-endian values can't be read"),
    ({"codecs": [{"name": "numcodecs.delta"}, *in_order(2, 1, 0)]}, UnsupportedError,
     "transpose after numcodecs.delta can't be read"),
    ({"storage_transformers": [{"name": "x"}]}, UnsupportedError, "storage_transformers can't be read"),
    ({"tiles": 3}, UnsupportedError, "'tiles' is not understood here"),
    ({"dimension_names": ["z", "y"]}, InputError, "expected the names of 3 axes"),
    ({"dimension_names": ["row", "col", "plane"]}, UnsupportedError, "axes ['row', 'col', 'plane']; expected x, y"),
    ({"dimension_names": "zyx"}, InputError, "expected a list"),
    ({"codecs": [sharding(), {"name": "gzip"}]}, UnsupportedError, "sharding_indexed beside gzip can't be read"),
    ({"codecs": [in_order(2, 1, 0)[0], sharding()]}, UnsupportedError, "sharding_indexed beside transpose"),
    ({"codecs": [sharding(codecs=[sharding()])]}, UnsupportedError, "shards in shards can't be read"),
    ({"codecs": [sharding(chunk_shape=[4, 4, 3])]}, InputError, "expected shards of whole chunks"),
    ({"codecs": [sharding(chunk_shape=[16, 8, 8])]}, InputError, "expected shards of whole chunks"),
    ({"codecs": [sharding(chunk_shape=[4, 4])]}, InputError, "expected 3 whole numbers, found 2"),
    ({"codecs": [sharding(index_codecs=[BYTES, {"name": "gzip"}])]}, UnsupportedError,
     "index_codecs ['bytes', 'gzip'] can't be read"),
    ({"codecs": [sharding(index_codecs=[{"name": "bytes", "configuration": {"endian": "big"}}])]}, UnsupportedError,
     "expected bytes, little-endian, and crc32c"),
    ({"codecs": [sharding(index_location="middle")]}, InputError, "expected start or end for index_location"),
    ({"codecs": [sharding(chunk_shape=[1, 1, 1])], "chunk_grid": {"name": "regular", "configuration": {
        "chunk_shape": [1024, 1024, 1024]}}}, UnsupportedError, "shards of 1073741824 chunks; at most 4194304"),
])
def test_arrays_of_version_3_that_are_refused(changed: dict[str, Any], error: type[Exception], said: str) -> None:
    """A `zarr.json` that can't be read says where and why."""
    with pytest.raises(error) as caught:
        read_v3(**changed)
    assert said in str(caught.value)
    assert "mem://v/zarr.json" in str(caught.value)


def test_what_need_not_be_understood_is_passed_over() -> None:
    """An extension that a reader may ignore is ignored; null or empty names of axes are none."""
    scale = read_v3(extra={"must_understand": False}, dimension_names=[None, None, None])
    assert scale.size == (50, 40, 30)


@pytest.mark.parametrize(("documents", "kind", "said"), [
    ({}, "zarr", "no volume at mem://v: expected a file named zarr.json, .zattrs or .zarray there, found none"),
    ({}, "zarr2", "no volume at mem://v: expected a file named .zarray, or multiscales in .zattrs; found neither"),
    ({"zarr.json": V3}, "zarr2", "no volume at mem://v: expected a file named .zarray"),
    ({".zarray": V2}, "zarr3", "no volume at mem://v: expected a file named zarr.json there, found none"),
    ({".zattrs": {"a": 1}}, "zarr", "no volume at mem://v: expected a file named .zarray"),
    ({".zattrs": [1]}, "zarr", "mem://v/.zattrs: expected a JSON object, found list"),
    ({"zarr.json": {"node_type": "group", "zarr_format": 3, "attributes": {"a": 1}}}, "zarr",
     "expected an array, or a group with multiscales; found a group with attributes ['a']"),
    ({"zarr.json": {"node_type": "group", "zarr_format": 3}}, "zarr", "found a group with attributes []"),
    ({"zarr.json": []}, "zarr", "mem://v/zarr.json: expected a JSON object, found list"),
])
def test_what_is_no_volume(documents: dict[str, Any], kind: str, said: str) -> None:
    """Where there is no volume of the kind, the message says what was looked for."""
    with pytest.raises(InputError) as caught:
        read(documents, kind)
    assert said in str(caught.value)


def test_whatever_changes_reading_changes_the_fingerprint() -> None:
    """Scales that are read differently don't share a cache."""
    scales = [read_v2(), read_v3(), read_v2(fill_value=1), read_v2(order="F"), read_v2(dtype=">u4"),
              read_v2(dimension_separator="/"), read_v2(compressor=None), read_v3(codecs=[sharding()]),
              read_v3(codecs=[sharding(index_location="start")])]
    assert len({scale.fingerprint for scale in scales}) == len(scales)
    assert read_v2().fingerprint == read_v2().fingerprint


@pytest.mark.parametrize("dtype", ["|b1", "|u1", "<i2", ">f2", ">f8"])
def test_the_dtype_is_little_endian(dtype: str) -> None:
    """Labels have the kind and size of the stored values, little-endian; booleans are uint8."""
    scale = read_v2(dtype=dtype)
    assert scale.dtype == np.dtype(dtype.replace("b", "u")).newbyteorder("<")
