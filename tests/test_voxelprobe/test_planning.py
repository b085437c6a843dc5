import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.ordering import sort_run
from voxelprobe.planning import (
    MAX_GROUPS,
    ChunkJobs,
    RegionTally,
    cut_groups,
    locate_points,
    merge_jobs,
    order_by_chunk,
)
from voxelprobe.points.units import UnitConversion
from voxelprobe.records import Status
from voxelprobe.sharding.spec import Sharding
from voxelprobe.volume.boxes import BLOCK
from voxelprobe.volume.grid import Regions
from voxelprobe.volume.scale import Scale

SHARDINGS = {
    "files": None,
    "identity": Sharding("identity", 1, 2, 3),
    "murmur": Sharding("murmurhash3_x86_128", 1, 1, 4),
    "cut": Sharding("murmurhash3_x86_128", 0, 3, 0),
}


def make_regions(shape, sharding=None, chunk_size=(4, 3, 2), offset=(-7, 5, 11), size=None):
    size = size or tuple(n * c - 1 if c > 1 else n for n, c in zip(shape, chunk_size, strict=True))
    return Regions.of(Scale("k", size, offset, (4.0, 4.0, 40.0), chunk_size, "raw", np.dtype("<u8"), 1, None, sharding))


SAME_UNIT = UnitConversion((Fraction(1),) * 3)


def axes_of(voxels, dtype=np.int64):
    return list(np.array(voxels, dtype).reshape(-1, 3).T)


def chunks_of(located, regions, rows=slice(None)):
    return regions.chunks(located.regions[rows], located.cells[rows])


def test_every_point_has_the_status_of_where_it_is():
    """In the volume, outside of it, or nowhere; nowhere wins, and whatever stands there as a voxel is not looked at."""
    regions = make_regions((2, 2, 2), None, (4, 4, 4), (10, 20, -30), size=(8, 8, 8))
    odd = np.iinfo(np.int64)
    cases = [
        ((10, 20, -30), True, Status.OK, 0, 0),
        ((17, 27, -23), True, Status.OK, 7, 63),
        ((9, 20, -30), True, Status.OUT_OF_BOUNDS, None, None),
        ((10, 20, -22), True, Status.OUT_OF_BOUNDS, None, None),
        ((odd.min, odd.max, 0), True, Status.OUT_OF_BOUNDS, None, None),
        ((10, 20, -30), False, Status.INVALID_COORDINATE, None, None),
        ((odd.min, odd.min, odd.max), False, Status.INVALID_COORDINATE, None, None),
        ((14, 21, -29), True, Status.OK, 1, 4 + 16),
    ]
    located = locate_points(axes_of([c[0] for c in cases]), np.array([c[1] for c in cases]), SAME_UNIT, regions)
    assert located.status.tolist() == [c[2] for c in cases]
    found = zip(chunks_of(located, regions), located.places, strict=True)
    for (_, _, status, chunk, place), got in zip(cases, found, strict=True):
        assert status != Status.OK or got == (chunk, place)


def test_floats_that_are_nowhere_are_no_points():
    """NaN and infinities are invalid on any axis, also beside axes of integers; far numbers are just outside."""
    regions = make_regions((2, 2, 2), None, (4, 4, 4), (0, 0, 0), size=(8, 8, 8))
    x = np.array([1.5, math.nan, math.inf, -math.inf, 1e300, -1e300, 7.99, 8.0, -0.01, -0.0])
    located = locate_points([x, np.ones(10, np.int64), np.ones(10)], None, SAME_UNIT, regions)
    ok, out, invalid = Status.OK, Status.OUT_OF_BOUNDS, Status.INVALID_COORDINATE
    assert located.status.tolist() == [ok, invalid, invalid, invalid, out, out, ok, out, out, ok]
    assert located.places[[0, 6, 9]].tolist() == [1 + 4 + 16, 3 + 4 + 16, 4 + 16]


