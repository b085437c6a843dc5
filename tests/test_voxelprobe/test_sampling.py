"""The engine that notebooks call: its units, its answers for points without a label, its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxelprobe import CorruptDataError, InputError, UnsupportedError, sample_points
from voxelprobe.testing.encoders import LABEL_ENCODINGS as ENCODINGS
from voxelprobe.testing.faults import Fault
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import chunk_name, write_volume

SHAPE, CHUNK, OFFSET = (45, 40, 21), (16, 16, 8), (13, 7, 101)
END = tuple(o + s for o, s in zip(OFFSET, SHAPE, strict=True))
SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "data_encoding": "gzip"}


@pytest.fixture
def oracle(known: Callable[..., Any]) -> Any:
    return known()


def sample(volume: object, points: Any, **options: Any) -> tuple[list[Any], list[str]]:
    """Return labels, None where masked, and statuses."""
    labels, status = sample_points(str(volume), points, return_status=True, **options)
    return labels.tolist(), status.tolist()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(*[st.integers(1, 20)] * 3), chunk=st.tuples(*[st.integers(1, 9)] * 3),
    offset=st.tuples(*[st.integers(-30, 30)] * 3), sharded=st.booleans(), compress=st.sampled_from([None, "gzip"]),
    seed=st.integers(0, 2**32 - 1), overhang=st.integers(0, 4),
)
def test_any_grid(
    tmp_path_factory: pytest.TempPathFactory, size: Any, chunk: Any, offset: Any, sharded: bool, compress: Any,
    seed: int, overhang: int,
) -> None:
    """At any size, chunk size and offset, points inside get the array's value, and only they have one."""
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 2**64, size, dtype=np.uint64)
    folder = tmp_path_factory.mktemp("grid")
    write_volume(folder, array, chunk_size=chunk, voxel_offset=offset, sharding=SHARDING if sharded else None,
                 compress=None if sharded else compress)
    points = rng.integers(-overhang, np.array(size) + overhang, (200, 3))
    inside = ((points >= 0) & (points < size)).all(axis=1)
    labels, status = sample_points(f"file://{folder}", points + offset, return_status=True)
    np.testing.assert_array_equal(np.ma.getmaskarray(labels), ~inside)
    np.testing.assert_array_equal(status, np.where(inside, "ok", "out_of_bounds"))
    np.testing.assert_array_equal(labels[inside].data, array[tuple(points[inside].T)])


def test_every_kind_of_point_is_accounted_for(tmp_path: Path, oracle: Any) -> None:
    """NaN and infinity are invalid, far away is outside, and neither disturbs the points beside them."""
    oracle.write(tmp_path)
    points = np.array([OFFSET, [np.nan, 8, 102], END, [14.9, 7.5, 101.999], [np.inf, 0, 0], [1e300, -1e300, 0]])
    labels, status = sample(tmp_path, points)
    assert status == ["ok", "invalid_coordinate", "out_of_bounds", "ok", "invalid_coordinate", "out_of_bounds"]
    assert labels == [oracle.array[0, 0, 0], None, None, oracle.array[1, 0, 0], None, None]


def test_numbers_beyond_int64_lie_outside(tmp_path: Path, oracle: Any) -> None:
    """The largest and least integers of every width don't wrap around into the volume."""
    oracle.write(tmp_path)
    for dtype in (np.uint64, np.int64, np.int32, np.uint8):
        limits = np.iinfo(dtype)
        points = np.array([[limits.max] * 3, [limits.min] * 3, [limits.max, 8, 102]], dtype)
        assert sample(tmp_path, points)[1] == ["out_of_bounds"] * 3


def test_shapes(tmp_path: Path, oracle: Any) -> None:
    """One point may come as (3,); no points give no labels, in the volume's dtype; anything else is an error."""
    oracle.write(tmp_path)
    assert sample_points(str(tmp_path), OFFSET).tolist() == [oracle.array[0, 0, 0]]
    for nothing in ([], np.zeros((0, 3))):
        labels = sample_points(str(tmp_path), nothing)
        assert (labels.shape, labels.dtype) == ((0,), np.uint64)
    for wrong in (np.zeros((3, 2)), np.zeros(4), 5, np.array([["1", "2", "3"]]), np.zeros((1, 3), complex)):
        with pytest.raises(InputError, match=r"expected numbers of shape \(n, 3\), found"):
            sample_points(str(tmp_path), wrong)


def test_fractional_resolution(tmp_path: Path, oracle: Any) -> None:
    """Points in nm of a 17.2 nm volume fall into the voxel that they are in, to the last nm (17 would be 100 off)."""
    oracle.write(tmp_path, resolution=(17.2, 17.2, 30.5))
    points = oracle.points()
    first_nm = np.ceil(points * np.array([172, 172, 305]) / 10).astype(np.int64)
    last_nm = np.ceil((points + 1) * np.array([172, 172, 305]) / 10).astype(np.int64) - 1
    for nm in (first_nm, last_nm):
        labels = sample_points(str(tmp_path), nm, coord_resolution="nm")
        np.testing.assert_array_equal(labels.data, oracle.at(points))


