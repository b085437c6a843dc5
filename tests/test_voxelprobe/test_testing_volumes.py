from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe.testing.encoders import LABEL_ENCODINGS as ENCODINGS
from voxelprobe.testing.shards import morton_code, shard_of_chunk
from voxelprobe.testing.volumes import SUFFIXES, chunk_name, iterate_chunks, write_volume

SHAPE, CHUNK, OFFSET = (37, 20, 21), (16, 16, 8), (13, 7, 102)
SHARDINGS = {
    "files": None,
    "identity": {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 2},
    "murmur": {"preshift_bits": 2, "minishard_bits": 1, "shard_bits": 5, "hash": "murmurhash3_x86_128",
               "minishard_index_encoding": "gzip", "data_encoding": "gzip"},
}


def labels(dtype: str = "uint64", channels: int | None = None) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(7)
    top = min(np.iinfo(dtype).max, 2**64 - 1)
    blocks = rng.integers(0, top, (12, 10, 21) + ((channels,) if channels else ()), dtype=dtype)
    return blocks.repeat(4, 0).repeat(4, 1)[: SHAPE[0], : SHAPE[1]]


def read_with_cloudvolume(folder: Path, mip: int = 0) -> np.ndarray[Any, Any]:
    from cloudvolume import CloudVolume

    return np.asarray(CloudVolume(f"file://{folder}", mip=mip, fill_missing=True, progress=False)[:])


def read_with_tensorstore(folder: Path, mip: int = 0) -> np.ndarray[Any, Any]:
    import tensorstore

    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{folder}/"},
            "scale_index": mip}
    return np.asarray(tensorstore.open(spec, open=True).result()[...].read().result())


@pytest.mark.parametrize("offset", [(0, 0, 0), OFFSET])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cloudvolume_reads_what_was_written(tmp_path: Path, encoding: Any, sharding: str, offset: Any) -> None:
    """CloudVolume returns the array of every encoding, sharded or not, at any offset."""
    array = labels()
    write_volume(tmp_path, array, encoding=encoding, chunk_size=CHUNK, voxel_offset=offset,
                 sharding=SHARDINGS[sharding])
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path)[..., 0], array)


@pytest.mark.parametrize("offset", [(0, 0, 0), OFFSET])
@pytest.mark.parametrize("gap_bytes", [0, 5])
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("encoding", ENCODINGS[:2])
def test_tensorstore_reads_what_was_written(
    tmp_path: Path, encoding: Any, sharding: str, gap_bytes: int, offset: Any
) -> None:
    """TensorStore returns the array, also with unused bytes between the chunks of a shard."""
    array = labels()
    write_volume(tmp_path, array, encoding=encoding, chunk_size=CHUNK, voxel_offset=offset,
                 sharding=SHARDINGS[sharding], gap_bytes=gap_bytes)
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path)[..., 0], array)


@pytest.mark.parametrize("encoding", ENCODINGS[:2])
@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_channels_are_kept_apart(tmp_path: Path, encoding: Any, dtype: str) -> None:
    """TensorStore returns each of three channels."""
    array = labels(dtype, channels=3)
    write_volume(tmp_path, array, encoding=encoding, chunk_size=CHUNK, block_size=(8, 4, 2))
    np.testing.assert_array_equal(read_with_tensorstore(tmp_path), array)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_raw_keeps_every_dtype(tmp_path: Path, dtype: str) -> None:
    """TensorStore returns a raw volume in the dtype it was written in, whatever the byte order given."""
    array = np.random.default_rng(3).normal(0, 50, SHAPE).astype(np.dtype(dtype).newbyteorder(">"))
    write_volume(tmp_path, array, chunk_size=CHUNK)
    found = read_with_tensorstore(tmp_path)[..., 0]
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("compress", SUFFIXES)
def test_cloudvolume_reads_compressed_files(tmp_path: Path, compress: Any) -> None:
    """CloudVolume returns what was stored as NAME.gz and its like."""
    array = labels("uint32")
    write_volume(tmp_path, array, encoding="compressed_segmentation", chunk_size=CHUNK, compress=compress)
    names = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "info"]
    assert all(name.endswith(SUFFIXES[compress]) for name in names)
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path)[..., 0], array)


