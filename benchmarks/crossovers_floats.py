"""What K points of a chunk of floats cost, against decoding all of it: `python benchmarks/crossovers_floats.py`.

Prints microseconds of CPU a chunk and the ratio points / (the package's full decode + indexing), the two measured by
turns. Under zfpc the streams' axes stand, and the mode: `xyzc` is one stream, `xyz` one a channel, `xy` one a z slice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fpzip
import numpy as np
import zfpc

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.crossovers import time_by_turns
from voxelprobe.codecs import load_reader
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.encoding_floats import encode_fpzip, encode_kempressed, encode_zfpc

SHAPES = ((64, 64, 64), (128, 128, 64), (256, 256, 32))
NUMBERS = (1, 10, 100, 10_000)
STREAMS = {"xyzc": (True, True, True, True), "xyz": (True, True, True, False), "xy": (True, True, False, False)}
MODES: dict[str, dict[str, float]] = {"lossless": {}, "rate 8": {"rate": 8}, "rate 16": {"rate": 16},
                                      "rate 13.3": {"rate": 13.3}, "tolerance": {"tolerance": 1e-3}}


def grow_chunk(shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 like a probability map: smooth sheets between 0 and 1 with a little noise; one channel."""
    rng = np.random.default_rng(0)
    x, y, z = np.ix_(*(np.arange(size, dtype=np.float32) for size in shape))
    waves = sum(np.sin(x * a + y * b + z * c) for a, b, c in rng.normal(0, 0.2, (6, 3)).astype(np.float32))
    noise = rng.normal(0, 0.003, shape).astype(np.float32)
    return np.asfortranarray((1 / (1 + np.exp(-2 * waves)) + noise).clip(0, 1)[..., None])


def decode_fpzip(payload: bytes) -> np.ndarray:
    return fpzip.decompress(payload, order="F")


def decode_kempressed(payload: bytes) -> np.ndarray:
    return np.swapaxes(fpzip.decompress(payload, order="F"), 2, 3) - 2.0


def decode_and_index(decode: Callable[[bytes], np.ndarray], payload: bytes, voxels: np.ndarray) -> np.ndarray:
    return decode(payload)[tuple(voxels.T)]


def list_rows(array: np.ndarray) -> dict[str, tuple[str, bytes, Callable[[bytes], np.ndarray]]]:
    """Return for each row of the table the encoding, the chunk encoded and its full decode."""
    rows = {
        "fpzip": ("fpzip", encode_fpzip(array), decode_fpzip),
        "fpzip, 16 bits": ("fpzip", encode_fpzip(array, precision=16), decode_fpzip),
        "kempressed": ("kempressed", encode_kempressed(array), decode_kempressed),
    }
    for streams, correlated in STREAMS.items():
        for mode, options in MODES.items():
            rows[f"zfpc {streams}, {mode}"] = ("zfpc", encode_zfpc(array, correlated, **options), zfpc.decompress)
    return rows


def main() -> int:
    for shape in SHAPES:
        array = grow_chunk(shape)
        layout = ChunkLayout(shape, 1, array.dtype)
        print(f"\n{' x '.join(map(str, shape))} float32; microseconds a chunk, and the ratio to a full decode")
        print(f"{'':22}{'bytes':>10}{'full':>10}" + "".join(f"{f'K={number}':>18}" for number in NUMBERS))
        for name, (encoding, payload, decode) in list_rows(array).items():
            read = load_reader(encoding, "here").read_points
            cells, full = [], np.inf
            for number in NUMBERS:
                voxels = np.random.default_rng(number).integers(0, shape, (number, 3))
                assert np.array_equal(read(payload, layout, voxels), decode(payload)[tuple(voxels.T)])
                ours, theirs = time_by_turns(partial(read, payload, layout, voxels),
                                             partial(decode_and_index, decode, payload, voxels), seconds=0.6)
                cells.append(f"{ours:10.0f} {ours / theirs:6.3f}x")
                full = min(full, theirs)
            print(f"{name:22}{len(payload):10}{full:10.0f}" + "".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
