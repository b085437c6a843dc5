"""Which columns of a Parquet result are written through a dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.points import open_writer
from voxelprobe.points.parquet_encodings import choose_dictionaries

ROWS = 1 << 17
# Readers that took any other for these, or crashed on it, are in use (docs/design/009-merging.md).
KNOWN_TO_ALL = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY"}


def few(kinds: int, dtype: str = "i8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, kinds, ROWS).astype(dtype)


def sparse(values: np.ndarray, garbage: int) -> Any:
    """Return values that are null but for one in ten, with `garbage` in the places of the nulls."""
    absent = np.arange(len(values)) % 10 > 0
    noise = np.random.default_rng(garbage).integers(0, 1 << 60, len(values))
    data = np.where(absent, noise, values).astype(np.int64)
    bits = pa.py_buffer(np.packbits(~absent, bitorder="little").data)
    return pa.Array.from_buffers(pa.int64(), len(values), [bits, pa.py_buffer(data.data)])


@pytest.mark.parametrize(("column", "pays"), [
    (few(512), True), (few(30_000, "u8"), True), (few(200_000), False), (np.arange(ROWS), False), (few(7, "f4"), True),
    (np.random.default_rng(0).random(ROWS), False), (few(9, "u1"), True), (few(3)[:100], False), (few(3)[:0], False),
    (["a", "b"] * (ROWS // 2), True), (pa.array(["ok"] * ROWS).dictionary_encode(), True),
    (sparse(few(5), 0), True), (sparse(np.arange(ROWS), 0), False), (pa.nulls(ROWS, pa.int64()), True),
    (pa.array([True, False] * (ROWS // 2)), False), (sparse(few(5), 0).slice(3, 70_001), True),
])
def test_numbers_that_repeat_are_written_through_a_dictionary(column: Any, pays: bool) -> None:
    """Texts always, numbers where few of a sample differ, and never where there are too few to matter."""
    assert choose_dictionaries(pa.record_batch({"v": pa.array(column)})) == (["v"] if pays else [])


@pytest.mark.parametrize("values", [few(5), few(31_000), np.arange(ROWS)])
def test_what_stands_in_the_place_of_nulls_decides_nothing(values: np.ndarray) -> None:
    """The same values and nulls have the same encoding, whatever memory the nulls lie in."""
    choices = {tuple(choose_dictionaries(pa.record_batch({"v": sparse(values, seed)}))) for seed in range(3)}
    assert len(choices) == 1


def test_no_reader_meets_an_encoding_that_it_may_not_know(tmp_path: Path) -> None:
    """Columns are plain or of a dictionary, whose values come back; a later row group may have more of them."""
    later = {"few": np.arange(ROWS), "many": few(5), "x": few(99)}
    batches = [pa.record_batch({"few": few(99), "many": np.arange(ROWS), "x": few(9)}), pa.record_batch(later)]
    path = tmp_path / "r.parquet"
    with open_writer(path, batches[0].schema) as writer:
        for batch in batches:
            writer.write(batch)
    metadata = pq.read_metadata(path)
    encodings = [set(metadata.row_group(0).column(i).encodings) for i in range(3)]
    assert all(found <= KNOWN_TO_ALL for found in encodings)
    assert [metadata.row_group(0).column(i).has_dictionary_page for i in range(3)] == [True, False, True]
    assert metadata.row_group(0).column(0).statistics.max == 98
    assert pq.read_table(path).equals(pa.Table.from_batches(batches))
