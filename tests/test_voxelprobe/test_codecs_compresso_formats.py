"""compresso streams of both formats, all windows and all dtypes, and what earlier releases wrote.

The streams of `SURPLUS` were written by release 2.3.1 of compresso from PyPI, with windows of 2 x 2 x 1 or 2 x 2 x 2:
after 127 windows of value 0 in a row it wrote one more.
"""

import base64
from itertools import product

import compresso as package
import numpy as np
import pytest

from voxelprobe.codecs import compresso
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError
from voxelprobe.testing.contracts import Crashed, call_in_children, every_voxel, flip_bits, make_segments, read_damaged

STEPS = [step for step in product((1, 2, 3, 4, 5, 7, 8), (1, 2, 4, 8), (1, 2, 3, 4)) if np.prod(step) <= 64]
STEPS += [(64, 1, 1), (1, 64, 1), (1, 1, 64), (16, 4, 1), (1, 9, 7)]
SHAPE = (23, 19, 7)


def check_same(payload, array):
    """Some voxels, one alone and all of them have the labels that were encoded, and those of a full decode."""
    layout = ChunkLayout(array.shape, 1, array.dtype)
    assert np.array_equal(package.decompress(payload), array)
    voxels = every_voxel(layout.shape)
    for some in (voxels, voxels[::-7], voxels[voxels[:, 2] % 3 == 1], voxels[len(voxels) // 2:][:1]):
        assert np.array_equal(compresso.read_points(payload, layout, some)[:, 0], array[tuple(some.T)])


@pytest.mark.parametrize("connectivity", [4, 6])
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<u8"])
def test_every_size_of_windows(dtype, connectivity):
    """Windows of 1 to 64 voxels, of all shapes, read as written, in both formats the package has."""
    versions = set()
    for i, steps in enumerate(STEPS):
        array = make_segments(ChunkLayout(SHAPE, 1, np.dtype(dtype)), i)[..., 0]
        for has_index in (True, False):
            payload = package.compress(
                array, steps=steps, connectivity=connectivity, random_access_z_index=has_index
            )
            versions.add(payload[4])
            check_same(payload, array)
    assert versions == ({0, 1} if connectivity == 4 else {0})


@pytest.mark.parametrize("shape", [(15, 8, 3), (16, 8, 3), (128, 256, 2), (255, 128, 2), (1, 1, 300), (300, 1, 1)])
def test_indices_at_the_bounds_of_their_widths(shape):
    """Where the counts of a slice just fit the index's width, or just don't, chunks read as they were written."""
    rng = np.random.default_rng(0)
    for most in (2**60, 3):
        array = np.asfortranarray(rng.integers(0, most, shape).astype("<u8"))
        check_same(package.compress(array), array)


@pytest.mark.parametrize("ends", [(0, 1), (2, 5), (6, 7), (0, 7)])
def test_same_as_the_packages_slices(ends):
    """The labels of the slices from one to another are those of the package's own `decompress(z=...)`."""
    begin, end = ends
    array = make_segments(ChunkLayout(SHAPE, 1, np.dtype("<u8")))[..., 0]
    payload = package.compress(array)
    part = package.decompress(payload, z=ends)
    voxels = every_voxel(part.shape)
    labels = compresso.read_points(payload, ChunkLayout(SHAPE, 1, np.dtype("<u8")), voxels + np.array([0, 0, begin]))
    assert part.shape[2] == end - begin
    assert np.array_equal(labels[:, 0], part[tuple(voxels.T)])


SURPLUS = {
    "one label": "Y3BzbwABIAAgAAYAAgIBBgAAAAAAAAABAAAAAAAAAAAAAAAECQkJCQkJAP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/ABk=",
    "one label, deep windows": "Y3BzbwABGAAYAAQAAgICBAAAAAAAAAABAAAAAAAAAAAAAAAECQkJCQD/AP8ARQ==",
    "several before": "Y3BzbwABIAAgAAYAAgIBBwAAAAAAAAADAAAAAQAAAAAAAAAEBAkJCQkJCQAFDAsEAv8A/wD/AP8A/wD/AP8A/wD/AP8A"
                      "/wD/ABU=",
    "several behind": "Y3BzbwABIAAgAAYAAgIBCAAAAAAAAAADAAAAAgAAAAAAAAAEBAkJCQkJBAkABQwLCwQC/wD/AP8A/wD/AP8A/wD/AP8A/wAR"
                      "BAL/AP8A",
}


def surplus(kind):
    """Return such a stream, and what was encoded."""
    array = np.full((24, 24, 4) if "deep" in kind else (32, 32, 6), 9, "u1", order="F")
    if "several" in kind:
        array[:3, :2, 0] = 4
    if "behind" in kind:
        array[:3, :2, -1] = 4
    return base64.b64decode(SURPLUS[kind]), array


@pytest.mark.parametrize("kind", list(SURPLUS)[:3])
def test_windows_too_many_that_do_no_harm(kind):
    """A chunk of one label, or of one from some place on, reads as written, though its windows were counted wrongly."""
    payload, array = surplus(kind)
    outcome, = call_in_children(lambda each: check_same(each, array), [payload])
    assert outcome is None, outcome


def test_windows_too_many_that_move_others():
    """Where the windows too many move boundaries, so that the package decodes wrong labels, the chunk is refused."""
    payload, array = surplus("several behind")
    decoded, = call_in_children(package.decompress, [payload])
    assert not np.array_equal(decoded, array)
    layout = ChunkLayout(array.shape, 1, array.dtype)
    for some in (every_voxel(array.shape), np.zeros((1, 3), np.int64)):
        with pytest.raises(CorruptDataError, match="expected 1536 windows, found"):
            compresso.read_points(payload, layout, some)


@pytest.mark.parametrize("kind", list(SURPLUS)[:3])
def test_damage_beside_windows_too_many(kind):
    """Of such a chunk, too, damage raises CorruptDataError or gives what the package's full decode gives."""
    payload, array = surplus(kind)
    layout = ChunkLayout(array.shape, 1, array.dtype)
    voxels = every_voxel(array.shape)
    original = array[tuple(voxels.T)]
    damaged = [payload[:end] for end in range(len(payload))] + [payload + b"\0", payload + b"\1"]
    damaged += flip_bits(payload, 150)
    outcomes = read_damaged(compresso, layout, damaged, voxels)
    assert all(isinstance(outcome, CorruptDataError | np.ndarray) for outcome in outcomes)
    others = [i for i, outcome in enumerate(outcomes)
              if isinstance(outcome, np.ndarray) and not np.array_equal(outcome[:, 0], original)]
    references = call_in_children(package.decompress, [damaged[i] for i in others], calls_a_child=1)
    assert others
    for i, reference in zip(others, references, strict=True):
        assert not isinstance(reference, Crashed)
        assert np.array_equal(outcomes[i][:, 0], reference[tuple(voxels.T)])
