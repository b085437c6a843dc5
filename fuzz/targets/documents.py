"""The documents of zarr, OME-Zarr and n5 volumes; what accepted ones have to keep is in `metadata`."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from typing import Any

from fuzz.target import Target, attempt, is_refused, mutate_json
from fuzz.targets.metadata import WHERE, check_scale, is_below, load
from voxelprobe.volume.formats import read_volume
from voxelprobe.volume.scale import VolumeInfo

# zarr and n5: the documents of a volume by their names, as one JSON object

_V2 = {
    "zarr_format": 2, "shape": [9, 17, 20], "chunks": [4, 8, 8], "dtype": "<u8", "order": "C", "fill_value": 0,
    "filters": None, "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
    "dimension_separator": "/",
}
_V3 = {
    "zarr_format": 3, "node_type": "array", "shape": [9, 17, 20], "data_type": "uint64", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 8, 8]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "attributes": {},
    "codecs": [
        {"name": "transpose", "configuration": {"order": [2, 0, 1]}},
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1}},
    ],
    "dimension_names": ["z", "y", "x"],
}
_SHARDED = _V3 | {
    "codecs": [{
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [2, 4, 4],
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "blosc", "configuration": {"cname": "lz4", "shuffle": "shuffle"}},
            ],
            "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "index_location": "end",
        },
    }]
}


def _multiscales(version: str) -> list[Any]:
    def steps(factor: int) -> list[Any]:
        return [
            {"type": "scale", "scale": [1, 40, 8 * factor, 8 * factor]},
            {"type": "translation", "translation": [0, 0, 4 * (factor - 1), 4 * (factor - 1)]},
        ]

    return [{
        "version": version,
        "axes": [{"name": "c", "type": "channel"}]
        + [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "datasets": [{"path": str(level), "coordinateTransformations": steps(2**level)} for level in range(2)],
        "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1, 1]}],
    }]


def _with_channels(array: dict[str, Any], name: str) -> dict[str, Any]:
    changed = json.loads(json.dumps(array)) | {"shape": [2, *array["shape"]]}
    if name == "v2":
        return changed | {"chunks": [1, 4, 8, 8]}
    changed["chunk_grid"]["configuration"]["chunk_shape"] = [1, 4, 8, 8]
    return changed | {"dimension_names": ["c", "z", "y", "x"], "codecs": array["codecs"][1:]}


def _zarr_seeds() -> list[bytes]:
    volumes: list[dict[str, Any]] = [
        {".zarray": _V2, ".zattrs": {}},
        {".zarray": _V2 | {"filters": [{"id": "delta", "dtype": "<u8"}], "order": "F"}},
        {
            ".zattrs": {"multiscales": _multiscales("0.4"), "image-label": {}},
            "0/.zarray": _with_channels(_V2, "v2"),
            "1/.zarray": _with_channels(_V2, "v2"),
        },
        {"zarr.json": _V3},
        {"zarr.json": _SHARDED},
        {
            "zarr.json": {"zarr_format": 3, "node_type": "group",
                          "attributes": {"ome": {"multiscales": _multiscales("0.5")}}},
            "0/zarr.json": _with_channels(_V3, "v3"),
            "1/zarr.json": _with_channels(_V3, "v3"),
        },
        {"zarr.json": _V3 | {"data_type": "float32", "fill_value": "NaN"}},
    ]
    return [json.dumps(volume).encode() for volume in volumes]


def _n5_seeds() -> list[bytes]:
    array = {
        "dimensions": [20, 17, 9], "blockSize": [8, 8, 4], "dataType": "uint64",
        "compression": {"type": "gzip", "level": 1},
    }
    volumes: list[dict[str, Any]] = [
        {"attributes.json": array},
        {"attributes.json": array | {"compression": {"type": "blosc", "cname": "lz4"},
                                     "pixelResolution": {"unit": "nm", "dimensions": [8, 8, 40]}}},
        {
            "attributes.json": {"scales": [[1, 1, 1], [2, 2, 1]], "resolution": [8.0, 8.0, 40.0],
                                "units": ["nm", "nm", "nm"]},
            "s0/attributes.json": array,
            "s1/attributes.json": array | {"dimensions": [10, 9, 9]},
        },
        {
            "attributes.json": {},
            "s0/attributes.json": array | {"transform": {
                "axes": ["z", "y", "x"], "scale": [40, 8, 8], "translate": [0, 16, 8], "units": ["nm", "nm", "nm"],
            }},
        },
        {
            "attributes.json": {"multiscales": [{"datasets": [{"path": "s0", "transform": {
                "axes": ["z", "y", "x"], "scale": [40, 8, 8], "translate": [0, 0, 0], "units": ["nm", "nm", "nm"],
            }}]}]},
            "s0/attributes.json": array,
        },
        {
            "attributes.json": {"downsamplingFactors": [[1, 1, 1]]},
            "s0/attributes.json": array | {"compression": {"type": "xz"}, "axes": ["x", "y", "z"]},
        },
    ]
    return [json.dumps(volume).encode() for volume in volumes]


def _check_documents(kind: str, sizes: Callable[[Any], tuple[Any, Any]]) -> Callable[[bytes], bool]:
    def check(data: bytes) -> bool:
        documents = load(data)
        if not isinstance(documents, dict):
            return False
        asked: list[str] = []

        def read(name: str) -> Any:
            asked.append(name)
            return documents.get(name)

        info = attempt(read_volume, kind, read, WHERE)
        assert all(is_below(name) for name in asked), asked
        assert len(asked) <= 300
        if is_refused(info):
            return False
        assert isinstance(info, VolumeInfo)
        for scale in info.scales:
            check_scale(scale, len(data))
            found = next(
                documents[name]
                for name in (
                    f"{scale.key}/{leaf}" if scale.key else leaf for leaf in ("zarr.json", ".zarray", "attributes.json")
                )
                if documents.get(name) is not None
            )
            shape, chunk = (tuple(map(int, numbers)) for numbers in sizes(found))
            # The same numbers, whatever the axes are called; what isn't x, y, z or a channel is 1.
            assert prod(shape) == prod(scale.size) * scale.num_channels, (shape, scale)
            assert set(scale.size) <= set(shape)
            assert set(scale.chunk_size) <= set(chunk)
            assert scale.num_parts >= 1
        return True

    return check


def _zarr_sizes(document: Any) -> tuple[Any, Any]:
    if "chunk_grid" not in document or document.get("zarr_format") == 2:
        return document["shape"], document["chunks"]
    for codec in document["codecs"]:
        if isinstance(codec, dict) and codec["name"] == "sharding_indexed":
            return document["shape"], codec["configuration"]["chunk_shape"]
    return document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]


TARGETS = {
    "zarr_metadata": Target(_zarr_seeds, _check_documents("zarr", _zarr_sizes), mutate_json, most_bytes=4000),
    "n5_metadata": Target(
        _n5_seeds, _check_documents("n5", lambda d: (d["dimensions"], d["blockSize"])), mutate_json, most_bytes=3000
    ),
}
