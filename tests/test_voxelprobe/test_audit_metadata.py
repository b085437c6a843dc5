"""Metadata of zarr and n5, changed at random: what the audit and the product make of them is the same."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from voxelprobe.audit.volumes import read_any_scale
from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.volume.formats import read_volume

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
V3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [30, 40, 50], "data_type": "uint32", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8, 16, 8]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}, BYTES,
               {"name": "blosc", "configuration": {"cname": "zstd", "shuffle": "shuffle", "typesize": 4}}],
}
SHARDED = V3 | {"codecs": [{"name": "sharding_indexed", "configuration": {
    "chunk_shape": [4, 8, 8], "codecs": [BYTES, {"name": "gzip"}], "index_codecs": [BYTES, {"name": "crc32c"}],
    "index_location": "start"}}]}
V2 = {"zarr_format": 2, "shape": [30, 40, 50], "chunks": [8, 8, 16], "dtype": ">u4", "order": "F", "fill_value": 1,
      "filters": [{"id": "delta", "dtype": ">u4"}], "compressor": {"id": "zlib"}, "dimension_separator": "/"}
OME = [{"axes": [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"],
        "coordinateTransformations": [{"type": "scale", "scale": [1, 2, 1]}],
        "datasets": [{"path": f"s{i}", "coordinateTransformations": [
            {"type": "scale", "scale": [0.04 * 2**i, 0.004 * 2**i, 0.004 * 2**i]},
            {"type": "translation", "translation": [0.12 + 0.02 * (2**i - 1), 0.002 * (2**i - 1), 0.002 * (2**i - 1)]},
        ]} for i in range(2)]}]
N5: dict[str, Any] = {"dimensions": [50, 40, 30], "blockSize": [16, 16, 8], "dataType": "uint32",
                      "compression": {"type": "blosc", "cname": "zstd"}}
TRANSFORMS = [{"axes": list("zyx"), "scale": [40 * 2**i, 4 * 2**i, 4 * 2**i], "units": ["nm"] * 3,
               "translate": [400 + 20 * (2**i - 1), 2 * (2**i - 1), 8 + 2 * (2**i - 1)]} for i in range(2)]
VOLUMES: dict[str, tuple[str, dict[str, Any]]] = {
    "v3": ("zarr3", {"zarr.json": V3}),
    "shards": ("zarr", {"zarr.json": SHARDED}),
    "v2": ("zarr", {".zarray": V2, ".zattrs": {"_ARRAY_DIMENSIONS": ["y", "x", "z"]}}),
    "ome v3": ("zarr", {"s0/zarr.json": V3, "s1/zarr.json": SHARDED, "zarr.json": {
        "zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": OME}}}}),
    "ome v2": ("zarr2", {".zattrs": {"multiscales": OME}, "s0/.zarray": V2, "s1/.zarray": V2}),
    "n5 factors": ("n5", {"s0/attributes.json": N5, "s1/attributes.json": N5, "attributes.json": {
        "scales": [[1, 1, 1], [2, 2, 4]], "pixelResolution": {"unit": "um", "dimensions": [0.004, 0.004, 0.04]}}}),
    "n5 transforms": ("n5", {
        "attributes.json": {"multiscales": [{"datasets": [
            {"path": "s0", "transform": TRANSFORMS[0]}, {"path": "s1"}]}]},
        "s0/attributes.json": N5, "s1/attributes.json": N5 | {"transform": TRANSFORMS[1]}}),
    "n5 sizes": ("n5", {"s0/attributes.json": N5 | {"resolution": [4, 4, 40], "units": ["nm"] * 3},
                        "s1/attributes.json": N5 | {"resolution": [8, 8, 80], "axes": ["y", "x", "z"]}}),
    "n5 channels": ("n5", {"attributes.json": N5 | {"dimensions": [50, 40, 30, 3], "blockSize": [4, 4, 4, 2],
                                                    "axes": ["x", "z", "y", "c"], "resolution": [4, 4, 40, 1]}}),
}
VALUES: list[Any] = [
    None, 0, 1, -1, 2, 3, 0.5, 1e300, 2**40, True, "", "x", "c", "C", "t", "nm", "um", "meters", "angstrom", "gzip",
    "bytes", "raw", "NaN", "0x3f800000", "float32", "uint8", "bool", "<f8", "|b1", ">i2", [], {}, [1, 2, 3],
    ["z", "y", "x"], ["t", "x", "y", "z"], "start", "end", ".", "/", "zlib", "identity", "s1", "./s0/", "crc32c",
]
MEMBERS = ["unit", "units", "axes", "path", "resolution", "fill_value", "downsamplingFactors", "type", "name", "order",
           "translate", "compressionType", "dimension_names", "coordinateTransformations"]


def list_places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every object or list of a document with a name or index in it."""
    for place in document if isinstance(document, dict) else range(len(document)):
        yield document, place
        if isinstance(document[place], dict | list):
            yield from list_places(document[place])


def change(documents: dict[str, Any], rng: random.Random) -> None:
    """Change something, or nothing, anywhere in some documents."""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        holder, place = rng.choice([*list_places(documents)] or [({None: None}, None)])
        what = rng.randrange(5)
        if what == 0:
            del holder[place]
        elif what == 1 and isinstance(holder, list):
            holder.append(deepcopy(rng.choice(holder)))
        elif what == 2 and isinstance(holder, list):
            rng.shuffle(holder)
        elif what == 3 and isinstance(holder, dict):
            holder[rng.choice(MEMBERS)] = deepcopy(rng.choice(VALUES))
        else:
            holder[place] = deepcopy(rng.choice(VALUES))


@pytest.mark.parametrize("name", VOLUMES)
def test_two_readings_of_changed_metadata_agree(name: str) -> None:
    """What both readings take they take alike, to the last digit; the audit never fails but says what it can't read."""
    rng = random.Random(name)
    kind, whole = VOLUMES[name]
    taken = left = 0
    for _ in range(400):
        documents = deepcopy(whole)
        change(documents, rng)

        def read_json(document: str, documents: dict[str, Any] = documents) -> Any:
            return deepcopy(documents.get(document))

        try:
            scales = read_volume(kind, read_json, "w").scales
        except (InputError, UnsupportedError):
            scales = ()
        for mip in range(len(scales) or 1):
            try:
                found = read_any_scale(kind, read_json, mip, "nm", "w")
                found.explain()
            except UnsupportedError:
                left += bool(scales)
                continue
            if not scales:  # the product has refused it, so nothing is audited
                continue
            taken += 1
            began = scales[mip]
            assert (found.key, found.size, found.voxel_offset, found.chunk_size, found.encoding, found.data_type,
                    found.channels) == (began.key, began.size, began.voxel_offset, began.chunk_size, began.encoding,
                                        began.dtype.name, began.num_channels), documents
            assert [float(1 / ratio) for ratio in found.ratios] == list(began.resolution), documents
            facts, array = json.loads(began.codecs), found.array  # type: ignore[attr-defined]
            assert (list(array.chunk), repr(array.fill)) == (facts["chunk"], repr(began.fill_value)), documents
    assert taken > 50
    assert left <= taken / 20
