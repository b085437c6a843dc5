"""Graphene ids, and watersheds whose supervoxels have them.

An id is layer (8 bits) | x | y | z (the chunk, `bits(layer)` each) | segment. Layer 1 holds supervoxels, layer 2 what
of an object lies in one chunk, and each layer above has chunks of twice the size, up to the roots' single chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Triple = tuple[int, int, int]
LAYER_BITS = 8


@dataclass(frozen=True, slots=True)
class GraphLayout:
    """Where a graph's chunks are and how its ids are made.

    Attributes
    ----------
    chunk_size, voxel_offset
        In voxels of the scale `cv_mip` (x, y, z).
    n_layers
        The roots' layer.
    spatial_bits
        Bits a dimension at layers 1 and 2; one less at each layer above, but at least one.
    chunks_start_at_voxel_offset
        False: chunks are counted from voxel 0 (older graphs).
    """

    chunk_size: Triple
    n_layers: int
    voxel_offset: Triple = (0, 0, 0)
    spatial_bits: int = 10
    cv_mip: int = 0
    chunks_start_at_voxel_offset: bool = True

    def bits(self, layer: int) -> int:
        """Return the bits a dimension of a chunk's position."""
        return max(1, self.spatial_bits - max(0, layer - 2))

    def segment_bits(self, layer: int) -> int:
        """Return the bits of the segment."""
        return 64 - LAYER_BITS - 3 * self.bits(layer)

    @property
    def spatial_bit_masks(self) -> dict[str, int]:
        """Return `bits` of every layer, as an `info` has it."""
        return {str(layer): self.bits(layer) for layer in range(1, self.n_layers + 1)}

    def encode(self, layer: int, chunks: npt.ArrayLike, segments: npt.ArrayLike) -> Ids:
        """Return ids of one layer, for chunk positions (n, 3) or (3,) and segments (n,)."""
        bits, segment_bits = self.bits(layer), self.segment_bits(layer)
        position = np.atleast_2d(np.asarray(chunks, np.uint64))
        segment = np.asarray(segments, np.uint64)
        if (position >> np.uint64(bits)).any() or (segment >> np.uint64(segment_bits)).any():
            raise ValueError(f"layer {layer} has {bits} bits a dimension and {segment_bits} bits a segment, "
                             f"found chunk {position.max(0).tolist()}, segment {int(segment.max(initial=0))}")
        ids: Ids = np.full(len(position), layer, np.uint64)
        for axis in range(3):
            ids = (ids << np.uint64(bits)) | position[:, axis]
        # The layer's own shift is what the other fields leave of 64 bits.
        return np.asarray((ids << np.uint64(segment_bits)) | segment, np.uint64)

    def layers(self, ids: Ids) -> Integers:
        """Return the layer of each id; 0 for id 0."""
        return np.asarray(ids >> np.uint64(64 - LAYER_BITS), np.int64)

    def chunks(self, ids: Ids, layer: int) -> Integers:
        """Return the chunk positions (n, 3) of ids that are all of `layer`."""
        bits = self.bits(layer)
        shifts = self.segment_bits(layer) + bits * np.array([2, 1, 0])
        fields = np.asarray(ids, np.uint64)[:, np.newaxis] >> shifts.astype(np.uint64)
        return np.asarray(fields & np.uint64((1 << bits) - 1), np.int64)

    def chunks_above(self, supervoxels: Ids, layer: int) -> Ids:
        """Return, for each supervoxel, the id with segment 0 of the chunk of `layer` (from 2) that holds it."""
        return self.encode(layer, self.chunks(supervoxels, 1) >> (layer - 2), 0)

    def chunks_of_voxels(self, voxels: npt.ArrayLike) -> Integers:
        """Return the chunk positions (n, 3) of voxels (n, 3) of the scale `cv_mip`."""
        start = np.array(self.voxel_offset if self.chunks_start_at_voxel_offset else (0, 0, 0))
        return np.asarray((np.asarray(voxels, np.int64) - start) // np.array(self.chunk_size), np.int64)


class Watershed(NamedTuple):
    """Supervoxels of a segmentation.

    `labels` (x, y, z) uint64, Fortran-ordered, 0 where the segmentation is 0; `layout` of their ids; and, sorted by
    id, the supervoxels `ids` (n,) with the value of the segmentation under each, `objects` (n,).
    """

    labels: Ids
    layout: GraphLayout
    ids: Ids
    objects: Ids


def graphene_watershed(
    segmentation: npt.NDArray[Any],
    chunk_size: Sequence[int],
    *,
    voxel_offset: Sequence[int] = (0, 0, 0),
    piece_size: Sequence[int] | None = None,
    spatial_bits: int = 10,
    cv_mip: int = 0,
    chunks_start_at_voxel_offset: bool = True,
) -> Watershed:
    """Return the supervoxels that graph chunks cut a segmentation into.

    Parameters
    ----------
    segmentation
        Shape (x, y, z), unsigned; the volume's voxels from `voxel_offset` on.
    chunk_size
        Of the graph (x, y, z); need not be the volume's.
    piece_size
        Objects are cut at a grid of this size within each chunk too, as oversegmentation does (x, y, z).
    """
    size, chunk = _triple(segmentation.shape), _triple(chunk_size)
    offset, piece = _triple(voxel_offset), _triple(piece_size or chunk_size)
    starts = (0, 0, 0) if chunks_start_at_voxel_offset else offset
    within = [np.arange(n) + start for n, start in zip(size, starts, strict=True)]
    last = max(int(axis[-1]) // c for axis, c in zip(within, chunk, strict=True))
    layout = GraphLayout(chunk, max(3, last.bit_length() + 2), offset, spatial_bits, cv_mip,
                         chunks_start_at_voxel_offset)
    pieces = [axis % c // p for axis, c, p in zip(within, chunk, piece, strict=True)]
    per_axis = [-(-c // p) for c, p in zip(chunk, piece, strict=True)]
    labels = np.zeros(size, np.uint64, order="F")
    ids, objects = [], []
    for position, where in _iterate_graph_chunks(size, chunk, starts):
        values, value = np.unique(segmentation[where], return_inverse=True)
        x, y, z = np.ix_(*(axis[part] for axis, part in zip(pieces, where, strict=True)))
        part = x + per_axis[0] * (y + per_axis[1] * z)
        count = per_axis[0] * per_axis[1] * per_axis[2]
        keys, key = np.unique(value.reshape(part.shape) * count + part, return_inverse=True)
        owner = values[keys // count].astype(np.uint64)
        found = np.zeros(len(keys), np.uint64)
        found[owner != 0] = layout.encode(1, position, np.arange(1, np.count_nonzero(owner) + 1))
        labels[where] = found[key].reshape(part.shape)
        ids.append(found[owner != 0])
        objects.append(owner[owner != 0])
    all_ids = np.concatenate(ids)
    order = np.argsort(all_ids)
    return Watershed(labels, layout, all_ids[order], np.concatenate(objects)[order])


def _iterate_graph_chunks(size: Triple, chunk: Triple, starts: Triple) -> Iterator[tuple[Triple, tuple[slice, ...]]]:
    axes = [[(g, slice(max(0, g * c - start), min(n, (g + 1) * c - start)))
             for g in range(start // c, (start + n - 1) // c + 1)]
            for n, c, start in zip(size, chunk, starts, strict=True)]
    for spans in product(*axes):
        yield _triple([g for g, _ in spans]), tuple(where for _, where in spans)


def _triple(values: Sequence[int]) -> Triple:
    x, y, z = (int(v) for v in values)
    return x, y, z
