"""The volumes that are measured: `python -m benchmarks.volumes SCRATCH [NAME ...]` makes them, once.

A real segmentation (VOXELPROBE_PINKY40 names a folder with a copy of pinky40), else a grown one, is cut into chunks,
each encoded once; a volume of many chunks repeats them, by hard links or in shards. So a volume of 32,768 chunks costs
the disk next to nothing, and what stands at any voxel is known without reading it: `Source.labels_at`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from voxelprobe.testing.segmentation import neurite_segmentation
from voxelprobe.testing.shards import SHARDING_DEFAULTS, Triple, write_shards
from voxelprobe.testing.volumes import chunk_name, encode_chunk, iterate_chunks

RESOLUTION = (16, 16, 40)
BLOCK = (8, 8, 8)
LARGE, SMALL = (128, 128, 64), (32, 32, 16)


@dataclass(frozen=True, slots=True)
class Volume:
    """What a volume is to be: its encoding, its size in chunks, and how shards take chunk ids apart, or files."""

    encoding: str
    grid: Triple
    chunk: Triple = LARGE
    sharding: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> Triple:
        """The volume's size in voxels."""
        x, y, z = (g * c for g, c in zip(self.grid, self.chunk, strict=True))
        return x, y, z

    @property
    def chunks(self) -> int:
        """How many chunks it has."""
        return int(np.prod(self.grid))


def _shards(preshift_bits: int, minishard_bits: int, shard_bits: int) -> dict[str, Any]:
    return SHARDING_DEFAULTS | {
        "preshift_bits": preshift_bits, "minishard_bits": minishard_bits, "shard_bits": shard_bits,
        "minishard_index_encoding": "gzip", "data_encoding": "gzip",
    }


# Shards: 4 of 128 chunks, and 32 of 256; neighbours lie together, as identity hashes of Morton codes have it.
VOLUMES = {
    "dense": Volume("compressed_segmentation", (8, 8, 8)),
    "sparse": Volume("compressed_segmentation", (32, 32, 32)),
    "sharded": Volume("compressed_segmentation", (8, 8, 8), sharding=_shards(4, 3, 2)),
    "sharded-sparse": Volume("compressed_segmentation", (16, 16, 32), sharding=_shards(5, 3, 5)),
    "crackle": Volume("crackle", (8, 8, 8)),
    "compresso": Volume("compresso", (8, 8, 8)),
    "raw": Volume("raw", (8, 8, 8)),
}
# For tests of the benchmarks themselves: seconds, and nothing to learn from.
QUICK_VOLUMES = {
    name: Volume(volume.encoding, (8, 8, 8) if "sparse" in name else (4, 4, 4), SMALL,
                 {} if not volume.sharding else _shards(*((2, 2, 5) if "sparse" in name else (2, 2, 2))))
    for name, volume in VOLUMES.items()
}


