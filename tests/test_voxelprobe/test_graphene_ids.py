"""Ids of a graph, and the info that says how they are built."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.graphene.ids import GraphLayout, parse_graph

BITS = {1: 10, 2: 10, 3: 9, 4: 8, 5: 7, 6: 6}
INFO: dict[str, Any] = {
    "data_dir": "gs://bucket/ws",
    "app": {"supported_api_versions": [0, 1]},
    "chunks_start_at_voxel_offset": True,
    "graph": {
        "chunk_size": [256, 256, 512],
        "n_layers": 6,
        "n_bits_for_layer_id": 8,
        "spatial_bit_masks": {str(layer): bits for layer, bits in BITS.items()},
        "cv_mip": 0,
        "bounding_box": [2048, 2048, 512],
    },
    "scales": [],
}
LAYOUT = parse_graph(INFO, "graphene://https://h/segmentation/table/t")


def changed(path: str, value: object) -> dict[str, Any]:
    """Return the info with one member changed, or removed by `...`."""
    info = copy.deepcopy(INFO)
    *folders, name = path.split("/")
    target = info
    for folder in folders:
        target = target[folder]
    if value is ...:
        del target[name]
    else:
        target[name] = value
    return info


def encode(layer: int, chunk: tuple[int, int, int], segment: int, bits: int, layer_bits: int = 8) -> int:
    """Return an id, made with Python's integers bit by bit: the oracle."""
    text = f"{layer:0{layer_bits}b}" + "".join(f"{c:0{bits}b}" for c in chunk)
    return int(text + f"{segment:0{64 - len(text)}b}", 2)


def test_layout_of_an_info() -> None:
    """Everything that decides the ids is taken from the info."""
    assert GraphLayout((256, 256, 512), 6, 8, (10, 10, 9, 8, 7, 6), 0, True, False, "gs://bucket/ws") == LAYOUT


@pytest.mark.parametrize(
    ("path", "value", "name", "expected"),
    [
        ("graph/n_bits_for_layer_id", ..., "layer_bits", 8),
        ("graph/cv_mip", ..., "cv_mip", 0),
        ("graph/cv_mip", 1, "cv_mip", 1),
        ("graph/ocdbt_seg", True, "ocdbt_seg", True),
        ("graph/ocdbt_seg", False, "ocdbt_seg", False),
        ("chunks_start_at_voxel_offset", ..., "chunks_start_at_voxel_offset", False),
        ("app", ..., "n_layers", 6),
        ("graph/spatial_bit_masks", {"1": 10, "3": 4}, "spatial_bits", (10, None, 4, None, None, None)),
        ("data_dir", "precomputed://s3://b/ws/", "data_dir", "s3://b/ws"),
        ("data_dir", "file:///data/ws", "data_dir", "file:///data/ws"),
        ("data_dir", "https://h/ws", "data_dir", "https://h/ws"),
        ("data_dir", "s3://https://own.store/b/ws", "data_dir", "s3://https://own.store/b/ws"),
        ("data_dir", "matrix://b/ws", "data_dir", "matrix://b/ws"),
    ],
)
def test_layout_variants(path: str, value: object, name: str, expected: object) -> None:
    """Members that servers leave out have CloudVolume's defaults; others are what they say."""
    assert getattr(parse_graph(changed(path, value), "g"), name) == expected


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("graph", ...), ("graph", []), ("graph", None),
        ("graph/n_layers", ...), ("graph/n_layers", 1), ("graph/n_layers", 256), ("graph/n_layers", "6"),
        ("graph/n_layers", True), ("graph/n_layers", 6.5), ("graph/n_layers", float("nan")),
        ("graph/n_bits_for_layer_id", 0), ("graph/n_bits_for_layer_id", 40),
        ("graph/spatial_bit_masks", ...), ("graph/spatial_bit_masks", {}), ("graph/spatial_bit_masks", {"1": 0}),
        ("graph/spatial_bit_masks", {"1": 19}), ("graph/spatial_bit_masks", {"1": -1}),
        ("graph/spatial_bit_masks", {"2": 10}), ("graph/spatial_bit_masks", [10, 10]),
        ("graph/chunk_size", ...), ("graph/chunk_size", [256, 256]), ("graph/chunk_size", "256"),
        ("graph/chunk_size", [0, 1, 1]), ("graph/chunk_size", [1, 1, None]),
        ("graph/cv_mip", -1), ("graph/cv_mip", None),
        ("graph/ocdbt_seg", "false"), ("chunks_start_at_voxel_offset", 1),
        ("data_dir", ...), ("data_dir", ""), ("data_dir", 3), ("data_dir", "ws"), ("data_dir", "/data/ws"),
        ("data_dir", "file://ws"), ("data_dir", "file://../ws"), ("data_dir", "gs://"), ("data_dir", "gs://b/../c"),
        ("data_dir", "gs://b/\nws"), ("data_dir", "https://me:pw@h/ws"),
    ],
)
def test_bad_infos(path: str, value: object) -> None:
    """An info that contradicts itself, or that leads to somewhere else, is refused with the table's name."""
    with pytest.raises(InputError, match=r"^the-table/info: "):
        parse_graph(changed(path, value), "the-table")


