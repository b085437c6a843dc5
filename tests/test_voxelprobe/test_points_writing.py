from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.errors import InputError
from voxelprobe.points import check_output_suffix, open_points, open_writer

STATUS = pa.dictionary(pa.int8(), pa.string())
SCHEMA = pa.schema([
    ("id", pa.uint64()), ("y", pa.float64()), ("note", pa.string()), ("label", pa.uint32()), ("status", STATUS),
]).with_metadata({"voxelprobe": "what and where from"})
NESTED = pa.schema([("id", pa.uint64()), ("pt_position", pa.list_(pa.int64()))])


def batch(start: int, rows: int) -> pa.RecordBatch:
    index = range(start, start + rows)
    return pa.record_batch([
        pa.array([2**64 - 1 - i for i in index], pa.uint64()),
        pa.array([None if i % 4 == 0 else i / 3 for i in index]),
        pa.array([["", None, 'a "b", c', "two\nlines"][i % 4] for i in index], pa.string()),
        pa.array([None if i % 3 == 0 else i for i in index], pa.uint32()),
        pa.DictionaryArray.from_arrays(pa.array([i % 2 for i in index], pa.int8()), ["ok", "missing_chunk"]),
    ], schema=SCHEMA)


BATCHES = [batch(0, 10), batch(10, 0), batch(10, 7)]
WHOLE = pa.Table.from_batches(BATCHES)


def write(path: Path, batches: list[pa.RecordBatch] = BATCHES, schema: pa.Schema = SCHEMA) -> Path:
    with open_writer(path, schema) as writer:
        for one in batches:
            writer.write(one)
    return path