class Source:
    """Labels that volumes repeat in every direction, kept in a file beside them.

    Parameters
    ----------
    folder
        Where it is kept, and the chunks that were encoded from it.
    """

    def __init__(self, folder: Path, *, quick: bool = False) -> None:
        self.quick = quick
        pinky = None if quick else os.environ.get("VOXELPROBE_PINKY40")
        self.kind = "quick" if quick else "pinky40" if pinky else "grown"
        self.folder = folder / self.kind
        self._pinky = Path(pinky) if pinky else None

    @property
    def volumes(self) -> dict[str, Volume]:
        """The volumes that can be made from it, by name."""
        return QUICK_VOLUMES if self.quick else VOLUMES

    @cached_property
    def labels(self) -> Any:
        """Shape (x, y, z), uint32, mapped from the file; `to_ids` makes the stored ids of it."""
        path = self.folder / "labels.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            found = _read_pinky(self._pinky) if self._pinky else _grow(self.quick)
            np.save(path.with_suffix(".part.npy"), found)
            path.with_suffix(".part.npy").rename(path)
        return np.load(path, mmap_mode="r")

    def labels_at(self, voxels: Any) -> Any:
        """Return the ids that any of the volumes has at voxels (n, 3): the oracle."""
        x, y, z = (voxels[:, axis] % self.labels.shape[axis] for axis in range(3))
        return to_ids(self.labels[x, y, z])

    def encoded(self, encoding: str, chunk: Triple) -> dict[Triple, Path]:
        """Return the gzip'd chunks of an encoding by their positions, made where they are not there."""
        folder = self.folder / "chunks" / f"{encoding}-{'x'.join(map(str, chunk))}"
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for grid, where in iterate_chunks(self.labels.shape, chunk):
            path = files[grid] = folder / ("_".join(map(str, grid)) + ".gz")
            if not path.exists():
                array = np.asfortranarray(to_ids(np.asarray(self.labels[where])))[..., np.newaxis]
                part = path.with_suffix(".part")
                part.write_bytes(gzip.compress(encode_chunk(array, encoding, BLOCK), 6, mtime=0))
                part.rename(path)
        return files

    def make(self, name: str) -> Path:
        """Return the folder of a volume, made if it is not there."""
        volume, folder = self.volumes[name], self.folder / "volumes" / name
        if (folder / "info").exists():
            return folder
        part = folder.with_name(f"{name}.part")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
        info = _info(volume)
        scale = info["scales"][0]
        (part / scale["key"]).mkdir(parents=True)
        files = self.encoded(volume.encoding, volume.chunk)
        repeats = [int(size) // chunk for size, chunk in zip(self.labels.shape, volume.chunk, strict=True)]
        positions = ((grid, files[_wrap(grid, repeats)]) for grid in _iterate_grid(volume))
        if volume.sharding:
            contents = {path: path.read_bytes() for path in files.values()}
            # The chunks are packed already.
            unpacked = {**volume.sharding, "data_encoding": "raw"}
            write_shards(part / scale["key"], unpacked, volume.grid,
                         {grid: contents[path] for grid, path in positions}, gap_bytes=0)
        else:
            for grid, path in positions:
                os.link(path, part / f"{chunk_name(scale, grid)}.gz")
        (part / "info").write_text(json.dumps(info, indent=1) + "\n")
        part.rename(folder)
        return folder


def to_ids(labels: Any) -> Any:
    """Return uint64 ids of small labels, 0 for 0: above what int64 and float64 hold, and alike in some bits as ids are.

    As in ids of supervoxels, the upper bits say less than the lower.
    """
    wide = labels.astype(np.uint64)
    upper = (wide * np.uint64(2654435761) >> np.uint64(8)) % np.uint64(1 << 11) << np.uint64(48)
    return np.where(wide == 0, wide, wide + upper + np.uint64(1 << 63))


def _iterate_grid(volume: Volume) -> Iterator[Triple]:
    return (grid for grid, _ in iterate_chunks(volume.grid, (1, 1, 1)))


def _wrap(grid: Triple, repeats: list[int]) -> Triple:
    x, y, z = (position % repeat for position, repeat in zip(grid, repeats, strict=True))
    return x, y, z


def _info(volume: Volume) -> dict[str, Any]:
    scale: dict[str, Any] = {
        "key": "_".join(map(str, RESOLUTION)), "size": list(volume.size), "voxel_offset": [0, 0, 0],
        "resolution": list(RESOLUTION), "chunk_sizes": [list(volume.chunk)], "encoding": volume.encoding,
    }
    if volume.encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = list(BLOCK)
    if volume.sharding:
        scale["sharding"] = dict(volume.sharding)
    return {"@type": "neuroglancer_multiscale_volume", "type": "segmentation", "data_type": "uint64",
            "num_channels": 1, "scales": [scale]}


def _read_pinky(folder: Path) -> Any:
    import compresso

    scale = json.loads((folder / "info").read_text())["scales"][0]
    labels = np.empty(scale["size"], np.uint32, order="F")
    for grid, where in iterate_chunks(scale["size"], scale["chunk_sizes"][0]):
        stored = (folder / f"{chunk_name(scale, grid)}.gz").read_bytes()
        labels[where] = compresso.decompress(gzip.decompress(stored))
    return labels


def _grow(quick: bool) -> Any:
    shape = (64, 64, 32) if quick else (256, 256, 256)
    return neurite_segmentation(shape, seed=7, dtype=np.uint32, diameter=12.0 if quick else 20.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(VOLUMES)}; all if none is given")
    parser.add_argument("--quick", action="store_true", help="tiny ones")
    options = parser.parse_args()
    source = Source(options.scratch, quick=options.quick)
    for name in options.names or source.volumes:
        print(source.make(name), f"{source.volumes[name].chunks:,} chunks", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
