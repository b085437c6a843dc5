"""CloudVolume as the writer of volumes, and its full decode as the oracle of every label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe.testing.encoders import LABEL_ENCODINGS as ENCODINGS

IDENTITY = {"@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 1, "minishard_bits": 2,
            "shard_bits": 3, "minishard_index_encoding": "raw", "data_encoding": "raw"}
SHARDINGS = {
    "identity": IDENTITY,
    "murmur": IDENTITY | {"hash": "murmurhash3_x86_128", "shard_bits": 5, "minishard_index_encoding": "gzip",
                          "data_encoding": "gzip"},
    "gzip_index": IDENTITY | {"preshift_bits": 0, "minishard_index_encoding": "gzip"},
    "gzip_data": IDENTITY | {"hash": "murmurhash3_x86_128", "minishard_bits": 0, "data_encoding": "gzip"},
    "one_shard": IDENTITY | {"preshift_bits": 3, "shard_bits": 0},
}


def write(folder: Path, known: Any, encoding: str, *, compress: Any = False, sharding: Any = None) -> Any:
    """Return a CloudVolume of the array, written by CloudVolume's own code alone."""
    from cloudvolume import CloudVolume

    array = known.array
    info = CloudVolume.create_new_info(
        num_channels=array.shape[3] if array.ndim == 4 else 1, data_type=array.dtype.name, encoding=encoding,
        layer_type="segmentation" if array.dtype.kind == "u" else "image", resolution=(4, 4, 40),
        voxel_offset=known.offset, volume_size=array.shape[:3], chunk_size=known.chunk_size,
    )
    if sharding:
        info["scales"][0]["sharding"] = sharding
    volume = CloudVolume(f"file://{folder}", info=info, compress=compress, progress=False, fill_missing=True)
    volume.commit_info()
    if sharding:
        write_shards(folder, volume, array)
    else:
        volume[:] = array
    return volume


def write_shards(folder: Path, volume: Any, array: np.ndarray[Any, Any]) -> None:
    """Write a sharded volume from CloudVolume's chunk ids, codecs and shard synthesis."""
    from cloudvolume import chunks
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    spec = ShardingSpecification.from_dict(volume.scale["sharding"])
    places, codes = volume.image.morton_codes(volume.bounds, same_shard=False)
    size = np.array(volume.chunk_size)
    encoded = {}
    for place, code in zip(np.array(places), codes, strict=True):
        where = tuple(slice(begin, begin + extent) for begin, extent in zip(place * size, size, strict=True))
        chunk = np.asfortranarray(array[where])
        encoded[code] = chunks.encode(chunk if chunk.ndim == 4 else chunk[..., None], volume.encoding,
                                      block_size=volume.meta.compressed_segmentation_block_size(0))
    for name, content in spec.synthesize_shards(encoded).items():
        path = folder / volume.key / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def check(folder: Path, volume: Any, known: Any) -> None:
    """Assert that CloudVolume's full decode is the array, and that every sampled label is too."""
    whole = np.asarray(volume[:])
    np.testing.assert_array_equal(whole if known.array.ndim == 4 else whole[..., 0], known.array)
    known.check(f"precomputed://file://{folder}")


@pytest.mark.parametrize("compress", [False, "gzip", "br", "zstd", "xz"])
@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_unsharded(tmp_path: Path, known: Callable[..., Any], encoding: str, dtype: str, compress: Any) -> None:
    """Labels equal CloudVolume's, whatever the encoding and the files' compression, with clipped chunks."""
    oracle = known(dtype)
    volume = write(tmp_path, oracle, encoding, compress=compress)
    suffixes = {path.suffix for path in (tmp_path / volume.key).iterdir()}
    assert suffixes == {{"gzip": ".gz", False: ""}.get(compress, f".{compress}")}
    check(tmp_path, volume, oracle)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_sharded(tmp_path: Path, known: Callable[..., Any], encoding: str, dtype: str, sharding: str) -> None:
    """Labels equal CloudVolume's out of shards of either hash, with raw and gzip indices and data."""
    oracle = known(dtype)
    check(tmp_path, write(tmp_path, oracle, encoding, sharding=SHARDINGS[sharding]), oracle)


