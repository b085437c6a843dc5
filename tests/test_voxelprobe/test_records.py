import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe.arrays import from_arrow, to_arrow
from voxelprobe.errors import StaleRunError
from voxelprobe.records import (
    NOT_SET,
    STATUS_LABELS,
    Status,
    label_columns,
    read_columns,
    status_column,
    write_columns,
    write_pieces,
)
from voxelprobe.testing.contracts import call_in_children


@pytest.mark.parametrize(("prefix", "channels", "labels", "status"), [
    (None, 1, ["label"], "status"),
    (None, 3, ["label_0", "label_1", "label_2"], "status"),
    ("pre_pt", 1, ["pre_pt_label"], "pre_pt_status"),
    ("pre_pt", 2, ["pre_pt_label_0", "pre_pt_label_1"], "pre_pt_status"),
])
def test_columns_of_the_result_are_named_by_prefix_and_channel(prefix, channels, labels, status):
    """The names are those that the README promises."""
    assert label_columns(prefix, channels) == labels
    assert status_column(prefix) == status


def test_statuses_are_the_promised_words():
    """The words, and the numbers that stand in files of a run, are fixed; none is the number of no status yet."""
    assert STATUS_LABELS == ["ok", "out_of_bounds", "missing_chunk", "invalid_coordinate", "corrupt_chunk", "no_root"]
    assert [int(status) for status in Status] == list(range(6))
    assert NOT_SET not in [int(status) for status in Status]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i8", "f4"])
@pytest.mark.parametrize("count", [0, 1, 70_000])
def test_columns_come_back_as_they_were(tmp_path, dtype, count):
    """Every dtype is kept to the last bit, unsigned 64-bit above 2^63 included; views and other orders too."""
    values = np.frombuffer(np.random.default_rng(1).bytes(3 * count * np.dtype(dtype).itemsize), dtype)[::3]
    if dtype == "f4":
        values = np.nan_to_num(values)
    write_columns(tmp_path / "a=b.parquet", {"point": np.arange(count), "label": values})
    label, point = read_columns(tmp_path / "a=b.parquet", "label", "point")
    assert label.dtype == values.dtype
    assert label.tolist() == values.tolist()
    assert point.tolist() == list(range(count))


def test_a_file_is_the_same_bytes_every_time(tmp_path):
    """Nothing of the time or the machine enters a file, so that labels can be compared by digest."""
    for name in "ab":
        write_columns(tmp_path / name, {"label": np.arange(1000, dtype=np.uint64)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"PAR1"),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    lambda path: path.write_bytes(path.read_bytes()[:-20] + bytes(20)),
    lambda path: path.write_bytes(bytes(500) + path.read_bytes()[500:]),
    lambda path: write_columns(path, {"other": np.arange(3)}),
])
def test_a_file_that_isnt_ours_or_is_damaged_is_a_stale_run(tmp_path, damage):
    """The message names the file and the columns that were looked for."""
    path = tmp_path / "points-000.parquet"
    write_columns(path, {"point": np.arange(1000) ** 3, "place": np.arange(1000)})
    damage(path)
    with pytest.raises(StaleRunError, match=r"points-000\.parquet: expected the columns point, place of a run, found"):
        read_columns(path, "point", "place")


@pytest.mark.parametrize("part", ["footer", "page headers", "anywhere"])
def test_no_flipped_bit_is_another_number(tmp_path, part):
    """One or two bits flipped, in the footer too, of which Parquet has no checksum: a stale run or what was written."""
    rng = np.random.default_rng(1)
    columns = {"point": np.sort(rng.integers(0, 10**6, 3000)), "status": rng.integers(0, 3, 3000).astype("u1"),
               "label": rng.integers(10**19, 18 * 10**18, 3000, np.uint64)}
    path = tmp_path / "labels.parquet"
    write_pieces(path, [{name: values[some] for name, values in columns.items()}
                        for some in (slice(1500), slice(1500, None))], few=["status"])
    good = path.read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    places = list(range(len(good)))
    if part == "footer":
        places = places[footer - 12 :]
    elif part == "page headers":
        metadata = pq.ParquetFile(path).metadata
        chunks = [metadata.row_group(group).column(column) for group in range(2) for column in range(3)]
        offsets = [offset for chunk in chunks for offset in (chunk.dictionary_page_offset, chunk.data_page_offset)]
        places = [place for offset in offsets if offset for place in range(offset, offset + 30)]

    def read(wrong):
        damaged = bytearray(good)
        for place, bit in wrong:
            damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        try:
            found = read_columns(path, *columns)
        except StaleRunError:
            return "stale"
        return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, columns.values(), strict=True))

    flips = [[(int(rng.choice(places)), int(rng.integers(8))) for _ in range(rng.integers(1, 3))] for _ in range(700)]
    outcomes = call_in_children(read, flips)
    assert set(outcomes) <= {"stale", True}
    assert outcomes.count("stale") > 600


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40), st.integers(0, 40))
def test_booleans_in_arrow(values: list[bool], start: int, size: int) -> None:
    """Packed bits are the booleans that they were made of, and as slices of them are read."""
    array = np.array(values, np.bool_)
    assert to_arrow(array).equals(pa.array(values, pa.bool_()))
    assert from_arrow(to_arrow(array).slice(start, size)).tolist() == values[start : start + size]
    assert to_arrow(array, array).to_pylist() == [None if value else False for value in values]
