"""Segments: raw, compressed_segmentation, crackle and compresso.

The chunks are grown here, or, with VOXELPROBE_PINKY40 set to a folder with a copy of pinky40, cut from that.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import compressed_segmentation as cseg_package
import compresso as compresso_package
import crackle as crackle_package
import numpy as np

from benchmarks.crossovers.cases import Case
from voxelprobe.codecs import compressed_segmentation
from voxelprobe.codecs.protocol import ChunkLayout

BLOCK_SIZE = (8, 8, 8)


def grow_chunk(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return segments like neurites: the nearest of many seeds, each with a stretched metric of its own."""
    rng = np.random.default_rng(seed)
    number = int(np.prod(shape) / 6000)
    seeds = rng.random((number, 3)) * shape
    stretch = rng.choice([0.05, 0.3, 1.0], (number, 3))
    x, y, z = (np.arange(size, dtype=np.float32) for size in shape)
    nearest = np.full(shape, np.inf, np.float32)
    owner = np.zeros(shape, np.int32)
    for i, ((px, py, pz), (wx, wy, wz)) in enumerate(zip(seeds, stretch, strict=True)):
        distance = (wx * (x - px) ** 2)[:, None, None] + (wy * (y - py) ** 2)[:, None] + wz * (z - pz) ** 2
        closer = distance < nearest
        nearest[closer] = distance[closer]
        owner[closer] = i
    return np.asfortranarray(rng.integers(1, 2**63, number, np.uint64)[owner])


def load_chunk(shape: tuple[int, ...]) -> np.ndarray:
    """Return a chunk of a real segmentation if there is one, else a grown one."""
    folder = os.environ.get("VOXELPROBE_PINKY40")
    if not folder:
        return grow_chunk(shape)
    stored = gzip.decompress((Path(folder) / "16_16_40" / "0-256_0-256_0-64.gz").read_bytes())
    whole = compresso_package.decompress(stored)
    ends = [{size, extent} for size, extent in zip(shape, whole.shape, strict=True)]
    boxes = [whole[tuple(slice(end - size, end) for end, size in zip(corner, shape, strict=True))]
             for corner in product(*ends)]
    # Of the chunk's corners the one with the most labels: a single soma fills others.
    return np.asfortranarray(max(boxes, key=lambda box: len(np.unique(box))).astype(np.uint64))


def read_by_loop(payload: bytes, layout: ChunkLayout, voxels: np.ndarray) -> np.ndarray:
    return compressed_segmentation._read_one_by_one(payload, layout, BLOCK_SIZE, voxels)


def read_by_numpy(payload: bytes, layout: ChunkLayout, voxels: np.ndarray) -> np.ndarray:
    return compressed_segmentation._read_together(payload, layout, BLOCK_SIZE, voxels)


def read_by_crackle(payload: bytes, layout: ChunkLayout, voxels: np.ndarray) -> np.ndarray:
    return crackle_package.operations.scattered_points(payload, voxels.astype(np.uint32), parallel=1)


def read_by_compresso(payload: bytes, layout: ChunkLayout, voxels: np.ndarray) -> np.ndarray:
    labels = np.empty(len(voxels), layout.dtype)
    for z in np.unique(voxels[:, 2]).tolist():
        here = voxels[:, 2] == z
        labels[here] = compresso_package.decompress(payload, z=(z, z + 1))[voxels[here, 0], voxels[here, 1], 0]
    return labels


def list_cases(shape: tuple[int, int, int]) -> Iterator[Case]:
    """Yield each encoding; `loop` and `numpy` are the halves of our reader, which its `_FEW_LABELS` comes from."""
    array = load_chunk(shape)
    layout = ChunkLayout(array.shape, 1, array.dtype, BLOCK_SIZE)
    remark = f"{len(np.unique(array))} labels"
    yield Case("raw", "raw", layout, array.tobytes("F"),
               lambda payload: np.frombuffer(payload, "<u8").reshape(shape, order="F").copy(), remark=remark)
    yield Case("compressed_segmentation", "compressed_segmentation", layout,
               cseg_package.compress(array, block_size=BLOCK_SIZE, order="F"),
               lambda payload: cseg_package.decompress(payload, shape, np.uint64, BLOCK_SIZE, order="F"),
               {"loop": read_by_loop, "numpy": read_by_numpy})
    yield Case("crackle", "crackle", layout, crackle_package.compress(array, parallel=1),
               lambda payload: crackle_package.decompress(payload, parallel=1),
               {"scattered_points, unchecked": read_by_crackle})
    yield Case("compresso", "compresso", layout, compresso_package.compress(array), compresso_package.decompress,
               {"z slices, unchecked": read_by_compresso})
