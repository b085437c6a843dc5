import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.planning import MAX_GROUPS, ChunkJobs, RegionTally, locate_points, order_by_chunk
from voxelprobe.records import Status
from voxelprobe.volume.grid import ChunkGrid, Regions
from voxelprobe.volume.info import Scale, Sharding

SHARDINGS = {
    "files": None,
    "identity": Sharding("identity", 1, 2, 3),
    "murmur": Sharding("murmurhash3_x86_128", 1, 1, 4),
    "cut": Sharding("murmurhash3_x86_128", 0, 3, 0),
}


def make_regions(shape, sharding=None, chunk_size=(4, 3, 2), offset=(-7, 5, 11)):
    size = tuple(n * c - 1 if c > 1 else n for n, c in zip(shape, chunk_size, strict=True))
    return Regions.of(Scale("k", size, offset, (4.0, 4.0, 40.0), chunk_size, "raw", np.dtype("<u8"), 1, None, sharding))


def test_every_point_has_the_status_of_where_it_is():
    """In the volume, outside of it, or nowhere; nowhere wins, and whatever stands there as a voxel is not looked at."""
    grid = ChunkGrid((10, 20, -30), (8, 8, 8), (4, 4, 4))
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
    located = locate_points(np.array([c[0] for c in cases], np.int64), np.array([c[1] for c in cases]), grid)
    assert located.status.tolist() == [c[2] for c in cases]
    for (_, _, status, chunk, place), got in zip(cases, zip(located.chunks, located.places, strict=True), strict=True):
        assert status != Status.OK or got == (chunk, place)


@pytest.mark.parametrize("count", [0, 3])
def test_all_points_inside_are_as_some_inside(count):
    """Whether others are outside changes nothing for the points inside."""
    grid = ChunkGrid((0, 0, 0), (9, 9, 9), (4, 4, 4))
    voxels = np.arange(3 * count, dtype=np.int64).reshape(-1, 3)
    alone = locate_points(voxels, np.ones(count, bool), grid)
    beside = locate_points(np.concatenate([voxels, [[-1, 0, 0]]]), np.ones(count + 1, bool), grid)
    assert (alone.chunks == beside.chunks[:-1]).all()
    assert (alone.places == beside.places[:-1]).all()
    assert (alone.status == beside.status[:-1]).all()


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


def tally_of(regions, batches):
    tally = RegionTally(regions)
    for batch in batches:
        tally.add(batch)
    return tally


@pytest.mark.parametrize("kind", SHARDINGS)
@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(1, 20)] * 3), st.integers(0, 300), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_tally_counts_points_however_they_are_batched(kind, shape, count, seed, batches):
    """Points a region are the same in one batch or several; chunks count once a batch."""
    regions = make_regions(shape, SHARDINGS[kind])
    chunks = np.random.default_rng(seed).integers(0, math.prod(shape), count)
    whole, split = tally_of(regions, [chunks]), tally_of(regions, np.array_split(chunks, batches))
    points = Counter(regions.numbers(chunks).tolist())
    needed = Counter(regions.numbers(np.unique(chunks)).tolist())
    assert whole.numbers.tolist() == split.numbers.tolist() == sorted(points)
    assert whole.points.tolist() == split.points.tolist() == [points[n] for n in sorted(points)]
    assert whole.chunks.tolist() == [needed[n] for n in sorted(points)]
    again = Counter()
    for batch in np.array_split(chunks, batches):
        again.update(regions.numbers(np.unique(batch)).tolist())
    assert split.chunks.tolist() == [again[n] for n in sorted(points)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 10**7)), max_size=700))
def test_groups_are_runs_of_regions_numbered_from_0(costs):
    """Every region has a group; groups are at most 256 runs of neighbouring regions, 0, 1, 2, … without a gap."""
    tally = RegionTally(make_regions((2, 2, 2)))
    tally.numbers = np.arange(len(costs))
    tally.chunks, tally.points = np.array(costs, np.int64).reshape(-1, 2).T
    groups = tally.cut_groups()
    assert len(groups) == len(costs)
    assert set(np.diff(groups, prepend=0).tolist()) <= {0, 1}
    assert groups.max(initial=0) < MAX_GROUPS


@pytest.mark.parametrize(("regions", "chunks", "groups"), [
    (1, 4096, 1), (15, 1, 1), (16, 1, 4), (64, 8, 4), (64, 64, 8), (1000, 1, 4), (10_000, 512, 256), (3, 4096, 3)])
def test_equal_regions_make_equal_groups(regions, chunks, groups):
    """A run has groups of about 512 chunks; four at least where there is work to share, 256 at most."""
    tally = RegionTally(make_regions((2, 2, 2)))
    tally.numbers, tally.points, tally.chunks = np.arange(regions), np.zeros(regions), np.full(regions, chunks)
    sizes = np.bincount(tally.cut_groups())
    assert len(sizes) == groups
    assert sizes.max() - sizes.min() <= 1