@pytest.mark.parametrize("kind", SHARDINGS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_point_is_in_the_chunk_that_division_says(kind, data):
    """Region, chunk, place, status are Python's own floor divisions, whatever offset, chunk size, ratio and number."""
    size = data.draw(st.tuples(*[st.integers(1, 300)] * 3))
    chunk_size = data.draw(st.tuples(*[st.integers(1, 40) | st.sampled_from([1, 2, 64, 128])] * 3))
    offset = data.draw(st.tuples(*[st.integers(-(2**40), 2**40) | st.integers(-50, 50)] * 3))
    ratio = data.draw(st.sampled_from([Fraction(1), Fraction(1, 4), Fraction(1, 40), Fraction(2), Fraction(86, 5)]))
    shape = tuple(-(-s // c) for s, c in zip(size, chunk_size, strict=True))
    regions = make_regions(shape, SHARDINGS[kind], chunk_size, offset, size=size)
    near = [st.integers(int((o - 2) / ratio) - 2, int((o + s + 1) / ratio) + 2)
            for o, s in zip(offset, size, strict=True)]
    far = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 2**62, -(2**62)])
    points = data.draw(st.lists(st.tuples(*[axis | far if data.draw(st.booleans()) else axis for axis in near]),
                                min_size=1, max_size=30))
    located = locate_points(axes_of(points), None, UnitConversion((ratio,) * 3), regions)
    chunks = chunks_of(located, regions)
    numbers = regions.numbers(np.arange(math.prod(shape)))
    for row, point in enumerate(points):
        local = [math.floor(p * ratio) - o for p, o in zip(point, offset, strict=True)]
        if all(0 <= v < s for v, s in zip(local, size, strict=True)):
            (x, y, z), (i, j, k) = zip(*(divmod(v, c) for v, c in zip(local, chunk_size, strict=True)), strict=True)
            chunk = x + shape[0] * (y + shape[1] * z)
            assert located.status[row] == Status.OK
            assert chunks[row] == chunk
            assert located.regions[row] == numbers[chunk]
            assert located.places[row] == i + chunk_size[0] * (j + chunk_size[1] * k)
        else:
            assert located.status[row] == Status.OUT_OF_BOUNDS


@pytest.mark.parametrize("count", [0, 3, 2 * BLOCK + 5])
@pytest.mark.parametrize("kind", ["files", "murmur"])
def test_points_are_located_one_by_one(kind, count):
    """Whatever stands beside a point, in however long a table, changes nothing for it."""
    regions = make_regions((5, 6, 7), SHARDINGS[kind], offset=(0, 0, 0))
    voxels = np.random.default_rng(0).integers(-1, 22, (count, 3))
    whole = locate_points(axes_of(voxels), None, SAME_UNIT, regions)
    for rows in (slice(0, 3), slice(BLOCK - 2, BLOCK + 2), slice(max(count - 2, 0), count)):
        alone = locate_points(axes_of(voxels[rows]), np.ones(len(voxels[rows]), bool), SAME_UNIT, regions)
        assert (alone.status == whole.status[rows]).all()
        ok = alone.status == Status.OK
        for name in ("regions", "cells", "places"):
            assert (getattr(alone, name)[ok] == getattr(whole, name)[rows][ok]).all()


@pytest.mark.parametrize("kind", SHARDINGS)
@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(1, 20)] * 3), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_jobs_hold_every_point_once_sorted_by_region_and_chunk(kind, shape, count, seed):
    """Jobs are a permutation of the points; each chunk stands once, by region, and its points really lie in it."""
    regions = make_regions(shape, SHARDINGS[kind])
    grid = regions.grid
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, grid.size, (count, 3)) + np.array(grid.voxel_offset)
    voxels[: count // 3] = voxels[:1]  # repeats
    chunks, places = grid.locate(voxels)
    names = rng.permutation(10 * count)[:count]
    jobs = order_by_chunk(names, chunks, places, regions)
    of_name = {int(name): row for row, name in enumerate(names)}
    rows = [of_name[int(name)] for name in jobs.points]
    assert sorted(rows) == list(range(count))
    assert jobs.places.tolist() == places[rows].tolist()
    assert list(zip(jobs.regions, jobs.chunks, strict=True)) == sorted(
        set(zip(regions.numbers(chunks), chunks, strict=True)))
    assert (jobs.first[0], jobs.first[-1]) == (0, count)
    for i, position in enumerate(grid.positions(jobs.chunks).tolist()):
        mine = rows[jobs.first[i] : jobs.first[i + 1]]
        assert mine
        assert mine == sorted(mine)
        begin = [o + p * c for o, p, c in zip(grid.voxel_offset, position, grid.chunk_size, strict=True)]
        local = voxels[mine] - begin
        assert ((local >= 0) & (local < grid.chunk_shape(tuple(position)))).all()
        assert (grid.voxels_of(jobs.places[jobs.first[i] : jobs.first[i + 1]]) == local).all()


def some_jobs(seed=0, count=300, sharding="murmur"):
    regions = make_regions((9, 8, 7), SHARDINGS[sharding])
    chunks = np.random.default_rng(seed).integers(0, 9 * 8 * 7, count)
    return order_by_chunk(np.arange(count), chunks, np.arange(count) % 24, regions)


@pytest.mark.parametrize("max_chunks", [1, 3, 1000])
def test_runs_by_region_cover_the_jobs_in_order(max_chunks):
    """Runs follow each other without a gap, none is empty, too long, or of two regions."""
    jobs = some_jobs()
    at = 0
    for region, begin, end in jobs.by_region(max_chunks):
        assert begin == at < end <= begin + max_chunks
        assert set(jobs.regions[begin:end].tolist()) == {region}
        at = end
    assert at == len(jobs.chunks)
    assert max_chunks < 1000 or len(list(jobs.by_region(max_chunks))) == len(set(jobs.regions.tolist()))


@given(st.lists(st.booleans(), min_size=40, max_size=40))
def test_selected_jobs_are_the_wanted_chunks_with_their_points(wanted):
    """Selecting keeps the wanted chunks, their points and their order; the mask finds those points among all."""
    jobs = some_jobs(count=60)
    mask = np.resize(np.array(wanted), len(jobs.chunks))
    chosen, of_points = jobs.select(mask)
    kept = [i for i in range(len(jobs.chunks)) if mask[i]]
    assert chosen.chunks.tolist() == jobs.chunks[kept].tolist()
    assert chosen.regions.tolist() == jobs.regions[kept].tolist()
    for new, old in enumerate(kept):
        a, b = slice(*chosen.first[new : new + 2]), slice(*jobs.first[old : old + 2])
        assert chosen.points[a].tolist() == jobs.points[b].tolist()
        assert chosen.places[a].tolist() == jobs.places[b].tolist()
    assert jobs.points[of_points].tolist() == chosen.points.tolist()
    assert chosen.first[-1] == len(chosen.points)


def test_no_jobs_are_no_runs():
    """Nothing to do is legal: no runs, nothing selected."""
    nothing = np.zeros(0, np.int64)
    jobs = order_by_chunk(nothing, nothing, nothing, make_regions((2, 2, 2)))
    assert list(jobs.by_region(5)) == []
    assert isinstance(jobs.select(np.zeros(0, bool))[0], ChunkJobs)
    assert jobs.first.tolist() == [0]


@pytest.mark.parametrize("kind", SHARDINGS)
@settings(deadline=None, max_examples=30)
@given(shape=st.tuples(*[st.integers(1, 20)] * 3), count=st.integers(1, 300), batches=st.integers(1, 5),
       seed=st.integers(0, 2**32 - 1))
def test_jobs_of_sorted_batches_are_those_of_the_whole_table(kind, shape, count, batches, seed):
    """Points that were sorted batch by batch and merged are the same jobs as points sorted at once."""
    regions = make_regions(shape, SHARDINGS[kind])
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, regions.grid.size, (count, 3)) + np.array(regions.grid.voxel_offset)
    voxels[: count // 2] = voxels[count // 2]
    located = locate_points(axes_of(voxels), None, SAME_UNIT, regions)
    expected = order_by_chunk(np.arange(count), *regions.grid.locate(voxels), regions)
    runs = [sort_run(int(rows[0]), None, located.regions[rows], located.cells[rows], located.places[rows])
            for rows in np.array_split(np.arange(count), batches) if len(rows)]
    jobs = merge_jobs(runs, regions)
    for name in ("chunks", "regions", "first", "points", "places"):
        assert getattr(jobs, name).tolist() == getattr(expected, name).tolist()


def tally_of(regions, batches):
    tally = RegionTally(regions)
    for batch in batches:
        jobs = order_by_chunk(batch, batch, batch, regions)
        tally.add(jobs.regions, np.diff(jobs.first))
    return tally


@pytest.mark.parametrize("kind", SHARDINGS)
@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, 20)] * 3), st.integers(0, 300), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_tally_counts_points_however_they_are_batched(kind, shape, count, seed, batches):
    """Points a region are the same in one batch or several; chunks count once a batch, up to what a region holds."""
    regions = make_regions(shape, SHARDINGS[kind])
    chunks = np.random.default_rng(seed).integers(0, math.prod(shape), count)
    whole, split = tally_of(regions, [chunks]), tally_of(regions, np.array_split(chunks, batches))
    points = Counter(regions.numbers(chunks).tolist())
    needed = Counter(regions.numbers(np.unique(chunks)).tolist())
    most = regions.capacity()
    assert whole.numbers.tolist() == split.numbers.tolist() == sorted(points)
    assert whole.points.tolist() == split.points.tolist() == [points[n] for n in sorted(points)]
    assert whole.chunks.tolist() == [min(needed[n], most) for n in sorted(points)]
    again = Counter()
    for batch in np.array_split(chunks, batches):
        again.update(regions.numbers(np.unique(batch)).tolist())
    assert split.chunks.tolist() == [min(again[n], most) for n in sorted(points)]


