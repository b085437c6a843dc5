import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.ordering import expand, find_runs, merge_runs, sort_run, stable_order

DTYPES = [np.uint8, np.uint16, np.uint32, np.uint64, np.int64]


def numbers(rng, dtype, count, spread):
    """Numbers in a window of `spread` anywhere in the dtype's range, the extremes too."""
    info = np.iinfo(dtype)
    spread = min(spread, int(info.max) - int(info.min))
    low = [info.min, info.max - spread, min(max(info.min, 0), info.max - spread)][rng.integers(3)]
    return np.array([int(low) + int(step) for step in rng.integers(0, spread, count, np.uint64, endpoint=True)], dtype)


@pytest.mark.parametrize("few", [0, 10**9], ids=["counting", "comparing"])
@settings(deadline=None, max_examples=60)
@given(dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3), count=st.integers(1, 3000),
       spread=st.sampled_from([0, 1, 100, 4095, 4096, 2**20, 2**32, 2**63, 2**64 - 1]), seed=st.integers(0, 2**32 - 1))
def test_the_order_is_that_of_sorting_tuples(few, dtypes, count, spread, seed):
    """By the last key, then the one before; equals stay in their order, by counting digits and by comparing."""
    rng = np.random.default_rng(seed)
    keys = [numbers(rng, dtype, count, spread) for dtype in dtypes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxelprobe.ordering._FEW", few)
        order = stable_order(*keys)
    tuples = list(zip(*(key.tolist() for key in reversed(keys)), strict=True))
    assert order.tolist() == sorted(range(count), key=lambda row: tuples[row])


def test_nothing_has_an_order():
    """No numbers are no runs, and in order."""
    nothing = np.zeros(0, np.int64)
    assert len(stable_order(nothing, nothing)) == len(find_runs(nothing)) == len(expand(nothing, nothing)) == 0
    merged = merge_runs([sort_run(5, None, nothing, nothing, nothing)])
    assert (len(merged.points), merged.first.tolist()) == (0, [0])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1))
def test_runs_are_of_equal_neighbours(pairs):
    """A run begins where either key changes."""
    expected = [i for i, pair in enumerate(pairs) if i == 0 or pairs[i - 1] != pair]
    assert find_runs(*np.array(pairs).T).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 9))))
def test_expanded_pieces_follow_each_other(pieces):
    """Each piece counts up from its begin."""
    begins, counts = np.array(pieces, np.int64).reshape(-1, 2).T
    assert expand(begins, counts).tolist() == [b + i for b, c in pieces for i in range(c)]


@pytest.mark.parametrize("kind", ["shuffled", "neighbours", "one"])
@pytest.mark.parametrize("gathered", [7, 1 << 16])
@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 400), batches=st.integers(1, 6), wide=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_merged_runs_are_the_table_sorted_by_chunk(kind, gathered, count, batches, wide, seed):
    """Points by region, cell and number, each with its place, whatever pieces the table came in."""
    rng = np.random.default_rng(seed)
    regions = rng.integers(-3, 3, count) * (2**61 if wide else 1)
    cells = rng.integers(0, 5, count).astype(np.uint64) * np.uint64(2**61 if wide else 1)
    if kind == "neighbours":
        regions, cells = regions[np.arange(count) // 40], cells[np.arange(count) // 40]
    if kind == "one":
        regions[:], cells[:] = regions[0], cells[0]
    places = rng.integers(0, 2**32, count, np.uint32)
    chosen = np.flatnonzero(rng.random(count) < 0.8)  # the others lie in no chunk
    start = 2**40
    runs = []
    for rows in np.array_split(np.arange(count), batches):
        mine = chosen[(chosen >= rows.min(initial=count)) & (chosen <= rows.max(initial=-1))]
        if len(mine):
            runs.append(sort_run(start + int(rows[0]), mine - int(rows[0]), regions[mine], cells[mine], places[mine]))
    if not runs:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voxelprobe.ordering._GATHERED", gathered)
        merged = merge_runs(runs)
    expected = sorted(chosen.tolist(), key=lambda row: (int(regions[row]), int(cells[row]), row))
    assert merged.points.tolist() == [start + row for row in expected]
    assert merged.places.tolist() == places[expected].tolist()
    assert merged.places.dtype == np.uint32
    keys = list(dict.fromkeys((int(regions[row]), int(cells[row])) for row in expected))
    assert list(zip(merged.regions.tolist(), merged.cells.tolist(), strict=True)) == keys
    counts = [sum((int(regions[row]), int(cells[row])) == key for row in expected) for key in keys]
    assert np.diff(merged.first).tolist() == counts
