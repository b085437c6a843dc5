import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.errors import UnsupportedError
from voxelprobe.sharding.locate import locate_chunks
from voxelprobe.sharding.spec import Sharding
from voxelprobe.volume.boxes import unravel
from voxelprobe.volume.grid import MAX_CHUNKS_OF_SHARD_REGION, MAX_REGIONS, ChunkGrid, Regions
from voxelprobe.volume.scale import Scale

triples = st.tuples(*[st.integers(1, 40)] * 3)
offsets = st.tuples(*[st.integers(-10_000, 10_000) | st.integers(-(2**53), 2**53)] * 3)
chunk_sizes = st.tuples(*[st.integers(1, 17) | st.sampled_from([1, 2, 4, 8, 16, 64])] * 3)
shardings = st.builds(Sharding, st.sampled_from(["identity", "murmurhash3_x86_128"]),
                      st.integers(0, 12), st.integers(0, 6), st.integers(0, 10))


def make_scale(size, chunk_size=(1, 1, 1), voxel_offset=(0, 0, 0), sharding=None):
    return Scale("k", size, voxel_offset, (4.0, 4.0, 40.0), chunk_size, "raw", np.dtype("<u8"), 1, None, sharding)


@settings(deadline=None)
@given(triples, offsets, chunk_sizes, st.randoms(use_true_random=False))
def test_a_voxel_is_where_a_search_through_all_chunks_finds_it(size, offset, chunk_size, random):
    """Chunk, place, shape and name of every voxel are those of the one chunk of the grid that holds it."""
    grid = ChunkGrid.of(make_scale(size, chunk_size, offset))
    voxels = [tuple(o + random.randrange(s) for o, s in zip(offset, size, strict=True)) for _ in range(20)]
    voxels += [offset, tuple(o + s - 1 for o, s in zip(offset, size, strict=True))]
    chunks, places = grid.locate(np.array(voxels, np.int64))
    found = grid.positions(chunks).tolist()
    inside = grid.voxels_of(places).tolist()
    for voxel, (position, local) in zip(voxels, zip(found, inside, strict=True), strict=True):
        begin, end = [], []
        for v, o, s, c in zip(voxel, offset, size, chunk_size, strict=True):
            start = next(b for b in range(o, o + s, c) if b <= v < b + c)
            begin.append(start)
            end.append(min(start + c, o + s))
        assert grid.chunk_name(position) == "_".join(f"{b}-{e}" for b, e in zip(begin, end, strict=True))
        assert grid.chunk_shape(position) == tuple(e - b for b, e in zip(begin, end, strict=True))
        assert local == [v - b for v, b in zip(voxel, begin, strict=True)]