def test_a_tally_of_many_batches_stays_small(monkeypatch):
    """Sums in between change no count."""
    monkeypatch.setattr("voxelprobe.planning._TALLIED", 4)
    tally = RegionTally(make_regions((9, 9, 9)))
    for step in range(30):
        tally.add(np.array([1, 1, 5 + step % 3]), np.array([2, 3, 1]))
    assert tally.numbers.tolist() == [1, 5, 6, 7]
    assert tally.points.tolist() == [150, 10, 10, 10]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 10**7)), max_size=700))
def test_groups_are_runs_of_regions_numbered_from_0(costs):
    """Every region has a group; groups are at most 256 runs of neighbouring regions, 0, 1, 2, … without a gap."""
    groups = cut_groups(*np.array(costs, np.int64).reshape(-1, 2).T)
    assert len(groups) == len(costs)
    assert set(np.diff(groups, prepend=0).tolist()) <= {0, 1}
    assert groups.max(initial=0) < MAX_GROUPS


@pytest.mark.parametrize(("regions", "chunks", "groups"), [
    (1, 4096, 1), (15, 1, 1), (16, 1, 4), (64, 8, 4), (64, 64, 8), (1000, 1, 4), (10_000, 512, 256), (3, 4096, 3)])
def test_equal_regions_make_equal_groups(regions, chunks, groups):
    """A run has groups of about 512 chunks; four at least where there is work to share, 256 at most."""
    sizes = np.bincount(cut_groups(np.full(regions, chunks), np.zeros(regions)))
    assert len(sizes) == groups
    assert sizes.max() - sizes.min() <= 1
