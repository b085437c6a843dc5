"""Small Precomputed volumes of every kind, written straight from the specification.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
This writer shares no code with `voxelprobe.sharding` and `voxelprobe.codecs`: what they read from a volume written
here was understood twice.

Limits: one chunk size a volume, and every chunk is held in memory until its shard is written.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from voxelprobe.testing.encoders import encode_chunk
from voxelprobe.testing.shards import SHARDING_DEFAULTS, Triple, write_shards

Compress = Literal["gzip", "br", "zstd", "xz", "bz2"]
# What cloud-files appends to a compressed object's name on a local disk.
SUFFIXES: dict[str, str] = {"gzip": ".gz", "br": ".br", "zstd": ".zstd", "xz": ".xz", "bz2": ".bz2"}


def write_volume(
    folder: Path,
    array: npt.NDArray[Any],
    *,
    encoding: str = "raw",
    chunk_size: Sequence[int] = (64, 64, 64),
    voxel_offset: Sequence[int] = (0, 0, 0),
    resolution: Sequence[float] = (4, 4, 40),
    block_size: Sequence[int] = (8, 8, 8),
    sharding: Mapping[str, Any] | None = None,
    gap_bytes: int = 0,
    compress: Compress | None = None,
    suffixes: bool = True,
    skip_chunks: Collection[Triple] = (),
    empty_chunks: Collection[Triple] = (),
    mips: int = 0,
    mip_factor: Sequence[int] = (2, 2, 1),
) -> dict[str, Any]:
    """Return the `info` of a volume written under `folder`.

    Parameters
    ----------
    array
        Shape (x, y, z) or (x, y, z, channels); its dtype is the volume's.
    block_size
        `compressed_segmentation` only (x, y, z).
    sharding
        `preshift_bits`, `minishard_bits` and `shard_bits`; `hash` ("identity"), `minishard_index_encoding` and
        `data_encoding` ("raw") may be left out. None for a file a chunk.
    gap_bytes
        Unused bytes before each chunk of a shard, which the format allows.
    compress, suffixes
        How files of unsharded chunks are compressed, and whether their names say so (`NAME.gz`, as cloud-files has
        it on a local disk) or not (as in a bucket, where `Content-Encoding` does).
    skip_chunks, empty_chunks
        Grid positions, from 0, at mip 0 of chunks that are not stored, or stored as zero bytes.
    mips, mip_factor
        Scales after the first, each striding over the one before.
    """
    if sharding is not None and compress is not None:
        raise ValueError("shards are compressed by sharding['data_encoding'], not by compress")
    volume = array if array.ndim == 4 else array[..., np.newaxis]
    volume = volume.astype(volume.dtype.newbyteorder("<"), copy=False)
    offset, voxel_size = [int(v) for v in voxel_offset], [_plain(v) for v in resolution]
    info: dict[str, Any] = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation" if volume.dtype.kind == "u" else "image",
        "data_type": volume.dtype.name,
        "num_channels": volume.shape[3],
        "scales": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for mip in range(mips + 1):
        scale: dict[str, Any] = {
            "key": "_".join(str(v) for v in voxel_size),
            "size": list(volume.shape[:3]),
            "voxel_offset": offset,
            "resolution": voxel_size,
            "chunk_sizes": [[int(v) for v in chunk_size]],
            "encoding": encoding,
        }
        if encoding == "compressed_segmentation":
            scale["compressed_segmentation_block_size"] = [int(v) for v in block_size]
        if sharding is not None:
            scale["sharding"] = {**SHARDING_DEFAULTS, **sharding}
        chunks = {
            grid: b"" if mip == 0 and grid in empty_chunks else encode_chunk(volume[where], encoding, block_size)
            for grid, where in iterate_chunks(volume.shape[:3], chunk_size)
            if mip > 0 or grid not in skip_chunks
        }
        if sharding is None:
            _write_chunk_files(folder, scale, chunks, compress, suffixes)
        else:
            grid_size = [-(-n // c) for n, c in zip(scale["size"], scale["chunk_sizes"][0], strict=True)]
            write_shards(folder / scale["key"], scale["sharding"], grid_size, chunks, gap_bytes=gap_bytes)
        info["scales"].append(scale)
        volume = volume[tuple(slice(None, None, int(f)) for f in mip_factor)]
        offset = [o // int(f) for o, f in zip(offset, mip_factor, strict=True)]
        voxel_size = [_plain(v * f) for v, f in zip(voxel_size, mip_factor, strict=True)]
    (folder / "info").write_text(json.dumps(info, indent=1) + "\n")
    return info


def iterate_chunks(size: Sequence[int], chunk_size: Sequence[int]) -> Iterator[tuple[Triple, tuple[slice, ...]]]:
    """Yield each chunk's grid position and its voxels from the volume's corner, x fastest, clipped at the end."""
    for z, y, x in product(*(range(-(-n // c)) for n, c in zip(reversed(size), reversed(chunk_size), strict=True))):
        grid = (x, y, z)
        yield grid, tuple(slice(g * c, min((g + 1) * c, n)) for g, c, n in zip(grid, chunk_size, size, strict=True))


def chunk_name(scale: Mapping[str, Any], grid: Triple) -> str:
    """Return a chunk's name below the volume's folder, for a scale of an `info`."""
    parts = []
    for g, c, n, o in zip(grid, scale["chunk_sizes"][0], scale["size"], scale["voxel_offset"], strict=True):
        parts.append(f"{o + g * c}-{o + min((g + 1) * c, n)}")
    return f"{scale['key']}/{'_'.join(parts)}"


def compress_bytes(data: bytes, compress: Compress | None) -> bytes:
    """Return `data` compressed, the same bytes every time."""
    if compress is None:
        return data
    if compress == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compress == "br":
        import brotli

        return cast(bytes, brotli.compress(data, quality=5))
    if compress == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    if compress == "xz":
        return lzma.compress(data)
    if compress == "bz2":
        return bz2.compress(data)
    raise ValueError(f"no writer for compression {compress!r}")


def _write_chunk_files(folder: Path, scale: Mapping[str, Any], chunks: Mapping[Triple, bytes],
                       compress: Compress | None, suffixes: bool) -> None:
    for grid, data in chunks.items():
        # Zero bytes are stored as they are: no compressed file is that short.
        path = folder / (chunk_name(scale, grid) + (SUFFIXES[compress] if compress and suffixes and data else ""))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(compress_bytes(data, compress) if data else b"")


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)
