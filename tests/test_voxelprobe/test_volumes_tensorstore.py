"""TensorStore as the writer of volumes: its neuroglancer_precomputed driver on local files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARDINGS: dict[str, dict[str, Any] | None] = {
    "files": None,
    "identity": {"hash": "identity", "preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3,
                 "minishard_index_encoding": "raw", "data_encoding": "raw"},
    "murmur": {"hash": "murmurhash3_x86_128", "preshift_bits": 2, "minishard_bits": 1, "shard_bits": 4,
               "minishard_index_encoding": "gzip", "data_encoding": "gzip"},
}


def open_tensorstore(folder: Path, *, create: bool = False, **options: Any) -> Any:
    import tensorstore

    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return tensorstore.open(spec | options, open=not create, create=create).result()


def write(folder: Path, known: Any, encoding: str, sharding: dict[str, Any] | None) -> None:
    """Write the array as a volume by TensorStore's own code alone."""
    array = known.array if known.array.ndim == 4 else known.array[..., None]
    scale: dict[str, Any] = {"resolution": [4, 4, 40], "voxel_offset": list(known.offset), "encoding": encoding,
                             "size": list(array.shape[:3]), "chunk_size": list(known.chunk_size)}
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    if sharding is not None:
        scale["sharding"] = {"@type": "neuroglancer_uint64_sharded_v1", **sharding}
    store = open_tensorstore(
        folder, create=True, scale_metadata=scale,
        multiscale_metadata={"type": "segmentation" if array.dtype.kind == "u" else "image",
                             "data_type": array.dtype.name, "num_channels": array.shape[3]},
    )
    store.write(array).result()


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_labels_are_those_written(
    tmp_path: Path, known: Callable[..., Any], encoding: str, sharding: str, dtype: str
) -> None:
    """Labels of volumes that TensorStore wrote, sharded or not, equal the array."""
    oracle = known(dtype)
    write(tmp_path, oracle, encoding, SHARDINGS[sharding])
    oracle.check(f"file://{tmp_path}")


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_channels(tmp_path: Path, known: Callable[..., Any], encoding: str, sharding: str) -> None:
    """Three channels that TensorStore wrote are kept apart."""
    oracle = known("uint64", channels=3)
    write(tmp_path, oracle, encoding, SHARDINGS[sharding])
    oracle.check(f"file://{tmp_path}")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int16", "int32", "float32"])
def test_raw_dtypes(tmp_path: Path, known: Callable[..., Any], dtype: str) -> None:
    """Raw voxels of each dtype that TensorStore wrote into gzipped shards come back exactly."""
    oracle = known(dtype)
    write(tmp_path, oracle, "raw", SHARDINGS["murmur"])
    oracle.check(f"file://{tmp_path}")


@pytest.mark.parametrize("block_size", [(8, 8, 8), (3, 5, 7), (16, 16, 8)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_compressed_segmentation_is_read_as_tensorstore_reads_it(
    tmp_path: Path, known: Callable[..., Any], channels: int, block_size: tuple[int, int, int]
) -> None:
    """Of a volume that neither wrote, TensorStore's full decode has the sampled labels, for any block size."""
    oracle = known("uint32", channels=channels)
    oracle.write(tmp_path, encoding="compressed_segmentation", block_size=block_size)
    whole = np.asarray(open_tensorstore(tmp_path, scale_index=0)[...].read().result())
    np.testing.assert_array_equal(whole, oracle.array)
    if channels > 1:
        oracle.check(f"file://{tmp_path}")
    else:
        type(oracle)(oracle.array[..., 0], oracle.offset).check(f"file://{tmp_path}")
