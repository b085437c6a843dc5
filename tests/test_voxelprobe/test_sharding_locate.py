import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.errors import InputError
from voxelprobe.sharding.hashing import morton_codes
from voxelprobe.sharding.locate import locate_chunks, shard_file_name
from voxelprobe.sharding.spec import Sharding


@st.composite
def specs(draw, most_minishard_bits=32):
    minishard_bits = draw(st.integers(0, most_minishard_bits))
    return Sharding(
        draw(st.sampled_from(["identity", "murmurhash3_x86_128"])),
        draw(st.integers(0, 63)),
        minishard_bits,
        draw(st.one_of(st.integers(0, 8), st.integers(0, 64 - minishard_bits))),
    )


@settings(deadline=None)
@given(specs(), st.tuples(*[st.integers(1, 2**21)] * 3), st.randoms(use_true_random=False))
def test_locations_are_cloudvolumes(spec, shape, random):
    """Shard file and minishard of every chunk are those that cloud-volume computes, whatever the specification."""
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    oracle = ShardingSpecification("neuroglancer_uint64_sharded_v1", spec.preshift_bits, spec.hash,
                                   spec.minishard_bits, spec.shard_bits)
    positions = np.array([[random.randrange(size) for size in shape] for _ in range(10)], np.int64)
    found = locate_chunks(positions, shape, spec)
    assert (found.chunk_ids == morton_codes(positions, shape)).all()
    assert {found.chunk_ids.dtype, found.shards.dtype, found.minishards.dtype} == {np.dtype(np.uint64)}
    for chunk_id, shard, minishard in zip(found.chunk_ids, found.shards, found.minishards, strict=True):
        expected = oracle.compute_shard_location(chunk_id)
        assert shard_file_name(shard, spec) == expected.shard_number + ".shard"
        assert minishard == expected.minishard_number


def test_locations_of_nothing_are_empty():
    """No positions, no locations."""
    found = locate_chunks(np.empty((0, 3), np.int64), (4, 4, 4), Sharding("murmurhash3_x86_128", 1, 2, 3))
    assert found.chunk_ids.shape == found.shards.shape == found.minishards.shape == (0,)


def test_a_preshift_of_all_bits_puts_everything_in_one_place():
    """A preshift of 64 bits leaves 0, where C's shift would leave the id."""
    found = locate_chunks(np.array([[3, 2, 1]], np.int64), (4, 4, 4), Sharding("identity", 64, 2, 3))
    assert (found.shards.tolist(), found.minishards.tolist()) == ([0], [0])


def test_a_position_outside_of_the_grid_is_refused():
    """A chunk that isn't in the grid has no location."""
    with pytest.raises(InputError):
        locate_chunks(np.array([[4, 0, 0]], np.int64), (4, 4, 4), Sharding("identity", 0, 0, 0))


@pytest.mark.parametrize(("shard", "bits", "name"), [
    (0, 0, "0.shard"), (0, 1, "0.shard"), (15, 4, "f.shard"), (0, 5, "00.shard"), (31, 5, "1f.shard"),
    (0x7ABC, 15, "7abc.shard"), (1, 64, "0000000000000001.shard"), (2**64 - 1, 64, "ffffffffffffffff.shard"),
])
def test_shard_file_names(shard, bits, name):
    """A hexadecimal digit for every 4 shard bits begun, at least one."""
    spec = Sharding("identity", 0, 0, bits)
    assert shard_file_name(shard, spec) == name
    assert shard_file_name(np.uint64(shard), spec) == name