@settings(deadline=None)
@given(triples, offsets, chunk_sizes)
def test_chunk_numbers_count_the_chunks_x_fastest(size, offset, chunk_size):
    """Chunk numbers are 0, 1, 2, … without a gap, and lead back to their places in the grid."""
    grid = ChunkGrid.of(make_scale(size, chunk_size, offset))
    shape = [-(-s // c) for s, c in zip(size, chunk_size, strict=True)]
    assert list(grid.shape) == shape
    corners = [[o + p * c for o, p, c in zip(offset, (x, y, z), chunk_size, strict=True)]
               for z, y, x in product(*map(range, reversed(shape)))][:3000]
    chunks, places = grid.locate(np.array(corners, np.int64))
    assert chunks.tolist() == list(range(len(corners)))
    assert not places.any()


@settings(deadline=None)
@given(triples, offsets, st.lists(st.tuples(*[st.integers(-2, 42)] * 3), min_size=1, max_size=30))
def test_a_voxel_is_inside_when_every_axis_is(size, offset, steps):
    """The volume is the half-open box from its offset on; its far faces are outside."""
    voxels = [[o + step for o, step in zip(offset, triple, strict=True)] for triple in steps]
    expected = [all(0 <= step < s for step, s in zip(triple, size, strict=True)) for triple in steps]
    assert ChunkGrid.of(make_scale(size, (7, 7, 7), offset)).contains(np.array(voxels, np.int64)).tolist() == expected


@pytest.mark.parametrize(("size", "offset", "chunk_size"), [
    ((45, 40, 21), (13, 7, 102), (16, 16, 8)),
    ((45, 40, 21), (-13, -7, -102), (16, 16, 8)),
    ((300, 513, 48), (26385, 30308, 14850), (256, 256, 32)),
    ((5, 5, 5), (1, 1, 1), (64, 64, 64)),
])
def test_chunk_names_are_cloudvolumes(size, offset, chunk_size):
    """A volume's chunks have the names that cloud-volume reads, odd offsets and clipped ends included."""
    from cloudvolume.datasource.precomputed.image.common import chunknames
    from cloudvolume.lib import Bbox, Vec

    bounds = Bbox.from_delta(offset, size)
    grid = ChunkGrid.of(make_scale(size, chunk_size, offset))
    ours = [grid.chunk_name(tuple(p)) for p in grid.positions(np.arange(math.prod(grid.shape))).tolist()]
    assert sorted(ours) == sorted(chunknames(bounds, bounds, "", Vec(*chunk_size)))
    for name in ours:
        assert Bbox.from_filename(name).to_filename() == name


def test_a_grid_beyond_64_bits_is_refused():
    """Chunk numbers that would overflow are refused before any is computed."""
    with pytest.raises(UnsupportedError, match="beyond 64-bit numbers"):
        ChunkGrid.of(make_scale((2**21, 2**21, 2**20)))
    grid = ChunkGrid.of(make_scale((2**21, 2**21, 2**19)))
    last = np.array([[2**21 - 1, 2**21 - 1, 2**19 - 1]], np.int64)
    assert grid.positions(grid.locate(last)[0]).tolist() == last.tolist()


def test_voxels_at_the_ends_of_int64_are_outside():
    """Distances beyond int64 wrap to no place inside, whatever the volume's offset."""
    odd = np.iinfo(np.int64)
    far = np.array([[odd.min] * 3, [odd.max] * 3, [2**53] * 3], np.int64)
    for offset in (-(2**53), 0, 2**53):
        grid = ChunkGrid.of(make_scale((100, 100, 100), (7, 8, 9), (offset,) * 3))
        assert grid.contains(far).tolist() == [False, False, offset == 2**53]


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 24)] * 3), st.none() | shardings)
def test_region_and_cell_are_the_chunk(shape, spec):
    """A region's cells are its chunks, in their order; no region has more than its capacity, hashed ones aside."""
    regions = Regions.of(make_scale(shape, sharding=spec))
    every = np.arange(math.prod(shape))
    numbers, cells = regions.cells([axis.astype(np.uint32) for axis in regions.grid.positions(every).T])
    if numbers is None:
        numbers = regions.numbers(cells)
    assert (numbers == regions.numbers(every)).all()
    assert (regions.chunks(numbers, cells) == every).all()
    assert (np.lexsort((cells, numbers)) == np.lexsort((every, numbers))).all()
    if spec is None or spec.hash == "identity":
        assert np.unique(numbers, return_counts=True)[1].max() <= regions.capacity()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 2), (1, 5, 4), (8, 4, 2), (40, 50, 60)])
def test_unravel_is_the_x_fastest_place(shape):
    """Flat numbers are read as NumPy does in Fortran order."""
    numbers = np.arange(math.prod(shape))
    assert (unravel(numbers, shape) == np.stack(np.unravel_index(numbers, shape, "F"), 1)).all()
    assert unravel(numbers[:0], shape).shape == (0, 3)


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 3))
def test_unsharded_regions_are_blocks_that_partition_the_grid(shape):
    """Every chunk is in one region; a region is one box of at most 8 x 8 x 8 neighbours; numbers are 0, 1, 2, …."""
    regions = Regions.of(make_scale(shape))
    every = np.arange(math.prod(shape))
    numbers = regions.numbers(every)
    assert set(numbers.tolist()) == set(range(int(numbers.max()) + 1))
    positions = regions.grid.positions(every)
    for number in np.unique(numbers)[:: max(1, int(numbers.max()) // 50)]:
        members = positions[numbers == number]
        extent = members.max(0) - members.min(0) + 1
        assert extent.prod() == len(members) <= 512
        assert extent.max() <= 8


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 2**20)] * 3), st.randoms(use_true_random=False))
def test_there_are_never_too_many_unsharded_regions(shape, random):
    """However large the grid, a folder has at most 65,536 region files; and a small grid is shared among workers."""
    regions = Regions.of(make_scale(shape))
    random_places = [[random.randrange(s) for s in shape] for _ in range(50)]
    corner = [s - 1 for s in shape]
    numbers = regions.numbers(regions.grid.locate(np.array([*random_places, corner], np.int64))[0])
    assert numbers.min() >= 0
    assert numbers.max() == numbers[-1] < MAX_REGIONS
    assert numbers[-1] + 1 >= min(16, math.prod(shape))


