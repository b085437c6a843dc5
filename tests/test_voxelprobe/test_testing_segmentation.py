from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from voxelprobe.testing.segmentation import neurite_segmentation

SHAPE = (64, 56, 40)


def test_a_seed_decides_every_voxel() -> None:
    """The same seed gives the same labels, another seed others."""
    first, again, other = (neurite_segmentation(SHAPE, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_it_is_laid_out_as_chunks_are() -> None:
    """The array has the shape asked for, x fastest."""
    labels = neurite_segmentation(SHAPE)
    assert (labels.shape, labels.dtype, labels.flags.f_contiguous) == (SHAPE, np.uint64, True)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_looks_like_tissue(seed: int) -> None:
    """Membranes take 5 to 20 %, many processes cross, no label has nearly all, and most voxels equal the one below."""
    labels = neurite_segmentation((96, 96, 32), seed)
    assert 0.05 < (labels == 0).mean() < 0.2
    counts = np.bincount(labels.astype(np.int64).ravel())[1:]
    assert (counts > 0).sum() > 20
    assert counts.max() < 0.6 * labels.size
    assert (labels[..., 1:] == labels[..., :-1]).mean() > 0.6


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_large_ids_are_the_same_labels_renamed(dtype: Any) -> None:
    """Large ids lie in the upper half of the dtype, one for each small id, and don't change the picture."""
    small = neurite_segmentation(SHAPE, 3, dtype=dtype)
    large = neurite_segmentation(SHAPE, 3, dtype=dtype, large_ids=True)
    assert large.dtype == np.dtype(dtype)
    assert large[large > 0].min() > np.iinfo(dtype).max // 2
    pairs = {(int(a), int(b)) for a, b in zip(small.ravel(), large.ravel(), strict=True)}
    assert len(pairs) == len(np.unique(small)) == len(np.unique(large))


def test_every_voxel_has_the_nearest_owner() -> None:
    """Neighbouring blocks agree: the picture of a part is that of the whole, wherever its blocks begin."""
    import voxelprobe.testing.segmentation as module

    rng, extent = np.random.default_rng(4), np.array([40.0, 40.0, 60.0])
    beads = module._grow_processes(rng, extent, 12.0, 1)
    states = rng.bit_generator.state
    found = module._nearest_owner(rng, (40, 40, 24), np.array([1, 1, 2.5]), beads, 12.0)
    for x, y in ((0, 0), (15, 16), (39, 39)):
        rng.bit_generator.state = states
        part = module._nearest_owner(rng, (x + 1, y + 1, 24), np.array([1, 1, 2.5]), beads, 12.0)
        np.testing.assert_array_equal(part, found[: x + 1, : y + 1])


def test_small_and_flat_volumes_work() -> None:
    """One voxel, one slice and no cell body are legal."""
    assert neurite_segmentation((1, 1, 1)).shape == (1, 1, 1)
    assert neurite_segmentation((50, 3, 1), bodies=0).shape == (50, 3, 1)
