"""What volumes say of themselves: an `info`, and the documents of zarr, OME-Zarr and n5.

Accepted metadata have to keep what the rest of the product takes for granted: sizes as they are in the document, paths
below the volume, grids whose arithmetic is that of Python's integers, codecs that a point reader understands.
"""

from __future__ import annotations

import json
import math
import posixpath
import random
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.target import Target, attempt, is_refused, mutate_json
from voxelprobe.codecs.parts import parse_stored_chunk
from voxelprobe.sharding.boxes import BoxSharding
from voxelprobe.sharding.spec import Sharding
from voxelprobe.testing.shards import morton_code, shard_name, shard_of_chunk
from voxelprobe.testing.volumes import write_volume
from voxelprobe.volume.formats import read_volume
from voxelprobe.volume.grid import ChunkGrid, Regions
from voxelprobe.volume.scale import Scale, VolumeInfo

_WHERE = "gs://bucket/volume"


def _load(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _is_below(path: str) -> bool:
    joined = posixpath.normpath(f"/volume/{path}")
    return (joined == "/volume" or joined.startswith("/volume/")) and not path.startswith("/") and "\0" not in path


def _check_scale(scale: Scale, number: int) -> None:
    """Make sure of what every accepted scale has to be, at one of its voxels that `number` chooses."""
    assert _is_below(scale.key), scale.key
    assert all(type(n) is int and n >= 1 for n in (*scale.size, *scale.chunk_size))
    assert prod(scale.chunk_size) < 2**32
    assert scale.num_channels >= 1
    assert all(type(n) is int for n in scale.voxel_offset)
    assert all(type(r) is float and 0 < r < math.inf for r in scale.resolution)
    assert scale.fingerprint == scale.fingerprint
    assert scale.chunk_bytes >= prod(scale.chunk_size) * scale.dtype.itemsize
    if scale.codecs:
        attempt(parse_stored_chunk, scale.codecs)
    grid = attempt(ChunkGrid.of, scale)
    if is_refused(grid):
        return
    regions = attempt(Regions.of, scale)
    assert not is_refused(regions), regions
    inside = [number * 7919**axis % size for axis, size in enumerate(scale.size, 1)]
    voxel = [o + i for o, i in zip(scale.voxel_offset, inside, strict=True)]
    if max(map(abs, voxel)) >= 2**62:
        return
    place = [i // c for i, c in zip(inside, scale.chunk_size, strict=True)]
    chunks, places = grid.locate(np.array([voxel]))
    shape = grid.shape
    assert chunks.tolist() == [place[0] + shape[0] * (place[1] + shape[1] * place[2])]
    within = [i % c for i, c in zip(inside, scale.chunk_size, strict=True)]
    assert grid.voxels_of(places).tolist() == [within]
    assert grid.positions(chunks).tolist() == [place]
    assert grid.contains(np.array([voxel, [o - 1 for o in scale.voxel_offset],
                                   [o + s for o, s in zip(scale.voxel_offset, scale.size, strict=True)]])).tolist() == [
        True, False, False]
    names = scale.names.of(grid, (place[0], place[1], place[2]))
    assert all(_is_below(scale.path(name)) for name in names), names
    if isinstance(scale.sharding, Sharding):
        _check_sharding(scale.sharding, place, shape)
    elif isinstance(scale.sharding, BoxSharding):
        assert prod(scale.sharding.counts) <= 2**22
    if regions.sharding is None or prod(shape) > 1:
        assert 0 <= int(regions.numbers(chunks)[0]) or isinstance(scale.sharding, Sharding)


def _check_sharding(spec: Sharding, place: list[int], shape: tuple[int, int, int]) -> None:
    from voxelprobe.sharding.locate import locate_chunks, shard_file_name

    found = attempt(locate_chunks, np.array([place]), shape, spec)
    if is_refused(found):
        return
    code = morton_code((place[0], place[1], place[2]), shape)
    facts = {"preshift_bits": spec.preshift_bits, "minishard_bits": spec.minishard_bits, "shard_bits": spec.shard_bits,
             "hash": spec.hash}
    shard, minishard = shard_of_chunk(code, facts)
    assert (int(found.chunk_ids[0]), int(found.shards[0]), int(found.minishards[0])) == (code, shard, minishard)
    assert shard_file_name(shard, spec) == shard_name(shard, facts)


# Precomputed

def _info_seeds() -> list[bytes]:
    seeds = []
    cube = np.zeros((20, 17, 9), np.uint64)
    for options in ({}, {"mips": 2, "voxel_offset": (3, -5, 7)}, {"encoding": "compressed_segmentation"},
                    {"sharding": {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3}},
                    {"sharding": {"preshift_bits": 0, "minishard_bits": 1, "shard_bits": 5,
                                  "hash": "murmurhash3_x86_128", "data_encoding": "gzip"}}):
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(json.dumps(write_volume(Path(folder) / "v", cube, chunk_size=(8, 8, 4), **options)).encode())
    return seeds


def _check_info(data: bytes) -> bool:
    document = _load(data)
    info = attempt(read_volume, "precomputed", lambda name: document if name == "info" else None, _WHERE)
    if is_refused(info):
        return False
    assert len(info.scales) == len(document["scales"])
    for said, scale in zip(document["scales"], info.scales, strict=True):
        assert list(scale.size) == said["size"]
        assert list(scale.chunk_size) == list(said["chunk_sizes"][0])
        assert list(scale.voxel_offset) == list(said.get("voxel_offset", [0, 0, 0]))
        assert list(scale.resolution) == said["resolution"]
        assert scale.dtype == np.dtype(document["data_type"].lower())
        assert scale.encoding == said.get("encoding", "raw").lower()
        assert scale.num_channels == document["num_channels"]
        assert (scale.sharding is None) is (said.get("sharding") is None)
        _check_scale(scale, len(data))
    return True


# zarr and n5: the documents of a volume by their names, as one JSON object

_V2 = {"zarr_format": 2, "shape": [9, 17, 20], "chunks": [4, 8, 8], "dtype": "<u8", "order": "C", "fill_value": 0,
       "filters": None, "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
       "dimension_separator": "/"}
_V3 = {"zarr_format": 3, "node_type": "array", "shape": [9, 17, 20], "data_type": "uint64", "fill_value": 0,
       "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 8, 8]}},
       "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}}, "attributes": {},
       "codecs": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}},
                  {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd", "configuration": {"level": 1}}],
       "dimension_names": ["z", "y", "x"]}
_SHARDED = _V3 | {"codecs": [{"name": "sharding_indexed", "configuration": {
    "chunk_shape": [2, 4, 4], "codecs": [{"name": "bytes", "configuration": {"endian": "little"}},
                                        {"name": "blosc", "configuration": {"cname": "lz4", "shuffle": "shuffle"}}],
    "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}], "index_location": "end"}}]}


def _multiscales(version: str) -> list[Any]:
    def steps(factor: int) -> list[Any]:
        return [{"type": "scale", "scale": [1, 40, 8 * factor, 8 * factor]},
                {"type": "translation", "translation": [0, 0, 4 * (factor - 1), 4 * (factor - 1)]}]

    return [{"version": version, "axes": [{"name": "c", "type": "channel"}] + [
        {"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "datasets": [{"path": str(level), "coordinateTransformations": steps(2**level)} for level in range(2)],
        "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1, 1]}]}]


def _with_channels(array: dict[str, Any], name: str) -> dict[str, Any]:
    changed = json.loads(json.dumps(array)) | {"shape": [2, *array["shape"]]}
    if name == "v2":
        return changed | {"chunks": [1, 4, 8, 8]}
    changed["chunk_grid"]["configuration"]["chunk_shape"] = [1, 4, 8, 8]
    return changed | {"dimension_names": ["c", "z", "y", "x"], "codecs": array["codecs"][1:]}


def _zarr_seeds() -> list[bytes]:
    volumes: list[dict[str, Any]] = [
        {".zarray": _V2, ".zattrs": {}}, {".zarray": _V2 | {"filters": [{"id": "delta", "dtype": "<u8"}], "order": "F"}},
        {".zattrs": {"multiscales": _multiscales("0.4"), "image-label": {}}, "0/.zarray": _with_channels(_V2, "v2"),
         "1/.zarray": _with_channels(_V2, "v2")},
        {"zarr.json": _V3}, {"zarr.json": _SHARDED},
        {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": _multiscales("0.5")}}},
         "0/zarr.json": _with_channels(_V3, "v3"), "1/zarr.json": _with_channels(_V3, "v3")},
        {"zarr.json": _V3 | {"data_type": "float32", "fill_value": "NaN"}},
    ]
    return [json.dumps(volume).encode() for volume in volumes]


def _n5_seeds() -> list[bytes]:
    array = {"dimensions": [20, 17, 9], "blockSize": [8, 8, 4], "dataType": "uint64", "compression": {"type": "gzip", "level": 1}}
    volumes: list[dict[str, Any]] = [
        {"attributes.json": array}, {"attributes.json": array | {"compression": {"type": "blosc", "cname": "lz4"},
                                                                "pixelResolution": {"unit": "nm", "dimensions": [8, 8, 40]}}},
        {"attributes.json": {"scales": [[1, 1, 1], [2, 2, 1]], "resolution": [8.0, 8.0, 40.0], "units": ["nm", "nm", "nm"]},
         "s0/attributes.json": array, "s1/attributes.json": array | {"dimensions": [10, 9, 9]}},
        {"attributes.json": {}, "s0/attributes.json": array | {"transform": {
            "axes": ["z", "y", "x"], "scale": [40, 8, 8], "translate": [0, 16, 8], "units": ["nm", "nm", "nm"]}}},
        {"attributes.json": {"multiscales": [{"datasets": [{"path": "s0", "transform": {
            "axes": ["z", "y", "x"], "scale": [40, 8, 8], "translate": [0, 0, 0], "units": ["nm", "nm", "nm"]}}]}]},
         "s0/attributes.json": array},
        {"attributes.json": {"downsamplingFactors": [[1, 1, 1]]}, "s0/attributes.json": array | {
            "compression": {"type": "xz"}, "axes": ["x", "y", "z"]}},
    ]
    return [json.dumps(volume).encode() for volume in volumes]


def _check_documents(kind: str, sizes: Callable[[Any], tuple[Any, Any]]) -> Callable[[bytes], bool]:
    def check(data: bytes) -> bool:
        documents = _load(data)
        if not isinstance(documents, dict):
            return False
        asked: list[str] = []

        def read(name: str) -> Any:
            asked.append(name)
            return documents.get(name)

        info = attempt(read_volume, kind, read, _WHERE)
        assert all(_is_below(name) for name in asked), asked
        assert len(asked) <= 300
        if is_refused(info):
            return False
        assert isinstance(info, VolumeInfo)
        for scale in info.scales:
            _check_scale(scale, len(data))
            found = next(documents[name] for name in (f"{scale.key}/{leaf}" if scale.key else leaf for leaf in (
                "zarr.json", ".zarray", "attributes.json")) if documents.get(name) is not None)
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


def _mutate(data: bytes, rng: random.Random) -> bytes:
    return mutate_json(data, rng)


TARGETS = {
    "info": Target(_info_seeds, _check_info, _mutate, most_bytes=4000),
    "zarr_metadata": Target(_zarr_seeds, _check_documents("zarr", _zarr_sizes), _mutate, most_bytes=4000),
    "n5_metadata": Target(_n5_seeds, _check_documents("n5", lambda d: (d["dimensions"], d["blockSize"])), _mutate,
                          most_bytes=3000),
}