@pytest.mark.parametrize(("shape", "most", "least"), [((1, 1, 1), 1, 1), ((4, 4, 1), 16, 16), ((2, 3, 2), 12, 12),
                                                      ((100, 1, 1), 25, 16)])
def test_a_small_volume_has_regions_for_several_workers(shape, most, least):
    """A few dozen chunks are cut finer, so that they are no single worker's."""
    regions = Regions.of(make_scale(shape))
    assert least <= len(set(regions.numbers(np.arange(math.prod(shape))).tolist())) <= most


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 24)] * 3), shardings)
def test_a_sharded_region_never_mixes_shards(shape, spec):
    """Every chunk is in one region, all of whose chunks are in one shard; equal minishards stay together."""
    regions = Regions.of(make_scale(shape, sharding=spec))
    every = np.arange(math.prod(shape))
    numbers = regions.numbers(every)
    where = locate_chunks(regions.grid.positions(every), shape, spec)
    shards_of = {(int(number), int(shard)) for number, shard in zip(numbers, where.shards, strict=True)}
    assert len(shards_of) == len(set(numbers.tolist()))
    places = set(zip(where.shards.tolist(), where.minishards.tolist(), numbers.tolist(), strict=True))
    assert len(places) == len({(shard, minishard) for shard, minishard, _ in places})


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 30)] * 3), st.one_of(st.none(), shardings), st.randoms(use_true_random=False))
def test_a_chunks_region_doesnt_depend_on_who_asks(shape, spec, random):
    """The region of a chunk is the same whatever other chunks are asked for, in whatever order."""
    regions = Regions.of(make_scale(shape, sharding=spec))
    numbers = regions.numbers(np.arange(math.prod(shape)))
    some = np.array([random.randrange(len(numbers)) for _ in range(20)], np.int64)
    assert regions.numbers(some).tolist() == numbers[some].tolist()
    assert regions.numbers(some[:0]).shape == (0,)


def test_a_large_shard_is_cut_by_its_minishards():
    """A shard of 2^15 chunks becomes 8 regions of whole minishards, each of 4,096 chunks at most."""
    spec = Sharding("identity", 9, 6, 3)
    shape = (64, 64, 64)
    regions = Regions.of(make_scale(shape, sharding=spec))
    every = np.arange(64**3)
    numbers = regions.numbers(every)
    where = locate_chunks(regions.grid.positions(every), shape, spec)
    assert set(Counter(numbers.tolist()).values()) == {MAX_CHUNKS_OF_SHARD_REGION}
    assert (numbers == where.shards * 8 + where.minishards // 8).all()


@pytest.mark.parametrize(("spec", "cut"), [
    (Sharding("identity", 12, 0, 5), 0),  # nothing to cut by
    (Sharding("identity", 12, 1, 5), 1),
    (Sharding("identity", 0, 3, 15), 0),  # 8 chunks a shard
    (Sharding("murmurhash3_x86_128", 0, 6, 0), 6),
    (Sharding("murmurhash3_x86_128", 0, 6, 7), 0),
])
def test_a_shard_is_cut_no_finer_than_needed(spec, cut):
    """Small shards stay whole, and no minishard is ever cut."""
    assert Regions.of(make_scale((64, 64, 64), sharding=spec)).cut_bits == cut


def test_regions_of_64_shard_bits_stay_apart():
    """Shard numbers that fill 64 bits don't run into each other."""
    spec = Sharding("murmurhash3_x86_128", 0, 0, 64)
    regions = Regions.of(make_scale((16, 16, 16), sharding=spec))
    assert len(set(regions.numbers(np.arange(4096)).tolist())) == 4096
