"""CloudVolume and TensorStore as writers of volumes of pictures, and full reads as the oracle of every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voxelprobe

SHAPE, CHUNK, OFFSET = (45, 40, 21), (16, 16, 8), (13, 7, 101)
SHARDING = {"@type": "neuroglancer_uint64_sharded_v1", "hash": "murmurhash3_x86_128", "preshift_bits": 1,
            "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip", "data_encoding": "gzip"}


def make_image(dtype: str, channels: int) -> np.ndarray[Any, Any]:
    """Return noise over smooth waves, which differ by channel: shape (x, y, z, channels)."""
    x, y, z = np.indices(SHAPE)
    waves = np.stack([np.sin(x / 7 + c) + np.cos(y / 5 + 2 * c) + np.sin(z / 3) for c in range(channels)], -1)
    noisy = 0.5 + waves / 7 + np.random.default_rng(0).normal(0, 0.02, waves.shape)
    return np.asfortranarray((noisy.clip(0, 1) * np.iinfo(dtype).max).astype(dtype))


def write(folder: Path, image: np.ndarray[Any, Any], encoding: str, compress: Any = False) -> Any:
    """Return a CloudVolume that holds the image as its own code encodes it."""
    from cloudvolume import CloudVolume

    info = CloudVolume.create_new_info(
        num_channels=image.shape[3], data_type=image.dtype.name, encoding=encoding, layer_type="image",
        resolution=(4, 4, 40), voxel_offset=OFFSET, volume_size=SHAPE, chunk_size=CHUNK)
    volume = CloudVolume(f"file://{folder}", info=info, compress=compress, progress=False)
    volume.commit_info()
    volume[:] = image
    return volume


def open_by_tensorstore(folder: Path, **metadata: Any) -> Any:
    """Return the volume as TensorStore has it; with metadata, a new one."""
    import tensorstore

    spec: dict[str, Any] = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}"}
    return tensorstore.open(spec | metadata, create=bool(metadata)).result()


def check(folder: Path, expected: np.ndarray[Any, Any]) -> None:
    """Assert that every voxel of the volume, sampled in any order, has the value that is expected."""
    points = np.random.default_rng(1).permutation(np.indices(SHAPE).reshape(3, -1).T)
    for some in (points, points[:20]):
        values, status = voxelprobe.sample_points(f"file://{folder}", some + OFFSET, return_status=True)
        assert set(status) == {"ok"}
        assert values.dtype == expected.dtype
        stored = expected[tuple(some.T)]
        np.testing.assert_array_equal(values.data, stored[:, 0] if stored.shape[1] == 1 else stored)


@pytest.mark.parametrize("compress", [False, "gzip"])
@pytest.mark.parametrize("encoding", ["jpeg", "png", "jxl"])
def test_one_channel_of_cloudvolume(tmp_path: Path, encoding: str, compress: Any) -> None:
    """Of one channel, every value of a volume with clipped chunks is the one that CloudVolume downloads."""
    image = make_image("uint8", 1)
    volume = write(tmp_path, image, encoding, compress)
    downloaded = np.asarray(volume[:])
    assert np.array_equal(downloaded, image) == (encoding == "png")
    check(tmp_path, downloaded)


@pytest.mark.parametrize(("encoding", "dtype", "channels"), [
    ("jpeg", "uint8", 3), *(("png", "uint8", channels) for channels in (2, 3, 4)), ("png", "uint16", 2),
    ("png", "uint16", 4),
])
def test_several_channels_of_cloudvolume(tmp_path: Path, encoding: str, dtype: str, channels: int) -> None:
    """Of several channels, every value that CloudVolume wrote is the one that TensorStore reads."""
    image = make_image(dtype, channels)
    write(tmp_path, image, encoding)
    stored = open_by_tensorstore(tmp_path).read().result()
    assert np.abs(stored.astype(int) - image).mean() < (6 if encoding == "jpeg" else 1e-9)
    check(tmp_path, stored)


def test_three_channels_of_jxl(tmp_path: Path) -> None:
    """Three channels of jxl, which CloudVolume alone writes, are near those that it was given, channel by channel."""
    image = make_image("uint8", 3)
    write(tmp_path, image, "jxl")
    points = np.indices(SHAPE).reshape(3, -1).T
    values = voxelprobe.sample_points(f"file://{tmp_path}", points + OFFSET)
    assert np.abs(values.astype(int) - image[tuple(points.T)]).mean() < 4


@pytest.mark.parametrize(("encoding", "dtype", "channels"), [
    ("jpeg", "uint8", 1), ("jpeg", "uint8", 3),
    *(("png", dtype, channels) for dtype in ("uint8", "uint16") for channels in (1, 2, 3, 4)),
])
@pytest.mark.parametrize("sharding", [None, SHARDING], ids=["files", "shards"])
def test_volumes_of_tensorstore(
    tmp_path: Path, encoding: str, dtype: str, channels: int, sharding: dict[str, Any] | None
) -> None:
    """What TensorStore writes, in files or in shards, has every value that TensorStore reads."""
    image = make_image(dtype, channels)
    scale: dict[str, Any] = {"size": SHAPE, "encoding": encoding, "chunk_size": CHUNK, "resolution": (4, 4, 40),
                             "voxel_offset": OFFSET}
    if sharding:
        scale["sharding"] = sharding
    volume = open_by_tensorstore(
        tmp_path, multiscale_metadata={"type": "image", "data_type": dtype, "num_channels": channels},
        scale_metadata=scale)
    volume.write(image).result()
    stored = volume.read().result()
    assert encoding == "jpeg" or np.array_equal(stored, image)
    check(tmp_path, stored)


def test_a_damaged_picture(tmp_path: Path) -> None:
    """A damaged picture costs its own points and no others: they are of status corrupt_chunk, with no value."""
    for encoding in ("jpeg", "png", "jxl"):
        folder = tmp_path / encoding
        volume = write(folder, make_image("uint8", 1), encoding)
        path = folder / volume.key / "13-29_7-23_101-109"
        path.write_bytes(path.read_bytes()[:-40])
        points = np.array([(13, 7, 101), (57, 46, 121), (28, 22, 108)])
        values, status = voxelprobe.sample_points(f"file://{folder}", points, return_status=True)
        assert status.tolist() == ["corrupt_chunk", "ok", "corrupt_chunk"], encoding
        assert np.ma.getmaskarray(values).tolist() == [True, False, True]
