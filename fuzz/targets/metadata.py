"""What volumes say of themselves: an `info`, and what every accepted scale has to be.

Accepted metadata have to keep what the rest of the product takes for granted: sizes as they are in the document, paths
below the volume, grids whose arithmetic is that of Python's integers, codecs that a point reader understands.
"""

from __future__ import annotations

import json
import math
import posixpath
import tempfile
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
from voxelprobe.volume.scale import Scale

WHERE = "gs://bucket/volume"


def load(data: bytes) -> Any:
    """Return a JSON document, None if it isn't one."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def is_below(path: str) -> bool:
    """Return whether a path stays inside of the folder that it is joined to."""
    joined = posixpath.normpath(f"/volume/{path}")
    return (joined == "/volume" or joined.startswith("/volume/")) and not path.startswith("/") and "\0" not in path


def check_scale(scale: Scale, number: int) -> None:
    """Make sure of what every accepted scale has to be, at one of its voxels that `number` chooses."""
    assert is_below(scale.key), scale.key
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
    assert grid.contains(np.array([
        voxel, [o - 1 for o in scale.voxel_offset],
        [o + s for o, s in zip(scale.voxel_offset, scale.size, strict=True)],
    ])).tolist() == [True, False, False]
    names = scale.names.of(grid, (place[0], place[1], place[2]))
    assert all(is_below(scale.path(name)) for name in names), names
    if isinstance(scale.sharding, Sharding):
        _check_sharding(scale.sharding, place, shape)
    elif isinstance(scale.sharding, BoxSharding):
        assert prod(scale.sharding.counts) <= 2**22
    if regions.sharding is None or prod(shape) > 1:
        assert int(regions.numbers(chunks)[0]) >= 0 or isinstance(scale.sharding, Sharding)


def _check_sharding(spec: Sharding, place: list[int], shape: tuple[int, int, int]) -> None:
    from voxelprobe.sharding.locate import locate_chunks, shard_file_name

    found = attempt(locate_chunks, np.array([place]), shape, spec)
    if is_refused(found):
        return
    code = morton_code((place[0], place[1], place[2]), shape)
    facts = {
        "preshift_bits": spec.preshift_bits, "minishard_bits": spec.minishard_bits, "shard_bits": spec.shard_bits,
        "hash": spec.hash,
    }
    shard, minishard = shard_of_chunk(code, facts)
    assert (int(found.chunk_ids[0]), int(found.shards[0]), int(found.minishards[0])) == (code, shard, minishard)
    assert shard_file_name(shard, spec) == shard_name(shard, facts)


# Precomputed


def _info_seeds() -> list[bytes]:
    seeds = []
    cube = np.zeros((20, 17, 9), np.uint64)
    for options in (
        {},
        {"mips": 2, "voxel_offset": (3, -5, 7)},
        {"encoding": "compressed_segmentation"},
        {"sharding": {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3}},
        {"sharding": {"preshift_bits": 0, "minishard_bits": 1, "shard_bits": 5, "hash": "murmurhash3_x86_128",
                      "data_encoding": "gzip"}},
    ):
        with tempfile.TemporaryDirectory() as folder:
            seeds.append(json.dumps(write_volume(Path(folder) / "v", cube, chunk_size=(8, 8, 4), **options)).encode())
    return seeds


def _check_info(data: bytes) -> bool:
    document = load(data)
    info = attempt(read_volume, "precomputed", lambda name: document if name == "info" else None, WHERE)
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
        check_scale(scale, len(data))
    return True


TARGETS = {"info": Target(_info_seeds, _check_info, mutate_json, most_bytes=4000)}
