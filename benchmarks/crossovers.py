"""What reading K points of a chunk costs, against decoding all of it: `python benchmarks/crossovers.py`.

Prints microseconds a chunk, all measured in one run, and the ratio full decode / points: above 1, points are cheaper.
For compressed_segmentation the loop and numpy are also shown apart, which is where `_FEW_LABELS` comes from; for
crackle and compresso what the packages' own partial reads take, without the checks.

The chunks are grown here, or, with VOXELPROBE_PINKY40 set to a folder with a copy of pinky40, cut from that.
"""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import compressed_segmentation as cseg_package
import compresso as compresso_package
import crackle as crackle_package
import numpy as np

from voxelprobe.codecs import compressed_segmentation, load_reader
from voxelprobe.codecs.protocol import ChunkLayout

SHAPES = ((128, 128, 32), (256, 256, 64))
NUMBERS = (1, 10, 30, 100, 1000, 10000)
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
    return np.asfortranarray(whole[tuple(slice(size) for size in shape)].astype(np.uint64))


def time_call(function: Callable[[], object], seconds: float = 0.15) -> float:
    """Return the best of many calls in microseconds."""
    best, end = np.inf, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        function()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best * 1e6


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


def list_encodings(array: np.ndarray) -> dict[str, tuple[bytes, Callable[[bytes], np.ndarray]]]:
    """Return for each encoding the chunk encoded, and its full decode by the usual package."""
    shape = array.shape
    return {
        "raw": (array.tobytes("F"), lambda payload: np.frombuffer(payload, "<u8").reshape(shape, order="F").copy()),
        "compressed_segmentation": (
            cseg_package.compress(array, block_size=BLOCK_SIZE, order="F"),
            lambda payload: cseg_package.decompress(payload, shape, np.uint64, BLOCK_SIZE, order="F"),
        ),
        "crackle": (
            crackle_package.compress(array, parallel=1),
            lambda payload: crackle_package.decompress(payload, parallel=1),
        ),
        "compresso": (compresso_package.compress(array), compresso_package.decompress),
    }


def time_reads(read: Callable[..., np.ndarray], payload: bytes, array: np.ndarray) -> list[float]:
    """Return what the points of `NUMBERS` take, in microseconds, after their labels were compared."""
    layout = ChunkLayout(array.shape, 1, array.dtype, BLOCK_SIZE)
    spent = []
    for number in NUMBERS:
        voxels = np.random.default_rng(number).integers(0, array.shape, (number, 3))
        assert np.array_equal(np.asarray(read(payload, layout, voxels)).ravel(), array[tuple(voxels.T)])
        spent.append(time_call(partial(read, payload, layout, voxels)))
    return spent


def main() -> int:
    parts = {
        "compressed_segmentation": {"loop": read_by_loop, "numpy": read_by_numpy},
        "crackle": {"scattered_points": read_by_crackle},
        "compresso": {"z slices": read_by_compresso},
    }
    for shape in SHAPES:
        array = load_chunk(shape)
        print(f"\n{' x '.join(map(str, shape))}, {len(np.unique(array))} labels; microseconds a chunk")
        print(f"{'':26}" + "".join(f"{f'K={number}':>17}" for number in NUMBERS))
        for encoding, (payload, decode) in list_encodings(array).items():
            full = time_call(partial(decode, payload))
            rows = {encoding: load_reader(encoding, "here").read_points}
            rows |= {f"  {name}": read for name, read in parts.get(encoding, {}).items()}
            for name, read in rows.items():
                cells = [f"{spent:9.1f} {full / spent:6.1f}x" for spent in time_reads(read, payload, array)]
                print(f"{name:26}" + "".join(cells))
            print(f"{'  full decode':26}{full:9.1f}   ({len(payload)} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
