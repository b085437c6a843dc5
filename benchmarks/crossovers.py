"""What reading K points of a chunk costs, against decoding all of it: `python benchmarks/crossovers.py`.

Prints microseconds of CPU a chunk and the ratio points / (full decode + indexing), the two measured by turns.
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

SHAPES = ((128, 128, 32), (128, 128, 64), (256, 256, 64))
NUMBERS = (1, 10, 30, 100, 2000, 20000)
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


def time_by_turns(*functions: Callable[[], object], seconds: float = 0.3) -> list[float]:
    """Return the best of many calls of each in microseconds of CPU."""
    best = [np.inf] * len(functions)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i, function in enumerate(functions):
            start = time.process_time()
            function()
            best[i] = min(best[i], time.process_time() - start)
    return [spent * 1e6 for spent in best]


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


def decode_and_index(decode: Callable[[bytes], np.ndarray], payload: bytes, voxels: np.ndarray) -> np.ndarray:
    return decode(payload)[tuple(voxels.T)]


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


def time_reads(
    reads: list[Callable[..., np.ndarray]], decode: Callable[[bytes], np.ndarray], payload: bytes, array: np.ndarray
) -> list[list[float]]:
    """Return what the points of `NUMBERS` take by each way and by a full decode, after their labels were compared."""
    layout = ChunkLayout(array.shape, 1, array.dtype, BLOCK_SIZE)
    spent = []
    for number in NUMBERS:
        voxels = np.random.default_rng(number).integers(0, array.shape, (number, 3))
        for read in reads:
            assert np.array_equal(np.asarray(read(payload, layout, voxels)).ravel(), array[tuple(voxels.T)])
        ways = [partial(read, payload, layout, voxels) for read in reads]
        spent.append(time_by_turns(*ways, partial(decode_and_index, decode, payload, voxels)))
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
            rows = {encoding: load_reader(encoding, "here").read_points}
            rows |= {f"  {name}": read for name, read in parts.get(encoding, {}).items()}
            spent = time_reads(list(rows.values()), decode, payload, array)
            for i, name in enumerate((*rows, "  full decode")):
                cells = [f"{times[i]:9.1f} {times[i] / times[-1]:6.3f}x" for times in spent]
                print(f"{name:26}" + "".join(cells))
            print(f"{'  encoded':26}{len(payload):9} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
