from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.points import open_points

TABLE = pa.table({
    "id": pa.array([2**64 - 1 - i for i in range(10)], pa.uint64()),
    "x": pa.array([1, None, *range(8)], pa.int32()),
    "y": [0.5, float("nan"), None, *np.arange(7.0)],
    "pre_pt_position": pa.array([[1, 2, 3], None, *[[i, i, i] for i in range(8)]], pa.list_(pa.int64())),
    "kind": pa.array(list("abcabcabca")).dictionary_encode(),
    "a.b": list("abcdefghij"),
    "a": pa.array([{"b": i} for i in range(10)]),
}).replace_schema_metadata({"lab": "ours"})


def write_parquet(path: Path, table: pa.Table = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path


def write_ipc_file(path: Path, table: pa.Table = TABLE, compression: str | None = "zstd") -> Path:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


def write_ipc_stream(path: Path, table: pa.Table = TABLE) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


WRITERS = {"t.parquet": write_parquet, "t.feather": write_ipc_file, "t.arrow": write_ipc_file,
           "stream.arrow": write_ipc_stream, "T.PARQUET": write_parquet}


def same(left: pa.Table, right: pa.Table) -> bool:
    """Equality in which NaN equals NaN."""
    return left.schema.equals(right.schema) and repr(left.to_pylist()) == repr(right.to_pylist())


def read_all(path: Path, batch_rows: int = 3, columns: list[str] | None = None) -> pa.Table:
    table = open_points(path, batch_rows=batch_rows)
    return pa.Table.from_batches(table.batches(columns))


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_comes_out_as_it_went_in(tmp_path: Path, name: str) -> None:
    """Values, types, order, nulls and metadata of every column survive, and the count is exact."""
    path = WRITERS[name](tmp_path / name)
    table = open_points(path, batch_rows=3)
    assert table.num_rows == 10
    assert table.schema.metadata[b"lab"] == b"ours"
    assert same(read_all(path), TABLE)
    assert all(batch.schema.equals(table.schema, check_metadata=True) for batch in table.batches())


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 10, 11])
def test_batches_have_exactly_the_rows_asked_for(tmp_path: Path, name: str, rows: int) -> None:
    """Whatever pieces a file is made of, batches are cut at multiples of `batch_rows`, or of what a call asks for."""
    path = WRITERS[name](tmp_path / name)
    expected = [min(rows, 10 - start) for start in range(0, 10, rows)]
    assert [batch.num_rows for batch in open_points(path, batch_rows=rows).batches()] == expected
    assert [batch.num_rows for batch in open_points(path, batch_rows=2).batches(rows=rows)] == expected


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("columns", [["y"], ["kind", "id"], ["a.b"], ["a"], ["a", "a.b"]])
def test_columns_come_in_the_order_asked_for(tmp_path: Path, name: str, columns: list[str]) -> None:
    """A selection has exactly the columns named, also where one name begins like another's path."""
    assert same(read_all(WRITERS[name](tmp_path / name), columns=columns), TABLE.select(columns))


@pytest.mark.parametrize("name", WRITERS)
def test_no_rows_are_a_legal_table(tmp_path: Path, name: str) -> None:
    """A table without rows has a schema, 0 rows and no batches."""
    table = open_points(WRITERS[name](tmp_path / name, TABLE.slice(0, 0)))
    assert (table.num_rows, list(table.batches())) == (0, [])
    assert table.schema.names == TABLE.schema.names


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_read_twice_the_same(tmp_path: Path, name: str) -> None:
    """Every call of `batches` starts at the first row."""
    table = open_points(WRITERS[name](tmp_path / name), batch_rows=4)
    assert [b.num_rows for b in table.batches(["x"])] == [b.num_rows for b in table.batches(["x"])] == [4, 4, 2]


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 7), max_size=6), rows=st.integers(1, 20))
def test_recut_batches_together_are_the_table(tmp_path_factory: pytest.TempPathFactory, sizes: list[int],
                                              rows: int) -> None:
    """For any pieces and any batch size, the batches concatenated are the pieces concatenated."""
    path = tmp_path_factory.mktemp("recut") / "t.arrow"
    values = np.arange(sum(sizes))
    pieces = np.split(values, np.cumsum(sizes))
    schema = pa.schema([("v", pa.int64()), ("kind", pa.dictionary(pa.int32(), pa.string()))])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for piece in pieces:
            kinds = pa.array([f"k{v % 5}" for v in piece], pa.string()).dictionary_encode()  # a dictionary a piece
            writer.write_batch(pa.record_batch([pa.array(piece, pa.int64()), kinds], schema=schema))
    batches = list(open_points(path, batch_rows=rows).batches())
    assert [b.num_rows for b in batches] == [min(rows, len(values) - i) for i in range(0, len(values), rows)]
    assert [v for b in batches for v in b["v"].to_pylist()] == values.tolist()
    assert [k for b in batches for k in b["kind"].to_pylist()] == [f"k{v % 5}" for v in values]


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "u1", "<u8", "f2", "<f4", ">f8", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_of_any_number_type(tmp_path: Path, dtype: str, order: str) -> None:
    """Integers and floats of any size, byte order and memory order are columns x, y and z."""
    array = np.asarray(np.arange(30).reshape(10, 3), dtype=dtype, order=order)
    np.save(tmp_path / "p.npy", array)
    table = open_points(tmp_path / "p.npy", batch_rows=4)
    assert table.num_rows == 10
    assert table.schema.names == ["x", "y", "z"]
    found = pa.Table.from_batches(table.batches(["z", "x", "y"]))
    assert found.column_names == ["z", "x", "y"]
    assert [found[axis].to_numpy().tolist() for axis in "xyz"] == array.T.tolist()


