import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.sharding.hashing import hash_codes, morton_codes

GRID_SHAPES = st.tuples(*[st.one_of(st.integers(1, 40), st.integers(1, 2**21))] * 3)


def slow_morton_code(position: tuple[int, int, int], shape: tuple[int, int, int]) -> int:
    """The format's own words: bit i of an axis counts while 2**i is less than the axis' size."""
    code = place = 0
    for bit in range(64):
        for coordinate, size in zip(position, shape, strict=True):
            if 2**bit < size:
                code |= (coordinate >> bit & 1) << place
                place += 1
    return code


def slow_murmur(message: bytes) -> bytes:
    """MurmurHash3_x86_128 with seed 0, as its author wrote it, for messages shorter than a block."""
    assert len(message) < 16
    c = [0x239B961B, 0xAB0E9789, 0x38B34AE5, 0xA1E38B93]
    rotations = [15, 16, 17, 18]
    m32 = 0xFFFFFFFF

    def rotate(x: int, r: int) -> int:
        return (x << r | x >> (32 - r)) & m32

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x85EBCA6B & m32
        x ^= x >> 13
        x = x * 0xC2B2AE35 & m32
        return x ^ x >> 16

    h = [0, 0, 0, 0]
    for i in range(4):
        k = int.from_bytes(message[4 * i : 4 * i + 4].ljust(4, b"\0"), "little")
        h[i] ^= rotate(k * c[i] & m32, rotations[i]) * c[(i + 1) % 4] & m32
    h = [x ^ len(message) for x in h]
    for step in range(2):
        h[0] = sum(h) & m32
        h[1:] = [x + h[0] & m32 for x in h[1:]]
        if step == 0:
            h = [mix(x) for x in h]
    return b"".join(x.to_bytes(4, "little") for x in h)


@st.composite
def grids(draw):
    shape = draw(GRID_SHAPES)
    positions = draw(st.lists(st.tuples(*[st.integers(0, size - 1) for size in shape]), max_size=20))
    return shape, positions


@settings(deadline=None)
@given(grids())
def test_morton_codes_are_the_formats_and_cloudvolumes(grid):
    """The codes are those of a bit-by-bit reading of the format, and those of cloud-volume."""
    from cloudvolume.datasource.precomputed.common import compressed_morton_code

    shape, positions = grid
    array = np.array(positions, np.int64).reshape(-1, 3)
    codes = morton_codes(array, shape)
    assert codes.dtype == np.uint64
    assert codes.tolist() == [slow_morton_code(p, shape) for p in positions]
    assert codes.tolist() == compressed_morton_code(array, shape).tolist()


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 2), (1, 16, 7), (2, 1, 33)])
def test_morton_codes_of_a_whole_grid_are_distinct_and_dense(shape):
    """Every position of a grid has a code of its own, below the next powers of two."""
    positions = np.argwhere(np.ones(shape, bool)).astype(np.int64)
    codes = morton_codes(positions, shape)
    assert len(set(codes.tolist())) == math.prod(shape)
    assert int(codes.max()) < math.prod(2 ** (s - 1).bit_length() for s in shape)


def test_morton_codes_use_all_64_bits():
    """A grid of exactly 64 bits works, to its last position."""
    shape = (2**22, 2**21, 2**21)
    corner = np.array([[s - 1 for s in shape], [0, 0, 0]], np.int64)
    assert morton_codes(corner, shape).tolist() == [2**64 - 1, 0]


def test_a_grid_of_more_than_64_bits_is_unsupported():
    """65 bits don't fit: the message says how many are needed."""
    with pytest.raises(UnsupportedError, match="65 bits"):
        morton_codes(np.zeros((1, 3), np.int64), (2**22, 2**22, 2**21))


@pytest.mark.parametrize("position", [(4, 0, 0), (0, 3, 0), (0, 0, -1), (-(2**63), 0, 0), (0, 2**63 - 1, 0)])
def test_a_position_outside_of_the_grid_is_refused(position):
    """A position outside is an error, never another chunk's code."""
    with pytest.raises(InputError, match="lies outside of a grid of 4 x 3 x 5"):
        morton_codes(np.array([(0, 0, 0), position], np.int64), (4, 3, 5))


def test_morton_codes_take_strided_positions():
    """Columns of a larger array in Fortran order give the same codes."""
    positions = np.random.default_rng(0).integers(0, 100, (50, 3))
    wide = np.asfortranarray(np.hstack([positions, positions]))[:, :3]
    assert (morton_codes(wide, (100, 100, 100)) == morton_codes(positions, (100, 100, 100))).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=30))
def test_murmur_is_its_authors_and_cloudvolumes(values):
    """The low 8 bytes are those of a plain transcription and of cloud-volume's mmh3."""
    from cloudvolume.datasource.precomputed import mmh3

    hashes = hash_codes(np.array(values, np.uint64), "murmurhash3_x86_128")
    assert hashes.dtype == np.uint64
    messages = [v.to_bytes(8, "little") for v in values]
    assert hashes.tolist() == [int.from_bytes(slow_murmur(m)[:8], "little") for m in messages]
    assert hashes.tolist() == [mmh3.hash64(m, x64arch=False)[0] % 2**64 for m in messages]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=30))
def test_identity_changes_nothing(values):
    """The identity hash of a value is the value."""
    assert hash_codes(np.array(values, np.uint64), "identity").tolist() == values


def test_an_unknown_hash_is_unsupported():
    """A hash that the format doesn't name is refused by name."""
    with pytest.raises(UnsupportedError, match="sha1"):
        hash_codes(np.zeros(1, np.uint64), "sha1")
