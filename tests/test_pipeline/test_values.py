from __future__ import annotations

from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.volumes import write_volume

SHAPE, OFFSET, CHUNK, RESOLUTION = (70, 50, 24), (100, 30, 8), (32, 32, 16), (4, 4, 40)


def draw(dtype: str, channels: int) -> npt.NDArray[Any]:
    rng = np.random.default_rng(3)
    shape = (*SHAPE, channels) if channels > 1 else SHAPE
    if dtype == "float32":
        return rng.standard_normal(shape, dtype=np.float32)
    info = np.iinfo(dtype)
    array = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    array[0, 0, 0], array[-1, -1, -1] = info.max, info.min
    return array


def blocks(dtype: str) -> npt.NDArray[Any]:
    """Labels in blocks, as segments are, for the encodings of segmentations."""
    few = np.random.default_rng(4).integers(0, np.iinfo(dtype).max, (14, 10, 6), dtype=dtype, endpoint=True)
    return few.repeat(5, 0).repeat(5, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    points = np.random.default_rng(5).integers(0, SHAPE, (500, 3))
    return np.concatenate([[[0, 0, 0], [s - 1 for s in SHAPE]], points]) + OFFSET


@pytest.mark.parametrize(("dtype", "channels"), [
    ("float32", 1), ("float32", 3), ("int64", 1), ("uint64", 2), ("uint8", 1),
])
def test_labels_keep_the_volumes_type(dtype: str, channels: int, cli: Any, voxels: Any, write_points: Any) -> None:
    """Labels are of the volume's own type and exact to the last bit, in one column a channel."""
    array = draw(dtype, channels)
    write_volume(cli.folder / "seg", array, chunk_size=CHUNK, voxel_offset=OFFSET)
    outcome = cli.run(volume=cli.folder / "seg", points=write_points(cli.folder / "p.parquet", voxels))
    assert outcome.code == 0, outcome.err
    result = pq.read_table(cli.result)
    names = ["label"] if channels == 1 else [f"label_{channel}" for channel in range(channels)]
    assert result.column_names == ["x", "y", "z", *names, "status"]
    expected = array.reshape(*SHAPE, channels)[tuple((voxels - OFFSET).T)]
    for channel, name in enumerate(names):
        assert result.schema.field(name).type == pa.from_numpy_dtype(dtype)
        assert result[name].to_numpy().tobytes() == expected[:, channel].tobytes()


SHARDED = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 1}
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("raw", "uint64", {"sharding": SHARDED | {"hash": "murmurhash3_x86_128", "data_encoding": "gzip"}}),
    ("compressed_segmentation", "uint64", {"compress": "gzip"}),
    ("compressed_segmentation", "uint32", {"sharding": SHARDED | {"minishard_index_encoding": "gzip"}}),
    ("crackle", "uint64", {"compress": "zstd"}),
    ("crackle", "uint32", {"sharding": SHARDED}),
    ("compresso", "uint64", {"compress": "br"}),
    ("compresso", "uint32", {"sharding": SHARDED | {"data_encoding": "gzip"}}),
]


@pytest.mark.parametrize(("encoding", "dtype", "storage"), KINDS,
                         ids=lambda case: case if isinstance(case, str) else next(iter(case)))
def test_encodings_and_storage(encoding: str, dtype: str, storage: dict[str, Any], cli: Any, voxels: Any,
                               write_points: Any) -> None:
    """Whatever the encoding, the compression and the files, the labels are the array's."""
    array = blocks(dtype)
    write_volume(cli.folder / "seg", array, encoding=encoding, chunk_size=CHUNK, voxel_offset=OFFSET, **storage)  # type: ignore[arg-type]
    points = write_points(cli.folder / "p.npy", voxels)
    outcome = cli.run(volume=f"precomputed://file://{cli.folder}/seg", points=points)
    assert outcome.code == 0, outcome.err
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple((voxels - OFFSET).T)].tolist()


UNITS: list[tuple[str, dict[str, Any], tuple[str, str, str], int]] = [
    ("voxels of mip 0", {}, ("4", "4", "40"), 0),
    ("voxels of mip 0, fractions", {}, ("4", "4", "40"), 0),
    ("mip 1 by its index", {"mip": 1}, ("4", "4", "40"), 1),
    ("mip 1 by its resolution", {"mip": "8,8,40"}, ("4", "4", "40"), 1),
    ("voxels of mip 1, read at mip 0", {"coord_resolution": "8,8,40"}, ("8", "8", "40"), 0),
    ("voxels of mip 1, read at mip 1", {"coord_resolution": "8,8,40", "mip": 1}, ("8", "8", "40"), 1),
    ("nm", {"coord_resolution": "nm"}, ("1", "1", "1"), 0),
    ("nm, fractions", {"coord_resolution": "nm"}, ("1", "1", "1"), 0),
    ("nm, read at mip 1", {"coord_resolution": "nm", "mip": "8,8,40"}, ("1", "1", "1"), 1),
    ("a fractional unit", {"coord_resolution": "17.2,17.2,30"}, ("17.2", "17.2", "30"), 0),
    ("a fractional unit, fractions", {"coord_resolution": "17.2,17.2,30"}, ("17.2", "17.2", "30"), 0),
]


@pytest.mark.parametrize(("name", "parameters", "unit", "mip"), UNITS, ids=[case[0] for case in UNITS])
def test_units_and_scales(name: str, parameters: dict[str, Any], unit: tuple[str, str, str], mip: int, cli: Any,
                          volume: Path, array: Any, write_points: Any, read_table: Any) -> None:
    """A point is in the voxel that exact arithmetic finds, for every unit, scale and fraction of a voxel."""
    rng = np.random.default_rng(6)
    sizes = [Fraction(size) for size in unit]
    low = [float(o * r / size) for o, r, size in zip(OFFSET, RESOLUTION, sizes, strict=True)]
    high = [float((o + n) * r / size) for o, n, r, size in zip(OFFSET, SHAPE, RESOLUTION, sizes, strict=True)]
    points = rng.uniform(low, high, (300, 3))
    # Eighths are exact in binary.
    points = np.floor(points * 8) / 8 if "fractions" in name else np.floor(points).astype(np.int64)
    factor = [1, 2][mip]
    scale, shape = array[::factor, ::factor], (SHAPE[0] // factor, SHAPE[1] // factor, SHAPE[2])
    resolution, offset = (4 * factor, 4 * factor, 40), (OFFSET[0] // factor, OFFSET[1] // factor, OFFSET[2])
    expected = []
    for point in points.tolist():
        voxel = [floor(Fraction(c) * s / r) - o for c, s, r, o in zip(point, sizes, resolution, offset, strict=True)]
        inside = all(0 <= v < n for v, n in zip(voxel, shape, strict=True))
        expected.append(int(scale[tuple(voxel)]) if inside else None)
    outcome = cli.run(volume=volume, points=write_points(cli.folder / "p.parquet", points), **parameters)
    assert outcome.code == 0, outcome.err
    assert read_table(cli.result)["label"].to_pylist() == expected
    assert sum(label is not None for label in expected) > 200


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    return draw("uint64", 1)


@pytest.fixture(scope="module")
def volume(array: npt.NDArray[np.uint64], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes") / "seg"
    write_volume(folder, array, chunk_size=CHUNK, voxel_offset=OFFSET, resolution=RESOLUTION, mips=1)
    return folder