@pytest.mark.parametrize(
    ("path", "value"),
    [("app/supported_api_versions", [0]), ("app/supported_api_versions", "1"), ("data_dir", "mem://b/ws"),
     ("data_dir", "graphene://https://h/segmentation/table/t"), ("data_dir", "ftp://h/ws"), ("data_dir", "zarr://x")],
)
def test_unsupported_infos(path: str, value: object) -> None:
    """Servers and watersheds of other kinds are named as such."""
    with pytest.raises(UnsupportedError, match=r"^the-table/info: "):
        parse_graph(changed(path, value), "the-table")


@pytest.mark.parametrize("document", [None, [], "info", 3])
def test_not_an_info(document: object) -> None:
    """A document that isn't an object is an InputError."""
    with pytest.raises(InputError):
        parse_graph(document, "t")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


MEMBERS = ["graph", "app", "data_dir", "chunks_start_at_voxel_offset", "graph/spatial_bit_masks/1", "graph/ocdbt_seg",
           "app/supported_api_versions", *(f"graph/{name}" for name in INFO["graph"])]


@given(st.sampled_from(MEMBERS), JSON)
def test_any_document_is_a_layout_or_an_error(path: str, value: object) -> None:
    """Whatever a server writes, it is a layout or one of our errors."""
    with contextlib.suppress(InputError, UnsupportedError):
        parse_graph(changed(path, value), "t")


