"""What reading K points of a chunk stored as a picture costs: `python -m benchmarks.crossovers_pictures`.

Prints microseconds of CPU a chunk and the ratio points / (full decode by the package + indexing), the two measured by
turns. Each is the mean over several draws of K points, since a png is decoded up to the last row that has one. The grey
chunks are made here: smooth tissue with the noise of an electron microscope.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import imagecodecs
import numpy as np
import pyspng
import simplejpeg

from benchmarks.crossovers import time_by_turns
from voxelprobe.codecs import load_reader
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.encoders import encode_chunk
from voxelprobe.testing.encoding_pictures import encode_jxl

SHAPES = ((64, 64, 64), (128, 128, 64), (256, 256, 32))
NUMBERS = (1, 10, 100, 10_000)
DRAWS = 8


def make_tissue(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return a grey chunk of shape (x, y, z, 1)."""
    rng = np.random.default_rng(seed)
    field = rng.normal(0, 1, shape)
    for _ in range(3):
        for axis in range(3):
            field = (field + np.roll(field, 1, axis) + np.roll(field, -1, axis)) / 3
    noisy = 128 + 40 * (field / field.std() + rng.normal(0, 0.25, shape))
    return np.asfortranarray(noisy.clip(0, 255).astype(np.uint8))[..., None]


def decode_and_index(decode: Callable[[bytes], np.ndarray], payload: bytes, layout: ChunkLayout, voxels: np.ndarray
                     ) -> np.ndarray:
    return decode(payload).ravel().reshape(layout.shape, order="F")[tuple(voxels.T)]


def read_draws(read: Callable[[np.ndarray], np.ndarray], draws: list[np.ndarray]) -> None:
    for voxels in draws:
        read(voxels)


def main() -> int:
    decoders: dict[str, Callable[[bytes], np.ndarray]] = {
        "jpeg": partial(simplejpeg.decode_jpeg, colorspace="GRAY"),
        "png": pyspng.load,
        "jxl": partial(imagecodecs.jpegxl_decode, numthreads=1),
    }
    for shape in SHAPES:
        chunk = make_tissue(shape)
        layout = ChunkLayout(shape, 1, chunk.dtype)
        print(f"\n{' x '.join(map(str, shape))}; microseconds a chunk")
        print(f"{'':16}" + "".join(f"{f'K={number}':>17}" for number in NUMBERS))
        for encoding, decode in decoders.items():
            payload = encode_jxl(chunk, level=85) if encoding == "jxl" else encode_chunk(chunk, encoding)
            read = load_reader(encoding, "here").read_points
            spent = []
            for number in NUMBERS:
                draws = [np.random.default_rng(seed).integers(0, shape, (number, 3)) for seed in range(DRAWS)]
                ways = (partial(read, payload, layout), partial(decode_and_index, decode, payload, layout))
                for voxels in draws:
                    assert np.array_equal(np.ravel(ways[0](voxels)), ways[1](voxels))
                started = time.perf_counter()
                read_draws(ways[1], draws)
                seconds = 20 * (time.perf_counter() - started)  # about ten turns
                spent.append([us / DRAWS for us in time_by_turns(*(partial(read_draws, way, draws) for way in ways),
                                                                 seconds=seconds)])
            for i, name in enumerate((encoding, "  full decode")):
                print(f"{name:16}" + "".join(f"{times[i]:9.0f} {times[i] / times[-1]:6.3f}x" for times in spent))
            print(f"{'  encoded':16}{len(payload):9} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