def test_npy_without_rows(tmp_path: Path) -> None:
    """An array of shape (0, 3) is a table without rows."""
    np.save(tmp_path / "p.npy", np.zeros((0, 3), np.int64))
    assert open_points(tmp_path / "p.npy").num_rows == 0
    assert list(open_points(tmp_path / "p.npy").batches()) == []


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((3, 2)), np.zeros((2, 3, 3)), np.zeros((2, 3), bool),
                                   np.zeros((2, 3), complex), np.zeros((2, 3), "S1"),
                                   np.zeros(2, [("x", int), ("y", int), ("z", int)])])
def test_npy_of_another_shape_or_type(tmp_path: Path, array: np.ndarray) -> None:
    """Whatever isn't (n, 3) numbers is refused, naming the file and what it holds."""
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(InputError, match=r"p\.npy: expected a NumPy array of integers or floats of shape .*, found .+"):
        open_points(tmp_path / "p.npy")


def test_npy_never_unpickles(tmp_path: Path) -> None:
    """A pickle under the name of an array is refused, not opened."""
    (tmp_path / "p.npy").write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(InputError, match=r"p\.npy: expected a NumPy array"):
        open_points(tmp_path / "p.npy")
    np.save(tmp_path / "o.npy", np.array([[1, 2, None]], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"o\.npy: expected a NumPy array"):
        open_points(tmp_path / "o.npy")


def test_a_folder_is_read_in_path_order(tmp_path: Path) -> None:
    """All Parquet files below a folder, sorted by relative path; `_` and `.` names and other files don't count."""
    for number, name in enumerate(["b/1.parquet", "a.parquet", "b/0.parquet", "c.parquet"]):
        write_parquet(tmp_path / "t" / name, pa.table({"x": [number, number]}))
    for name in ["_x.parquet", ".y.parquet", "_temporary/0.parquet", ".z/0.parquet"]:
        write_parquet(tmp_path / "t" / name, pa.table({"other": ["no"]}))
    (tmp_path / "t" / "_SUCCESS").touch()
    (tmp_path / "t" / "notes.txt").touch()
    table = open_points(tmp_path / "t", batch_rows=3)
    assert table.num_rows == 8
    assert [b["x"].to_pylist() for b in table.batches()] == [[1, 1, 2], [2, 0, 0], [3, 3]]


@pytest.mark.parametrize(("second", "found"), [
    ({"x": [1.5], "y": [1]}, "column 'x' as double, not int64,"), ({"x": [1]}, "no column 'y'"),
    ({"x": [1], "y": [1], "z": [1]}, "another column 'z'"), ({"y": [1], "x": [1]}, "the columns in the order y, x"),
])
def test_a_folder_has_one_schema(tmp_path: Path, second: dict[str, list[float]], found: str) -> None:
    """Files of different columns are refused, naming the file and the first difference."""
    write_parquet(tmp_path / "a.parquet", pa.table({"x": [1], "y": [1]}))
    write_parquet(tmp_path / "b.parquet", pa.table(second))
    with pytest.raises(InputError, match=rf"columns of a\.parquet, found {found} in .*b\.parquet"):
        open_points(tmp_path)


def test_folders_of_other_layouts(tmp_path: Path) -> None:
    """Hive partitions and logged tables are refused: columns or deletions would be lost without a word."""
    write_parquet(tmp_path / "hive" / "year=2024" / "a.parquet")
    with pytest.raises(UnsupportedError, match=r"partitioned by folders as in 'year=2024'"):
        open_points(tmp_path / "hive")
    write_parquet(tmp_path / "delta" / "a.parquet")
    (tmp_path / "delta" / "_delta_log").mkdir()
    with pytest.raises(UnsupportedError, match=r"Delta Lake"):
        open_points(tmp_path / "delta")
    write_parquet(tmp_path / "ice" / "data" / "a.parquet")
    (tmp_path / "ice" / "metadata").mkdir()
    (tmp_path / "ice" / "metadata" / "v1.metadata.json").touch()
    with pytest.raises(UnsupportedError, match=r"Iceberg"):
        open_points(tmp_path / "ice")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none: expected a folder with \.parquet files, found none"):
        open_points(tmp_path / "none")
    write_parquet(tmp_path / "loop" / "a.parquet")
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"linked into it more than once"):
        open_points(tmp_path / "loop")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.parquet", b"", "expected a Parquet file, found an empty file"),
    ("a.npy", b"", "found an empty file"),
    ("a.csv", b"", "found an empty file"),
    ("a.parquet", b"x,y,z\n1,2,3\n", r"begins with b'PAR1', found b'x,y,'"),
    ("a.parquet", b"PAR1" + b"0" * 20 + b"PARE", "encrypted"),
    ("a.parquet", b"PAR1" + b"0" * 20 + b"PAR1", "expected a Parquet file, found a damaged or cut one"),
    ("a.feather", b"FEA1....", "Feather version 1"),
    ("a.arrow", b"PAR1....", "expected an Arrow IPC file"),
    ("a.feather", b"ARROW1\0\0" + b"0" * 20 + b"ARROW1", "found a damaged or cut one"),
    ("a.tsv", b"x\ty", r"ends in one of \.parquet, \.csv, \.csv\.gz, .*found \.tsv"),
    ("a", b"x", "found no suffix"),
])
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """A file that isn't what its suffix says is refused at opening, naming it, what was expected and what was found."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, UnsupportedError), match=rf"points table .*{name}: .*{message}"):
        open_points(tmp_path / name)


def test_no_such_file(tmp_path: Path) -> None:
    """A path that isn't there is an InputError that names it."""
    with pytest.raises(InputError, match=r"nothing\.parquet: no such file"):
        open_points(tmp_path / "nothing.parquet")
    (tmp_path / "t.csv").write_text("x\n1\n")
    with pytest.raises(InputError, match=r"one row a batch or more, found 0"):
        open_points(tmp_path / "t.csv", batch_rows=0)


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "stream.arrow", "p.npy"])
def test_a_cut_file_is_never_a_shorter_table(tmp_path: Path, name: str) -> None:
    """Cut at any byte, a file is an InputError: no row goes missing without a word."""
    path = tmp_path / name
    if name == "p.npy":
        np.save(path, np.arange(12).reshape(4, 3))
    else:
        WRITERS[name](path, TABLE.select(["x", "id"]))
    whole = path.read_bytes()
    for size in range(0, len(whole), 1 if len(whole) < 1500 else 7):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"points table .*: expected"):
            read_all(path)