@pytest.mark.parametrize("name", ["r.parquet", "r.feather", "r.arrow", "R.PARQUET"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    """Values, nulls, types and metadata survive; only a dictionary's index type may widen."""
    table = open_points(write(tmp_path / name))
    found = pa.Table.from_batches(table.batches())
    assert table.schema.metadata[b"voxelprobe"] == b"what and where from"
    assert found.to_pylist() == WHOLE.to_pylist()
    assert found.schema.names == SCHEMA.names
    assert found.schema.types[:4] == SCHEMA.types[:4]
    assert found.schema.field("status").type.value_type == pa.string()


@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz"])
def test_csv_keeps_integers_and_nulls(tmp_path: Path, name: str) -> None:
    """Unsigned integers are written in full, nulls as empty fields, dictionaries as their texts."""
    path = write(tmp_path / name)
    content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    rows = list(csv.DictReader(content.decode().splitlines(keepends=True)))
    for row, expected in zip(rows, WHOLE.to_pylist(), strict=True):
        assert row["id"] == str(expected["id"])
        assert row["label"] == ("" if expected["label"] is None else str(expected["label"]))
        assert row["note"] == (expected["note"] or "")
        assert row["status"] == expected["status"]
        assert row["y"] == "" if expected["y"] is None else float(row["y"]) == expected["y"]
    assert content.startswith(b"id,y,note,label,status\n")
    assert content.count(b'""') > 0  # an empty text, which is not null
    found = pa.Table.from_batches(open_points(path).batches())
    assert found["id"].to_pylist() == WHOLE["id"].to_pylist()
    assert found.schema.field("id").type == pa.uint64()
    assert found["label"].to_pylist() == WHOLE["label"].to_pylist()


@pytest.mark.parametrize("name", ["r.parquet", "r.feather", "r.arrow", "r.csv", "r.csv.gz"])
def test_the_same_batches_are_the_same_bytes(tmp_path: Path, name: str) -> None:
    """Nothing of the time, the path or the process gets into a file."""
    (tmp_path / "other").mkdir()
    assert write(tmp_path / name).read_bytes() == write(tmp_path / "other" / f"again-{name}").read_bytes()


@pytest.mark.parametrize("name", ["r.parquet", "r.feather", "r.arrow", "r.csv", "r.csv.gz"])
def test_no_rows_are_a_legal_result(tmp_path: Path, name: str) -> None:
    """A result without rows has its columns."""
    table = open_points(write(tmp_path / name, []))
    assert (table.num_rows, table.schema.names) == (0, SCHEMA.names)


def test_batches_are_row_groups(tmp_path: Path) -> None:
    """A batch is a row group, whatever its size, compressed by zstd; empty batches leave none."""
    large = pa.record_batch([pa.array(np.arange(1 << 21))], names=["v"])
    with pq.ParquetFile(write(tmp_path / "large.parquet", [large, large.slice(0, 5)], large.schema)) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [1 << 21, 5]
    assert groups[0].column(0).compression == "ZSTD"
    with pq.ParquetFile(write(tmp_path / "r.parquet")) as file:
        assert file.metadata.num_row_groups == 2


@pytest.mark.parametrize("name", ["r.parquet", "r.feather"])
def test_lists_and_structs_are_kept(tmp_path: Path, name: str) -> None:
    """Formats that know nested columns keep them."""
    rows = pa.record_batch([pa.array([1, 2], pa.uint64()), pa.array([[1, 2, 3], None], pa.list_(pa.int64()))],
                           schema=NESTED)
    assert next(open_points(write(tmp_path / name, [rows], NESTED)).batches()).equals(rows)


@pytest.mark.parametrize("dtype", [pa.list_(pa.int64()), pa.list_(pa.int64(), 3), pa.struct([("x", pa.int64())]),
                                   pa.binary(), pa.fixed_shape_tensor(pa.int64(), [3])], ids=str)
@pytest.mark.parametrize("name", ["r.csv", "r.csv.gz"])
def test_csv_refuses_what_it_cannot_hold(tmp_path: Path, name: str, dtype: pa.DataType) -> None:
    """A column that CSV can't hold is refused at opening, named, with what to do; no file is left."""
    schema = pa.schema([("id", pa.uint64()), ("pt_position", dtype)])
    with pytest.raises(InputError, match=r"CSV can't hold column pt_position of type .*; write \.parquet instead"):
        open_writer(tmp_path / name, schema)
    assert list(tmp_path.iterdir()) == []


def test_csv_of_wrapped_types(tmp_path: Path) -> None:
    """Numbers in dictionaries, text views, times and decimals have a text form."""
    columns = {"d": pa.array([5, None]).dictionary_encode(), "v": pa.array(["a", None], pa.string_view()),
               "t": pa.array([0, None], pa.timestamp("s", "UTC")), "c": pa.array([True, None])}
    rows = pa.record_batch(columns)
    assert write(tmp_path / "r.csv", [rows], rows.schema).read_text() == (
        'd,v,t,c\n5,"a",1970-01-01 00:00:00Z,true\n,,,\n')


def test_dictionaries_that_differ_between_batches(tmp_path: Path) -> None:
    """An Arrow file has one dictionary a column: batches that bring their own keep their values."""
    dtype = pa.dictionary(pa.int8(), pa.string())
    texts = [["a", "b", None], ["b", "c"], ["c", "a"], ["d"]]
    batches = [pa.record_batch([pa.array(range(len(t))), pa.array(t).dictionary_encode().cast(dtype)],
                               names=["i", "kind"]) for t in texts]
    for name in ("r.feather", "r.parquet", "r.csv"):
        found = open_points(write(tmp_path / name, batches, batches[0].schema))
        values = [v or None for one in found.batches() for v in one["kind"].to_pylist()]
        assert values == [v for text in texts for v in text]
    many = [pa.record_batch([pa.array([f"{i}-{j}" for j in range(100)]).dictionary_encode().cast(dtype)],
                            names=["kind"]) for i in range(2)]
    with pytest.raises(InputError, match=r"column kind has more values than .* write \.parquet instead"):
        write(tmp_path / "s.feather", many, many[0].schema)


@pytest.mark.parametrize(("path", "suffix"), [
    ("a.parquet", ".parquet"), ("gs://b/x.y/A.CSV", ".csv"), (Path("t.csv.gz"), ".csv.gz"), ("a.arrow", ".arrow"),
])
def test_suffixes_of_results(path: str | Path, suffix: str) -> None:
    """The suffix decides the format, of local paths and of URLs."""
    assert check_output_suffix(path) == suffix


@pytest.mark.parametrize(("path", "found"), [("a.npy", r"\.npy"), ("s3://b/folder", "no suffix"), ("a.tsv", r"\.tsv")])
def test_suffixes_that_are_no_format(tmp_path: Path, path: str, found: str) -> None:
    """Another suffix is refused with the list of those there are."""
    with pytest.raises(InputError, match=rf"result table .*ends in one of \.parquet, \.csv, .*, found {found}"):
        check_output_suffix(path)
    with pytest.raises(InputError, match=r"ends in one of"):
        open_writer(tmp_path / Path(path).name, SCHEMA)


@pytest.mark.parametrize("name", ["r.parquet", "r.feather", "r.csv", "r.csv.gz"])
def test_a_temporary_name_may_hide_the_format(tmp_path: Path, name: str) -> None:
    """With the suffix given, any file name will do, and the bytes are the same."""
    suffix = check_output_suffix(name)
    with open_writer(tmp_path / "part-17.tmp", SCHEMA, suffix=suffix) as writer:
        for one in BATCHES:
            writer.write(one)
    assert (tmp_path / "part-17.tmp").read_bytes() == write(tmp_path / name).read_bytes()


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".csv", ".csv.gz"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always-full device")
def test_a_full_disk_is_an_os_error(suffix: str) -> None:
    """A full disk is the OSError that it is, at the latest when the table is finished."""
    rows = pa.record_batch([pa.array(np.random.default_rng(0).integers(0, 2**62, 100_000))], names=["v"])

    def fill() -> None:
        with open_writer(Path("/dev/full"), rows.schema, suffix=suffix) as writer:
            writer.write(rows)

    with pytest.raises(OSError, match="No space left on device"):
        fill()


@pytest.mark.parametrize("name", ["r.parquet", "r.feather", "r.csv.gz"])
def test_an_exception_leaves_no_finished_table(tmp_path: Path, name: str) -> None:
    """What was being written when an exception passed through can't be taken for a table."""

    def crash() -> None:
        with open_writer(tmp_path / name, SCHEMA) as writer:
            writer.write(BATCHES[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    with pytest.raises(InputError):
        list(open_points(tmp_path / name).batches())


def test_batches_of_another_schema(tmp_path: Path) -> None:
    """A batch that doesn't have the writer's columns is refused: that is a mistake in the program."""
    with open_writer(tmp_path / "r.parquet", SCHEMA) as writer, pytest.raises(ValueError, match="expected a batch of"):
        writer.write(pa.record_batch([pa.array([1])], names=["v"]))
