import numpy as np
import pytest

from voxelprobe.errors import StaleRunError
from voxelprobe.records import (
    NOT_SET,
    STATUS_LABELS,
    Status,
    label_columns,
    read_columns,
    status_column,
    write_columns,
)


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