@pytest.mark.parametrize(("unit", "factor"), [("4,4,40", 1), ((2, 2, 20), 2), ("8,8,80", 0.5), ("nm", (4, 4, 40)),
                                              (None, 1), ("0.5,0.5,5", 8)])
def test_units(tmp_path: Path, oracle: Any, unit: Any, factor: Any) -> None:
    """The same places in other units have the same labels, as integers and as floats."""
    oracle.write(tmp_path)
    points = oracle.points()
    given = points * factor
    for values in (given.astype(float), given):
        labels = sample_points(f"file://{tmp_path}", values, coord_resolution=unit)
        np.testing.assert_array_equal(labels.data, oracle.at(points))


def test_default_unit_is_mip_0(tmp_path: Path, oracle: Any) -> None:
    """At mip 1, by index or by resolution, points are still in voxels of mip 0; in its own unit if that is said."""
    oracle.write(tmp_path, voxel_offset=(14, 8, 101), mips=1, encoding="compressed_segmentation")
    mip0 = (oracle.points() - OFFSET) // (2, 2, 1) * (2, 2, 1) + (14, 8, 101)
    expected = oracle.array[tuple((mip0 - (14, 8, 101)).T)]
    other_corner = mip0 + np.array([1, 1, 0])
    for mip in (1, "1", "8,8,40", "8.0,8,40"):
        np.testing.assert_array_equal(sample_points(str(tmp_path), other_corner, mip=mip).data, expected)
    own = sample_points(str(tmp_path), mip0 // (2, 2, 1), mip=1, coord_resolution="8,8,40")
    np.testing.assert_array_equal(own.data, expected)


def test_stored_zero_is_a_label(tmp_path: Path) -> None:
    """A stored 0 is label 0 with status ok: it is not a point without a label."""
    write_volume(tmp_path, np.zeros((4, 4, 4), np.uint64), chunk_size=(2, 2, 2))
    assert sample(tmp_path, [[1, 2, 3]]) == ([0], ["ok"])


@pytest.mark.parametrize("sharding", [None, SHARDING], ids=["files", "shards"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_absent_and_empty_chunks_and_their_neighbours(
    tmp_path: Path, oracle: Any, encoding: str, sharding: Any
) -> None:
    """cloud-volume #563, #696: voxels of an absent or zero-byte chunk are missing, those beside it have labels."""
    absent, empty = (1, 0, 0), (0, 1, 2)
    oracle.write(tmp_path, encoding=encoding, sharding=sharding, skip_chunks=[absent], empty_chunks=[empty])
    points = oracle.points()
    grid = (points - OFFSET) // CHUNK
    missing = (grid == absent).all(axis=1) | (grid == empty).all(axis=1)
    assert 0 < missing.sum() < len(points)
    labels, status = sample_points(str(tmp_path), points, return_status=True)
    np.testing.assert_array_equal(status, np.where(missing, "missing_chunk", "ok"))
    np.testing.assert_array_equal(np.ma.getmaskarray(labels), missing)
    np.testing.assert_array_equal(labels[~missing].data, oracle.at(points)[~missing])
    with pytest.raises(InputError, match=f"chunk .* of file://{tmp_path}/4_4_40 is not in the store"):
        sample_points(str(tmp_path), points, missing_chunks="error")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_one_past_the_last_voxel(tmp_path: Path, oracle: Any, encoding: str) -> None:
    """cloud-volume #537: one voxel past any of the six faces is out_of_bounds, the last one before it has its label."""
    oracle.write(tmp_path, encoding=encoding)
    middle = [o + s // 2 for o, s in zip(OFFSET, SHAPE, strict=True)]
    outer, inner = [], []
    for axis in range(3):
        for outside, inside in ((OFFSET[axis] - 1, OFFSET[axis]), (END[axis], END[axis] - 1)):
            outer.append([*middle[:axis], outside, *middle[axis + 1:]])
            inner.append([*middle[:axis], inside, *middle[axis + 1:]])
    labels, status = sample(tmp_path, outer + inner)
    assert status == ["out_of_bounds"] * 6 + ["ok"] * 6
    assert labels == [None] * 6 + oracle.at(np.array(inner)).tolist()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_single_voxels(tmp_path: Path, oracle: Any, encoding: str) -> None:
    """cloud-volume #650: a point asked for alone has the label that it has among others."""
    oracle.write(tmp_path, encoding=encoding)
    for point in oracle.points(random=0)[::9]:
        assert sample(tmp_path, point) == ([oracle.at(point[None])[0]], ["ok"])


def test_scales_and_volumes_never_share_cached_chunks(tmp_path: Path, oracle: Any) -> None:
    """Two scales, and two volumes of one name, give their own labels out of one cache folder, also the second time."""
    other = type(oracle)(oracle.array[::-1].copy(), oracle.offset)
    oracle.write(tmp_path / "a/seg", mips=1, mip_factor=(1, 1, 1), resolution=(4, 4, 40))
    # The second scale of the same size and chunks, with other content.
    info = json.loads((tmp_path / "a/seg/info").read_text())
    info["scales"][1] |= {"key": "other", "resolution": [5, 5, 40]}
    (tmp_path / "a/seg/info").write_text(json.dumps(info))
    other.write(tmp_path / "b/seg", resolution=(5, 5, 40))
    (tmp_path / "b/seg/5_5_40").rename(tmp_path / "a/seg/other")
    oracle.write(tmp_path / "c/seg", encoding="compressed_segmentation")
    other.write(tmp_path / "b/seg")
    for _ in range(2):
        oracle.check(tmp_path / "a/seg", cache=tmp_path / "cache")
        other.check(tmp_path / "a/seg", cache=tmp_path / "cache", mip=1, coord_resolution="5,5,40")
        other.check(tmp_path / "b/seg", cache=tmp_path / "cache")
        oracle.check(tmp_path / "c/seg", cache=tmp_path / "cache")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_corrupt_chunk_costs_its_own_points(tmp_path: Path, oracle: Any, encoding: str) -> None:
    """A chunk that isn't one gives corrupt_chunk to its points alone; without statuses it is an error that names it."""
    info = oracle.write(tmp_path, encoding=encoding)
    name = chunk_name(info["scales"][0], (1, 1, 1))
    (tmp_path / name).write_bytes(b"<html>not a chunk</html>")
    points = oracle.points()
    bad = ((points - OFFSET) // CHUNK == 1).all(axis=1)
    labels, status = sample_points(str(tmp_path), points, return_status=True, cache=tmp_path / "cache")
    np.testing.assert_array_equal(status, np.where(bad, "corrupt_chunk", "ok"))
    np.testing.assert_array_equal(labels[~bad].data, oracle.at(points)[~bad])
    with pytest.raises(CorruptDataError, match=f"chunk {name.split('/')[1]} of file://{tmp_path}/4_4_40: "):
        sample_points(str(tmp_path), points)
    oracle.write(tmp_path, encoding=encoding)
    oracle.check(tmp_path, cache=tmp_path / "cache")


def test_progress_counts_each_chunk_twice(tmp_path: Path, oracle: Any) -> None:
    """Each needed chunk is told of when it is fetched and when it is read, and the bytes are those received."""
    oracle.write(tmp_path)
    calls: list[tuple[int, int]] = []
    sample_points(str(tmp_path), oracle.points(), progress=lambda chunks, received: calls.append((chunks, received)))
    stored = [path.stat().st_size for path in (tmp_path / "4_4_40").iterdir()]
    assert sum(chunks for chunks, _ in calls) == 2 * len(stored)
    assert sum(received for _, received in calls) == sum(stored)


def test_what_cannot_be_opened_is_said(tmp_path: Path, oracle: Any) -> None:
    """No volume, no JSON, no such scale and an unknown encoding are errors that name the volume and what it has."""
    with pytest.raises(InputError, match=f"no volume at file://{tmp_path}/none"):
        sample_points(f"{tmp_path}/none", OFFSET)
    oracle.write(tmp_path / "seg", mips=1)
    with pytest.raises(InputError, match="has no mip 2; its scales are 0: 4,4,40 nm; 1: 8,8,40 nm"):
        sample_points(f"{tmp_path}/seg", OFFSET, mip=2)
    info = (tmp_path / "seg/info").read_text()
    (tmp_path / "seg/info").write_text(info.replace('"raw"', '"holographic"'))
    with pytest.raises(UnsupportedError, match="holographic"):
        sample_points(f"{tmp_path}/seg", OFFSET)
    (tmp_path / "seg/info").write_text(info[:-30])
    with pytest.raises(InputError, match="seg/info: expected JSON"):
        sample_points(f"{tmp_path}/seg", OFFSET)


def test_an_info_that_is_cut_on_its_way(oracle: Any, tmp_path: Path) -> None:
    """An info that isn't JSON is asked for again before it is complained of."""
    oracle.write(tmp_path / "seg")
    with HttpStore(tmp_path / "seg") as store:
        store.fail("info", Fault("truncated"), times=2)
        oracle.check(store.url)
        store.fail("info", Fault("truncated"), times=None)
        store.clear()
        with pytest.raises(InputError, match="/info: expected JSON, found b'"):
            sample_points(store.url, OFFSET)
        assert [request.path for request in store.requests] == ["info"] * 3