def test_chunks_left_out_read_as_zero(tmp_path: Path) -> None:
    """A skipped chunk has no file, an empty one has no bytes, and CloudVolume reads zeros in both."""
    array = labels()
    info = write_volume(tmp_path, array, chunk_size=CHUNK, voxel_offset=OFFSET, compress="gzip",
                        skip_chunks=[(1, 0, 0)], empty_chunks=[(0, 1, 2)])
    scale = info["scales"][0]
    assert not list(tmp_path.glob(chunk_name(scale, (1, 0, 0)) + "*"))
    assert (tmp_path / chunk_name(scale, (0, 1, 2))).read_bytes() == b""
    expected = array.copy()
    expected[16:32, :16, :8] = 0
    expected[:16, 16:32, 16:] = 0
    np.testing.assert_array_equal(read_with_cloudvolume(tmp_path)[..., 0], expected)


def test_further_scales_stride_over_the_first(tmp_path: Path) -> None:
    """Mip 2 holds every fourth voxel, with the offset rounded down and the resolution multiplied."""
    array = labels()
    info = write_volume(tmp_path, array, chunk_size=CHUNK, voxel_offset=OFFSET, resolution=(17.2, 4, 40), mips=2)
    assert info == json.loads((tmp_path / "info").read_text())
    assert [scale["key"] for scale in info["scales"]] == ["17.2_4_40", "34.4_8_40", "68.8_16_40"]
    assert info["scales"][2]["voxel_offset"] == [3, 1, 102]
    for mip in range(3):
        step = 2**mip
        np.testing.assert_array_equal(read_with_tensorstore(tmp_path, mip)[..., 0], array[::step, ::step])


def test_our_own_info_parser_accepts_it(tmp_path: Path) -> None:
    """What is written is a volume by `parse_info` too."""
    from voxelprobe.volume.info import parse_info

    info = write_volume(tmp_path, labels(), encoding="compressed_segmentation", chunk_size=CHUNK,
                        voxel_offset=OFFSET, sharding=SHARDINGS["murmur"])
    scale = parse_info(info, "volume").scales[0]
    assert (scale.size, scale.voxel_offset, scale.block_size) == (SHAPE, OFFSET, (8, 8, 8))
    assert scale.sharding is not None
    assert scale.sharding.hash == "murmurhash3_x86_128"


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """No time or order leaks into a compressed volume."""
    stored = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_volume(folder, labels(), encoding="compressed_segmentation", chunk_size=CHUNK, compress="gzip")
        stored.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert stored[0] == stored[1]


def test_every_voxel_is_in_one_chunk() -> None:
    """The chunks tile the volume, clipped at its end."""
    count = np.zeros(SHAPE, int)
    for _, where in iterate_chunks(SHAPE, CHUNK):
        count[where] += 1
    assert (count == 1).all()


def test_hashes_are_the_published_ones() -> None:
    """murmurhash3_x86_128 and the Morton code give CloudVolume's values."""
    from cloudvolume.datasource.precomputed.common import compressed_morton_code
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification
    from cloudvolume.lib import Vec

    rng = np.random.default_rng(5)
    oracle = ShardingSpecification("neuroglancer_uint64_sharded_v1", 3, "murmurhash3_x86_128", 4, 11)
    spec = {"preshift_bits": 3, "minishard_bits": 4, "shard_bits": 11, "hash": "murmurhash3_x86_128"}
    for value in rng.integers(0, 2**64, 200, dtype="uint64").tolist():
        place = oracle.compute_shard_location(np.uint64(value))
        shard, minishard = shard_of_chunk(value, spec)
        assert (f"{shard:03x}", minishard) == (str(place.shard_number), int(place.minishard_number))
    size = (5, 300, 17)
    for grid in rng.integers(0, size, (50, 3)).tolist():
        assert morton_code(tuple(grid), size) == int(compressed_morton_code(Vec(*grid), Vec(*size)))


def test_compress_of_a_sharded_volume_is_refused(tmp_path: Path) -> None:
    """Shards have a compression of their own, so asking for another is an error."""
    with pytest.raises(ValueError, match="data_encoding"):
        write_volume(tmp_path, labels(), sharding=SHARDINGS["identity"], compress="gzip")
