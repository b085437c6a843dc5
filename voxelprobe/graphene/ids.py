"""How a graph's ids are built, and what its info says of that.

An id has 64 bits: layer | x | y | z | segment. The layer takes `n_bits_for_layer_id` (8) bits, each
of x, y, z as many as `spatial_bit_masks` gives for that layer, the segment the rest (cloudvolume,
`decode_chunk_position` in datasource/graphene/metadata.py; PyChunkedGraph, `chunks/utils.py`).
Layer 1 = supervoxel, 2 = what is connected within a chunk, `n_layers` = root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np

from voxelprobe.arrays import Int64, UInt64, Voxels
from voxelprobe.errors import InputError, UnsupportedError

# What can be opened as a watershed volume: cloud-files' protocols and its published aliases.
DATA_SCHEMES = ("gs", "s3", "https", "http", "file", "matrix", "nokura", "tigerdata")
Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class GraphLayout:
    """What of a graph's info decides the meaning of its ids and where its watershed is.

    Attributes
    ----------
    chunk_size
        Voxels of `cv_mip` a graph chunk (x, y, z).
    n_layers
        The layer of the roots.
    layer_bits
        How many of an id's highest bits are its layer.
    spatial_bits
        Bits of each of x, y, z in ids of layer 1, 2, …; None where the info is silent.
    cv_mip
        The scale of the watershed volume that the supervoxels are voxels of.
    chunks_start_at_voxel_offset
        Whether the grid of graph chunks begins at the volume's offset, else at the origin.
    ocdbt_seg
        Whether supervoxels may have been split in an OCDBT copy of the watershed: `data_dir` still
        names the original, whose ids resolve, some of them to outdated roots.
    data_dir
        The cloudpath of the watershed volume.
    """

    chunk_size: Triple
    n_layers: int
    layer_bits: int
    spatial_bits: tuple[int | None, ...]
    cv_mip: int
    chunks_start_at_voxel_offset: bool
    ocdbt_seg: bool
    data_dir: str

    def layers_of(self, ids: UInt64) -> Int64:
        """Return the layer of each id; shape (n,), int64. The id 0 gives 0."""
        return (_as_ids(ids) >> np.uint64(64 - self.layer_bits)).astype(np.int64)

    def chunks_of(self, ids: UInt64) -> Voxels:
        """Return the graph chunk of each supervoxel; shape (n, 3), int64, x y z. Ids of other layers mean nothing."""
        ids, bits = _as_ids(ids), self.spatial_bits[0] or 0
        segment_bits = 64 - self.layer_bits - 3 * bits
        mask = np.uint64((1 << bits) - 1)
        return np.stack(
            [(ids >> np.uint64(segment_bits + place * bits) & mask).astype(np.int64) for place in (2, 1, 0)], axis=-1
        )

    def expected_chunks(self, voxels: Voxels, voxel_offset: Triple) -> Voxels:
        """Return the graph chunk that each voxel is in.

        Parameters
        ----------
        voxels
            Shape (n, 3), int64, x y z at `cv_mip`, the volume's offset included.
        voxel_offset
            The offset of the watershed's scale `cv_mip`.
        """
        begin = np.asarray(voxel_offset if self.chunks_start_at_voxel_offset else (0, 0, 0), np.int64)
        return (voxels - begin) // np.asarray(self.chunk_size, np.int64)

    def count_mismatches(self, ids: UInt64, voxels: Voxels, voxel_offset: Triple) -> tuple[int, int]:
        """Return how many supervoxels aren't of the chunk that their voxel is in, and how many were compared.

        A supervoxel never crosses a graph chunk, so any mismatch means that the voxels are wrong
        (unit, scale, axis order) or that the labels aren't this graph's. The id 0 isn't compared;
        an id of another layer is a mismatch.
        """
        some = _as_ids(ids) != 0
        ids, voxels = ids[some], voxels[some]
        right = (self.layers_of(ids) == 1) & (
            self.chunks_of(ids) == self.expected_chunks(voxels, voxel_offset)
        ).all(axis=1)
        return int(len(ids) - np.count_nonzero(right)), len(ids)

    def mismatch_share(self, ids: UInt64, voxels: Voxels, voxel_offset: Triple) -> float:
        """Return the share of mismatches among the nonzero ids, 0 to 1; see `count_mismatches`."""
        wrong, compared = self.count_mismatches(ids, voxels, voxel_offset)
        return wrong / compared if compared else 0.0


def parse_graph(document: object, where: str) -> GraphLayout:
    """Return the layout that the info of a graphene table describes.

    Parameters
    ----------
    document
        The parsed JSON, from a server: nothing in it is trusted.
    where
        The table's cloudpath, for messages.

    Raises
    ------
    InputError
        If it isn't the info of a graphene table, or contradicts itself.
    UnsupportedError
        If the server or the watershed is of a kind that can't be used here.
    """
    where = f"{where}/info"
    info = _mapping(document, where)
    graph = _mapping(info.get("graph"), f"{where}: graph")
    layer_bits = _integer(graph.get("n_bits_for_layer_id", 8), f"{where}: graph.n_bits_for_layer_id", 1, 32)
    n_layers = _integer(graph.get("n_layers"), f"{where}: graph.n_layers", 2, 2**layer_bits - 1)
    masks = _mapping(graph.get("spatial_bit_masks"), f"{where}: graph.spatial_bit_masks")
    most = (63 - layer_bits) // 3
    bits = tuple(
        _integer(masks[str(layer)], f"{where}: graph.spatial_bit_masks of layer {layer}", 0, most)
        if str(layer) in masks else None
        for layer in range(1, min(n_layers, 255) + 1)
    )
    if not bits[0]:
        raise InputError(f"{where}: expected the bits of layer 1 in graph.spatial_bit_masks, found {_brief(masks)}")
    sizes = graph.get("chunk_size")
    if not isinstance(sizes, list | tuple) or len(sizes) != 3:
        raise InputError(f"{where}: expected three whole numbers for graph.chunk_size, found {_brief(sizes)}")
    x, y, z = (_integer(size, f"{where}: graph.chunk_size", 1, 2**31) for size in sizes)
    versions = _mapping(info.get("app", {}), f"{where}: app").get("supported_api_versions", [1])
    if not isinstance(versions, list | tuple) or 1 not in versions:
        raise UnsupportedError(f"{where}: expected a server that speaks version 1, found {_brief(versions)}")
    return GraphLayout(
        chunk_size=(x, y, z),
        n_layers=n_layers,
        layer_bits=layer_bits,
        spatial_bits=bits,
        cv_mip=_integer(graph.get("cv_mip", 0), f"{where}: graph.cv_mip", 0, 100),
        chunks_start_at_voxel_offset=_flag(info, "chunks_start_at_voxel_offset", where),
        ocdbt_seg=_flag(graph, "ocdbt_seg", f"{where}: graph"),
        data_dir=_data_dir(info.get("data_dir"), f"{where}: data_dir"),
    )


def _data_dir(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise InputError(f"{where}: expected the watershed's cloudpath, found {_brief(value)}")
    path = value.strip().removeprefix("precomputed://").rstrip("/")
    scheme, mark, rest = path.partition("://")
    if not mark or not rest or (scheme == "file" and not rest.startswith("/")):
        # A relative path would be one of this computer's, wherever the run was started.
        raise InputError(f"{where}: expected a full cloudpath as in gs://bucket/watershed, found {_brief(value)}")
    if scheme not in DATA_SCHEMES:
        raise UnsupportedError(f"{where}: expected one of {', '.join(DATA_SCHEMES)}, found {_brief(value)}")
    plain = _unquoted(rest)  # a server may undo quotes once more
    if ".." in plain.split("/") or "\\" in plain or not plain.isprintable():
        raise InputError(f"{where}: expected a path without `..` or backslashes, found {_brief(value)}")
    if "@" in re.sub(r"^https?://", "", plain).split("/")[0]:
        raise InputError(f"{where}: expected an address without a user name")
    return path


def _unquoted(text: str) -> str:
    while (shorter := unquote(text)) != text:
        text = shorter
    return text


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a JSON object, found {_brief(value)}")
    return value


def _integer(value: object, where: str, least: int, most: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{where}: expected a whole number from {least} to {most}, found {_brief(value)}")
    return value


def _flag(fields: Mapping[str, Any], name: str, where: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        # Not truth: "false" is true.
        raise InputError(f"{where}: expected true or false for {name}, found {_brief(value)}")
    return bool(value)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _as_ids(ids: UInt64) -> UInt64:
    if ids.dtype != np.uint64:
        # Ids exceed 2^53: by way of floats they would be other ids.
        raise TypeError(f"ids are uint64, found {ids.dtype}")
    return ids