@st.composite
def layouts_with_ids(draw: st.DrawFn) -> tuple[GraphLayout, list[tuple[int, int, tuple[int, int, int]]]]:
    """Return a layout and supervoxels of it: id, layer, chunk."""
    layer_bits = draw(st.integers(2, 12))
    bits = draw(st.integers(1, (63 - layer_bits) // 3))
    layout = GraphLayout((1, 1, 1), 3, layer_bits, (bits, None, None), 0, False, False, "gs://b/ws")
    coordinate, segment = st.integers(0, 2**bits - 1), st.integers(0, 2 ** (64 - layer_bits - 3 * bits) - 1)
    layer = st.integers(0, 2**layer_bits - 1)
    parts = draw(st.lists(st.tuples(layer, st.tuples(coordinate, coordinate, coordinate), segment), max_size=20))
    return layout, [(encode(la, ch, se, bits, layer_bits), la, ch) for la, ch, se in parts]


@given(layouts_with_ids())
def test_decoding_against_bits(case: tuple[GraphLayout, list[tuple[int, int, tuple[int, int, int]]]]) -> None:
    """Layers and chunks are those that the id's digits in base 2 say, for every division of the 64 bits."""
    layout, made = case
    ids = np.array([item[0] for item in made], np.uint64)
    layers, chunks = layout.layers_of(ids), layout.chunks_of(ids)
    assert (layers.dtype, chunks.dtype, chunks.shape) == (np.int64, np.int64, (len(made), 3))
    assert layers.tolist() == [item[1] for item in made]
    assert [tuple(chunk) for chunk in chunks.tolist()] == [item[2] for item in made]


def test_as_cloudvolume_decodes() -> None:
    """Layers, chunks and the chunk of a voxel are those of CloudVolume's metadata."""
    from cloudvolume.datasource.graphene.metadata import GrapheneMetadata

    meta = GrapheneMetadata.__new__(GrapheneMetadata)
    scale = {"key": "4_4_40", "resolution": [4, 4, 40], "voxel_offset": [100, 7, 33], "size": [10**5] * 3}
    rng = np.random.default_rng(1)
    for flag in (False, True):
        meta.info = {**INFO, "chunks_start_at_voxel_offset": flag, "scales": [scale]}
        layout = parse_graph(meta.info, "t")
        voxels = rng.integers(100, 90_000, (50, 3))
        expected = [tuple(meta.point_to_chunk_position(voxel, mip=0)) for voxel in voxels]
        assert [tuple(c) for c in layout.expected_chunks(voxels, (100, 7, 33)).tolist()] == expected
    for layer, bits in BITS.items():
        label = encode(layer, (3, 1, 2), 77, bits)
        assert int(meta.decode_layer_id(label)) == LAYOUT.layers_of(np.array([label], np.uint64))[0] == layer
    label = encode(1, (1023, 0, 517), 2**26 - 1, 10)
    assert tuple(meta.decode_chunk_position(label)) == tuple(LAYOUT.chunks_of(np.array([label], np.uint64))[0])


@pytest.mark.parametrize("flag", [False, True])
def test_mismatches(flag: bool) -> None:
    """Supervoxels of their voxels' chunks match; zeros aren't compared; other layers and other chunks don't match."""
    layout = parse_graph(changed("chunks_start_at_voxel_offset", flag), "t")
    offset = (1000, 2000, 300)
    voxels = np.random.default_rng(2).integers((1000, 2000, 300), (9000, 9000, 9000), (40, 3))
    begin = offset if flag else (0, 0, 0)
    chunks = [tuple((int(v) - b) // s for v, b, s in zip(voxel, begin, (256, 256, 512), strict=True))
              for voxel in voxels]
    ids = np.array([encode(1, (c[0], c[1], c[2]), i + 1, 10) for i, c in enumerate(chunks)], np.uint64)
    assert layout.count_mismatches(ids, voxels, offset) == (0, 40)
    assert layout.mismatch_share(ids, voxels, offset) == 0.0
    ids[:4] = 0
    ids[4:7] = [encode(2, (c[0], c[1], c[2]), 1, 10) for c in chunks[4:7]]
    voxels[7:9] += (0, 0, 512)
    assert layout.count_mismatches(ids, voxels, offset) == (5, 36)
    assert layout.mismatch_share(ids, voxels, offset) == 5 / 36
    # A wrong unit: nearly all of them.
    assert layout.mismatch_share(ids, voxels * (4, 4, 40), offset) > 0.9


def test_nothing_to_compare() -> None:
    """No ids, or zeros only, are no mismatch."""
    assert LAYOUT.mismatch_share(np.empty(0, np.uint64), np.empty((0, 3), np.int64), (0, 0, 0)) == 0.0
    assert LAYOUT.count_mismatches(np.zeros(3, np.uint64), np.full((3, 3), -5), (0, 0, 0)) == (0, 0)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_ids_stay_unsigned(dtype: type) -> None:
    """Ids of any other dtype are refused instead of being converted."""
    with pytest.raises(TypeError, match="uint64"):
        LAYOUT.layers_of(np.zeros(2, dtype))  # type: ignore[arg-type]
