"""What reading K points of a zarr chunk costs, against decoding all of it: `python -m benchmarks.crossovers_zarr`.

Prints microseconds of CPU a chunk and the ratio points / (numcodecs' full decode + indexing), the two measured by
turns; of blosc also with all blocks decoded, by the same reader, and how many blocks a chunk has.
"""

from __future__ import annotations

import json
import struct
import sys
from functools import partial
from unittest import mock

import numcodecs
import numpy as np

from benchmarks.crossovers import grow_chunk, time_by_turns
from voxelprobe.codecs import blosc_frame, zarr
from voxelprobe.codecs.protocol import ChunkLayout

NUMBERS = (1, 10, 100, 10_000)
CODECS = {
    "none": None,
    "zstd": {"id": "zstd", "level": 3},
    "gzip": {"id": "gzip", "level": 5},
    "zlib": {"id": "zlib", "level": 5},
    "blosc lz4": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
    "blosc zstd": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 0},
}


def grow_image(shape: tuple[int, ...]) -> np.ndarray:
    """Return grey values like those of an electron microscope: membranes and noise."""
    rng = np.random.default_rng(1)
    segments = grow_chunk(shape)
    is_edge = np.zeros(shape, bool)
    for axis in range(3):
        is_edge |= segments != np.roll(segments, 1, axis)
    return (np.where(is_edge, 90, 160) + rng.normal(0, 12, shape)).clip(0, 255).astype(np.uint8)


def decode_and_index(codec: dict | None, payload: bytes, array: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    content = numcodecs.get_codec(codec).decode(payload) if codec else payload
    return np.frombuffer(content, array.dtype).reshape(array.shape[::-1])[tuple(voxels.T[::-1])]


def read_all_blocks(payload: bytes, layout: ChunkLayout, voxels: np.ndarray) -> np.ndarray:
    def take_values(frame: bytes, dtype: np.dtype, count: int, places: np.ndarray) -> np.ndarray:
        return np.frombuffer(blosc_frame.decompress(frame, count * dtype.itemsize), dtype).take(places)

    with mock.patch.object(blosc_frame, "take_values", take_values):
        return zarr.read_points(payload, layout, voxels)


def main() -> int:
    numcodecs.blosc.use_threads = False  # one thread, as the reader
    for side in (64, 128):
        shape = (side,) * 3
        for kind, array in (("uint64 segments", grow_chunk(shape)), ("uint8 image", grow_image(shape))):
            print(f"\n{side}^3 {kind}; microseconds a chunk, and the ratio to numcodecs' full decode and indexing")
            print(f"{'':26}" + "".join(f"{f'K={number}':>18}" for number in NUMBERS))
            for name, codec in CODECS.items():
                payload = array.tobytes("F")
                if codec:
                    payload = bytes(numcodecs.get_codec(codec).encode(np.frombuffer(payload, array.dtype)))
                layout = ChunkLayout(shape, 1, array.dtype, codecs=json.dumps({
                    "axes": [2, 1, 0], "chunk": shape, "codecs": [codec] if codec else [], "dtype": array.dtype.str,
                    "fill_value": 0, "order": [0, 1, 2], "parts": 1}))
                rows = {name: zarr.read_points} | ({"  all blocks": read_all_blocks} if "blosc" in name else {})
                spent = []
                for number in NUMBERS:
                    voxels = np.random.default_rng(number).integers(0, shape, (number, 3))
                    for read in rows.values():
                        assert np.array_equal(read(payload, layout, voxels)[:, 0], array[tuple(voxels.T)])
                    ways = [partial(read, payload, layout, voxels) for read in rows.values()]
                    spent.append(time_by_turns(*ways, partial(decode_and_index, codec, payload, array, voxels)))
                for i, row in enumerate(rows):
                    print(f"{row:26}" + "".join(f"{times[i]:10.1f} {times[i] / times[-1]:6.3f}x" for times in spent))
                print(f"{'  numcodecs':26}" + "".join(f"{times[-1]:10.1f} {'':7}" for times in spent))
                blocks = ""
                if "blosc" in name:
                    nbytes, blocksize = struct.unpack_from("<II", payload, 4)
                    blocks = f" in {-(-nbytes // blocksize)} blocks of {blocksize}"
                print(f"{'  encoded':26}{len(payload):10} bytes of {array.nbytes}{blocks}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