def test_damage_inside_a_parquet_file(tmp_path: Path) -> None:
    """Damage that only reading finds is an InputError that names the file, from the iteration."""
    path = write_parquet(tmp_path / "t.parquet", pa.table({"x": np.arange(1000)}))
    whole = bytearray(path.read_bytes())
    whole[4:40] = bytes(36)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"t\.parquet: expected a .*Parquet file, found a damaged"):
        list(open_points(path).batches())


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "stream.arrow"])
def test_columns_are_unique(tmp_path: Path, name: str) -> None:
    """A column name that stands twice is refused, and so is a table without columns."""
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["x", "y", "x"])
    with pytest.raises(InputError, match=r"expected unique column names, found more than one column named 'x'"):
        open_points(WRITERS[name](tmp_path / name, twice))
    with pytest.raises(InputError, match=r"expected columns, found none"):
        open_points(WRITERS[name](tmp_path / name, pa.table({})))


def test_asking_for_columns_that_are_not_there(tmp_path: Path) -> None:
    """An unknown column or an empty selection is an InputError; the message lists the columns."""
    table = open_points(write_parquet(tmp_path / "t.parquet", pa.table({"x": [1], "y": [2]})))
    with pytest.raises(InputError, match=r"no column 'q'; its columns are x, y"):
        list(table.batches(["q"]))
    with pytest.raises(InputError, match=r"expected one column or more"):
        list(table.batches([]))


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    """A table of another length than when it was opened ends in an error, not in a shifted result."""
    path = write_parquet(tmp_path / "t.parquet", pa.table({"x": [1, 2]}))
    table = open_points(path)
    write_parquet(path, pa.table({"x": [1, 2, 3]}))
    with pytest.raises(InputError, match=r"expected 2 rows, found 3; did it change"):
        list(table.batches())