def test_sharded_by_cloudvolumes_upload(tmp_path: Path, known: Callable[..., Any]) -> None:
    """Shards uploaded by `volume[box] = image`, a box a shard, give the array's labels."""
    from cloudvolume import Bbox, CloudVolume

    oracle = known()
    info = CloudVolume.create_new_info(
        num_channels=1, layer_type="segmentation", data_type="uint64", encoding="compressed_segmentation",
        resolution=(4, 4, 40), voxel_offset=oracle.offset, volume_size=oracle.array.shape,
        chunk_size=oracle.chunk_size,
    )
    info["scales"][0]["sharding"] = IDENTITY | {"minishard_index_encoding": "gzip", "data_encoding": "gzip"}
    volume = CloudVolume(f"file://{tmp_path}", info=info, compress=False, progress=False, fill_missing=True)
    volume.commit_info()
    step = np.array(volume.image.shard_shape(0)).astype(int)
    for place in np.ndindex(*-(-np.array(oracle.array.shape) // step)):
        begin = np.array(place) * step
        end = np.minimum(begin + step, oracle.array.shape)
        box = Bbox(begin + oracle.offset, end + oracle.offset)
        image = oracle.array[tuple(slice(b, e) for b, e in zip(begin, end, strict=True))]
        volume[box] = image[..., None]
    check(tmp_path, volume, oracle)


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_compresso_without_z_index(tmp_path: Path, known: Callable[..., Any], dtype: str) -> None:
    """Chunks of compresso's first format version, without an index of z slices, are read alike."""
    import compresso

    oracle = known(dtype)
    volume = write(tmp_path, oracle, "compresso")
    for path in (tmp_path / volume.key).iterdir():
        labels = compresso.decompress(path.read_bytes())
        path.write_bytes(compresso.compress(labels, random_access_z_index=False))
        assert path.read_bytes()[4] == 0  # the format's version
    check(tmp_path, volume, oracle)


@pytest.mark.parametrize("markov_model_order", [0, 3])
def test_crackle_with_markov_model(tmp_path: Path, known: Callable[..., Any], markov_model_order: int) -> None:
    """Crackle's chunks are read alike whichever model compressed their outlines."""
    import crackle

    oracle = known()
    volume = write(tmp_path, oracle, "crackle")
    for path in (tmp_path / volume.key).iterdir():
        labels = crackle.decompress(path.read_bytes())
        path.write_bytes(crackle.compress(labels, markov_model_order=markov_model_order))
    check(tmp_path, volume, oracle)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32"])
def test_raw_dtypes_and_channels(tmp_path: Path, known: Callable[..., Any], dtype: str, channels: int) -> None:
    """Raw voxels keep every dtype's full range in up to three channels, shape (n, channels)."""
    oracle = known(dtype, channels=channels if channels > 1 else None)
    check(tmp_path, write(tmp_path, oracle, "raw", compress="gzip"), oracle)


@pytest.mark.parametrize("sharding", [None, SHARDINGS["murmur"]], ids=["files", "murmur"])
@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_compressed_segmentation_channels(tmp_path: Path, known: Callable[..., Any], dtype: str, sharding: Any) -> None:
    """Three channels of compressed_segmentation are those that CloudVolume decodes."""
    from cloudvolume import CloudVolume

    oracle = known(dtype, channels=3)
    oracle.write(tmp_path, encoding="compressed_segmentation", block_size=(8, 4, 2), sharding=sharding)
    check(tmp_path, CloudVolume(f"file://{tmp_path}", progress=False), oracle)


def test_downsampled_scales(tmp_path: Path, known: Callable[..., Any]) -> None:
    """In each of three scales, points in voxels of mip 0 get the label that CloudVolume's scale has there."""
    from cloudvolume import CloudVolume

    import voxelprobe

    oracle = known(offset=(14, 9, 101))
    oracle.write(tmp_path, encoding="compressed_segmentation", mips=2, compress="gzip")
    points = oracle.points()
    for mip in range(3):
        volume = CloudVolume(f"file://{tmp_path}", mip=mip, progress=False)
        voxels = points // (2**mip, 2**mip, 1)
        begin, end = np.array(volume.bounds.minpt), np.array(volume.bounds.maxpt)
        inside = ((voxels >= begin) & (voxels < end)).all(axis=1)
        assert inside.mean() > 0.9
        expected = np.asarray(volume[:])[..., 0][tuple((voxels[inside] - begin).T)]
        labels, status = voxelprobe.sample_points(f"file://{tmp_path}", points, mip=mip, return_status=True)
        np.testing.assert_array_equal(labels[inside].data, expected)
        np.testing.assert_array_equal(status == "ok", inside)
