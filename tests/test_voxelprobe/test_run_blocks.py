"""Files of a group's values by block of point numbers, against dictionaries and sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxelprobe.arrays import sort_unique
from voxelprobe.errors import StaleRunError
from voxelprobe.records import POINT, STATUS, read_columns
from voxelprobe.run import blocks

DTYPES = ("u1", "u2", "u4", "u8", "i1", "i8", "f4")
SOME = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_DIFFERENT_ROWS", 3)


def draw_values(seed: int, dtype: str, count: int) -> np.ndarray:
    """Return values of all bits, some of them often."""
    rng = np.random.default_rng(seed)
    values = np.frombuffer(rng.bytes(count * np.dtype(dtype).itemsize), dtype).copy()
    if dtype == "f4":
        values[rng.random(count) < 0.2] = np.nan
        values[rng.random(count) < 0.2] = rng.choice([0.0, -0.0])
    return np.where(rng.random(count) < 0.5, values[:1] if count else values, values)


@SOME
@given(points=st.lists(st.integers(0, 60), unique=True), seed=st.integers(0, 2**32), dtype=st.sampled_from(DTYPES))
def test_values_come_back_by_block_and_in_order(tmp_path: Path, small_blocks, points, seed, dtype) -> None:
    """Each point is in its block, once, with its values; and all are given back in the order they were written in."""
    numbers = np.array(points, np.int64)
    values, status = draw_values(seed, dtype, len(points)), np.arange(len(points), dtype=np.uint8)
    path = tmp_path / "labels.parquet"
    facts = blocks.write_blocks(path, numbers, {STATUS: status, "label": values}, "label", values, size=7)
    file = blocks.BlockFile.of_facts(path, facts)
    expected = {point: (state, value.tobytes()) for point, state, value in zip(points, status, values, strict=True)}
    found = {}
    for block in facts["blocks"]:
        part, states, labels = file.read_block(block, POINT, STATUS, "label")
        assert set(part // 7) == {block}
        found |= {point: (state, label.tobytes()) for point, state, label in zip(part, states, labels, strict=True)}
    assert found == expected
    assert facts["blocks"] == sorted({point // 7 for point in points})
    labels, states = file.read_points(numbers, "label", STATUS)
    assert (labels.tobytes(), states.tolist()) == (values.tobytes(), status.tolist())
    assert labels.dtype == values.dtype


@SOME
@given(groups=st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 40)), max_size=5), dtype=st.sampled_from(DTYPES))
def test_different_values_of_all_groups_are_counted(tmp_path: Path, small_blocks, groups, dtype) -> None:
    """The count is that of a set of all values together, with one NaN and one zero, whatever the groups share."""
    shared = draw_values(5, dtype, 30)
    everything, streams = set(), []
    for number, (seed, count) in enumerate(groups):
        values = np.concatenate([draw_values(seed, dtype, count), shared[: seed % 30]])
        path = tmp_path / f"{number}.parquet"
        facts = blocks.write_blocks(path, np.arange(len(values)), {"root": values}, "root", values.reshape(-1, 1),
                                    size=7)
        own = {"nan" if np.isnan(value) else value for value in values.tolist()}
        assert facts["different"] == len(own)
        everything |= own
        streams.append(blocks.BlockFile.of_facts(path, facts).read_different("root"))
    assert blocks.count_different(streams) == len(everything)


@SOME
@given(runs=st.lists(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), max_size=6), max_size=5))
def test_runs_of_any_pieces_are_counted(runs) -> None:
    """Ascending runs are counted exactly, however they are cut."""
    streams = []
    for run in runs:
        values = iter(sorted({value for piece in run for value in piece}))
        pieces = [np.array([value for value, _ in zip(values, piece, strict=False)], np.uint64) for piece in run]
        pieces.append(np.array(list(values), np.uint64))
        streams.append(iter([piece for piece in pieces if len(piece)]))
    kept = [list(stream) for stream in streams]
    expected = {int(value) for pieces in kept for piece in pieces for value in piece}
    assert blocks.count_different(iter(pieces) for pieces in kept) == len(expected)


def test_nothing_is_counted_as_nothing() -> None:
    """No groups, or groups without values, have no different values."""
    assert blocks.count_different([]) == 0
    assert blocks.count_different([iter([]), iter([])]) == 0


@SOME
@given(seed=st.integers(0, 2**32), count=st.sampled_from([0, 1, 255, 256, 257, 1000]), kinds=st.integers(1, 600))
def test_unique_values_are_numpys(seed, count, kinds) -> None:
    """Whatever the length and the repeats, each different value comes once, ascending, as `np.unique` has it."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**64, kinds, dtype=np.uint64)[rng.integers(0, kinds, count)]
    assert sort_unique(values).tolist() == np.unique(values).tolist()


def test_the_same_group_is_the_same_bytes(tmp_path: Path) -> None:
    """Labels are compared by the digest of their file."""
    points, values = np.arange(1000)[::-1], np.arange(1000, dtype=np.uint64) % 7
    for name in "ab":
        blocks.write_blocks(tmp_path / name, points, {"label": values}, "label", values, size=7)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kinds", [3, 5000])
def test_a_flipped_bit_is_noticed(tmp_path: Path, kinds: int) -> None:
    """Wherever a byte of a file changes, reading either fails with a word or gives what was written."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**63, kinds, dtype=np.uint64)[rng.integers(0, kinds, 5000)]
    path, damaged = tmp_path / "labels.parquet", tmp_path / "damaged.parquet"
    facts = blocks.write_blocks(path, np.arange(5000), {"label": values}, "label", values, size=5000)
    content = path.read_bytes()
    noticed = 0
    for at in rng.integers(0, len(content), 200).tolist():
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        try:
            point, label = blocks.BlockFile.of_facts(damaged, facts).read_block(0, POINT, "label")
        except StaleRunError:
            noticed += 1
        else:
            assert (label == values).all()
            assert (point == np.arange(5000)).all()
    assert noticed > 50


def test_a_piece_that_is_not_there_is_a_stale_run(tmp_path: Path) -> None:
    """A marker that lists more blocks than the file has is not believed."""
    path = tmp_path / "labels.parquet"
    blocks.write_blocks(path, np.arange(9), {"label": np.arange(9)}, "label", np.zeros(0, np.int64), size=9)
    with pytest.raises(StaleRunError, match=r"labels\.parquet: expected the columns label of a run"):
        read_columns(path, "label", pieces=[1])
