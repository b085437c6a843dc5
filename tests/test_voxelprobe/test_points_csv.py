from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voxelprobe.errors import InputError
from voxelprobe.points import csv_tables, open_points

INT64, UINT64, FLOAT64, STRING = pa.int64(), pa.uint64(), pa.float64(), pa.string()


def write_csv(path: Path, text: str | bytes) -> Path:
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read_all(path: Path, batch_rows: int = 2) -> pa.Table:
    table = open_points(path, batch_rows=batch_rows)
    return pa.Table.from_batches(table.batches(), schema=table.schema)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every file longer than a block."""
    monkeypatch.setattr(csv_tables, "_BLOCK_BYTES", 64)


@pytest.mark.parametrize(("values", "dtype", "expected"), [
    (["1", "-2"], INT64, [1, -2]),
    (["9223372036854775807", "-9223372036854775808"], INT64, [2**63 - 1, -(2**63)]),
    (["18446744073709551615", "0"], UINT64, [2**64 - 1, 0]),
    (["9223372036854775808", ""], UINT64, [2**63, None]),
    (["1", ""], INT64, [1, None]),
    (["", ""], FLOAT64, [None, None]),
    (["1", "1.5"], FLOAT64, [1.0, 1.5]),
    (["nan", "inf", "-inf", "", "1e3"], FLOAT64, ["nan", "inf", "-inf", None, 1000.0]),
    (["-0", "1"], FLOAT64, ["-0.0", 1.0]),
    (["9007199254740992", "0.5"], FLOAT64, [2.0**53, 0.5]),
    (["9007199254740993", "0.5"], STRING, ["9007199254740993", "0.5"]),
    (["864691135000000001", "nan"], STRING, ["864691135000000001", "nan"]),
    (["864691135000000001.0", "2.0"], STRING, ["864691135000000001.0", "2.0"]),
    (["18446744073709551615", "-1"], STRING, ["18446744073709551615", "-1"]),
    (["18446744073709551616", "1"], STRING, ["18446744073709551616", "1"]),
    (["007", "1"], STRING, ["007", "1"]),
    (["007", "1.5"], STRING, ["007", "1.5"]),
    (["0x10", "1"], STRING, ["0x10", "1"]),
    (["1_000", "1"], STRING, ["1_000", "1"]),
    ([" 1", "1"], STRING, [" 1", "1"]),
    (["NA", "1"], STRING, ["NA", "1"]),
    (["true", "false"], STRING, ["true", "false"]),
    (["2024-01-01", ""], STRING, ["2024-01-01", ""]),
    (["null", "N/A", ""], STRING, ["null", "N/A", ""]),
])
@pytest.mark.parametrize(("name", "flip"), [("t.csv", False), ("t.csv", True), ("t.csv.gz", False)])
def test_types_follow_from_all_values(tmp_path: Path, values: list[str], dtype: pa.DataType, expected: list[object],
                                      *, name: str, flip: bool) -> None:
    """A column has the narrowest type that keeps every value as it was written, whatever their order."""
    order = slice(None, None, -1 if flip else 1)
    path = write_csv(tmp_path / name, "row,v\n" + "".join(f"{i},{v}\n" for i, v in enumerate(values[order])))
    found = read_all(path)
    assert found.schema.field("v").type == dtype
    texts = [repr(v) if isinstance(v, float) else v for v in found["v"].to_pylist()]
    assert texts == [repr(v) if isinstance(v, float) else v for v in expected[order]]


FIELDS = st.one_of(
    st.just(""), st.integers(-(2**65), 2**65).map(str), st.integers(2**63 - 2, 2**63 + 2).map(str),
    st.integers(2**53 - 2, 2**53 + 2).map(str), st.integers(-3, 9).map(str), st.floats().map(repr),
    st.sampled_from(["007", "-0", "+5", "0x1", "1.", ".5", "1e400", "nan", "abc", "0", "00.5", "007.0"]),
)
INTEGER = re.compile(r"([+-]?)([0-9]+)(\.0*)?")


def slow_type(values: list[str]) -> pa.DataType:
    """The rules of csv_types, value by value in Python."""
    filled = [v for v in values if v]
    canonical = bool(filled) and all(re.fullmatch(r"-?[0-9]+", v) and str(int(v)) == v for v in filled)
    if canonical and all(-(2**63) <= int(v) < 2**63 for v in filled):
        return INT64
    if canonical and all(0 <= int(v) < 2**64 for v in filled):
        return UINT64
    for v in filled:
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|-?nan|-?inf", v):
            return STRING
        if match := INTEGER.fullmatch(v):
            digits = match[2]
            if (len(digits) > 1 and digits[0] == "0") or int(digits) > 2**53:
                return STRING
    return FLOAT64


@settings(max_examples=150, deadline=None)
@given(values=st.lists(FIELDS, min_size=1, max_size=12), block=st.sampled_from([30, 60, 1 << 20]))
@example(values=["-1", "18446744073709551615"], block=30)
@example(values=["1.5", "9007199254740993"], block=30)
def test_types_do_not_depend_on_blocks(tmp_path_factory: pytest.TempPathFactory, values: list[str], block: int) -> None:
    """However the file is cut into blocks, a type is what the slow rules say and the values are what was written."""
    path = write_csv(tmp_path_factory.mktemp("csv") / "t.csv", "v,w\n" + "".join(f"{v},\n" for v in values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_tables, "_BLOCK_BYTES", block)
        found = read_all(path)
    dtype = slow_type(values)
    assert found.schema.field("v").type == dtype
    convert = {INT64: int, UINT64: int, FLOAT64: float, STRING: str}[dtype]
    expected = [None if v == "" and dtype != STRING else convert(v) for v in values]
    assert repr(found["v"].to_pylist()) == repr(expected)


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(2**64 - 2**20, 2**64 - 1), min_size=1, max_size=50))
def test_large_ids_round_trip(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    """Identifiers near 2^64 come out of a CSV bit by bit."""
    path = write_csv(tmp_path_factory.mktemp("ids") / "t.csv", "id\n" + "\n".join(map(str, ids)))
    found = read_all(path)
    assert found.schema.field("id").type == UINT64
    assert found["id"].to_pylist() == ids


@pytest.mark.usefixtures("small_blocks")
def test_quotes_line_breaks_and_commas(tmp_path: Path) -> None:
    """Quoted fields keep commas, quotes, line breaks and spaces, also across blocks; blank lines don't count."""
    rows = [["1", 'a "b"', "x,y"], ["2", "two\nlines", " padded "], ["3", "", "crlf\r\nin"], ["4", "é", "end"]] * 3
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "note, quoted", "z"])
        writer.writerows(rows)
        file.write("\r\n\r\n")
    found = read_all(tmp_path / "t.csv")
    assert found.column_names == ["id", "note, quoted", "z"]
    assert [list(map(str, row.values())) for row in found.to_pylist()] == rows


@pytest.mark.parametrize("text", ["\ufeffx,y\n1,2\n", "\ufeff\"x\",y\r\n1,2\r\n", "x,y\r\n1,2", "\n\nx,y\n\n1,2\n\n"])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_byte_order_marks_and_line_ends(tmp_path: Path, name: str, text: str) -> None:
    """A byte order mark, Windows line ends, blank lines and a missing last line end change nothing."""
    assert read_all(write_csv(tmp_path / name, text)).to_pydict() == {"x": [1], "y": [2]}


@pytest.mark.parametrize("text", ["x,y,z", "x,y,z\n", "\ufeffx,y,z\r\n\r\n"])
def test_a_header_alone_is_no_rows(tmp_path: Path, text: str) -> None:
    """A CSV of only a header is a table without rows whose columns can be coordinates."""
    table = open_points(write_csv(tmp_path / "t.csv", text))
    assert (table.num_rows, list(table.batches())) == (0, [])
    assert table.schema == pa.schema([(name, FLOAT64) for name in "xyz"])


def test_an_unnamed_index_column_stays(tmp_path: Path) -> None:
    """The index that pandas writes under an empty name is a column like any other."""
    assert read_all(write_csv(tmp_path / "t.csv", ",x\n0,5\n")).to_pydict() == {"": [0], "x": [5]}


def test_concatenated_gzip_members_are_one_file(tmp_path: Path) -> None:
    """A gzip file of several members is read to its end."""
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"x\n1\n") + gzip.compress(b"2\n3\n"))
    assert read_all(tmp_path / "t.csv.gz")["x"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize(("text", "message"), [
    ("x,y\n1,2\n3\n", r"row 3 \(the header is row 1\): expected 2 fields as in the header, found 1 in '3'"),
    ("x,y\n1,2,3\n", r"row 2 .*found 3 in '1,2,3'"),
    ("x,y\n" + "1,2\n" * 500 + "4\n", r"row 502 .*found 1 in '4'"),
    ("1,2,3\n4,5,6\n", r"row 1: expected a header of column names such as x,y,z, found numbers: 1,2,3"),
    ("-1.5e3,.5\n", "found numbers"),
    (",0,1,2\n0,4,5,6\n", "found numbers"),
    ("\n\n", "expected a header of column names, found none"),
    (",,\n1,2,3\n", "expected a header of column names, found none"),
    ("x,y,x\n1,2,3\n", "found more than one column named 'x'"),
    (b"x,y\n1,\xff\xfe\n", "expected text in UTF-8"),
    ("x,y\n1,2\n".encode("utf-16"), "expected text in UTF-8"),
    (b"x,y\n" + b"1,2\n" * 5000 + b"1,\xff\n", "UTF-?8"),
    (b"x\0y\n1\n", "bytes that are no text"),
    ('x,y\n1,"2\n' + "3,4\n" * 50, "is a quote not closed|expected 2 fields"),
    ("x,y\n1," + "9" * 500 + "\n", "found a longer one"),
])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.usefixtures("small_blocks")
def test_malformed_text(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    """Ragged rows, a missing header, repeated names and other encodings are refused, naming the file and the row."""
    with pytest.raises(InputError, match=rf"points table .*{re.escape(name)}.*({message})"):
        read_all(write_csv(tmp_path / name, text))


def test_damaged_gzip(tmp_path: Path) -> None:
    """A gzip file that was cut anywhere, or isn't one, is an InputError: no row goes missing without a word."""
    whole = gzip.compress(b"x,y\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(200)))
    path = tmp_path / "t.csv.gz"
    for size in range(1, len(whole), 13):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"t\.csv\.gz: expected"):
            read_all(path)
    path.write_bytes(b"x,y\n1,2\n")
    with pytest.raises(InputError, match=r"t\.csv\.gz: expected gzipped CSV"):
        read_all(path)
    path.write_bytes(whole[:-5] + b"\x55" + whole[-4:])
    with pytest.raises(InputError, match=r"t\.csv\.gz: expected"):
        read_all(path)


def test_why_a_column_is_text(tmp_path: Path) -> None:
    """For each text column there is a note with the first value that made it so."""
    values = ["1", "2", "oops", "4", "x"]
    mixed = ["-1", "18446744073709551615", "", "", ""]
    rows = "".join(f"{i},{v},0{i},{m}\n" for i, (v, m) in enumerate(zip(values, mixed, strict=True)))
    table = open_points(write_csv(tmp_path / "t.csv", "id,x,zip,m\n" + rows))
    assert table.type_notes == {"x": "'oops' in row 4", "zip": "'00' in row 2",
                                "m": "'18446744073709551615' in row 3"}


@pytest.mark.usefixtures("small_blocks")
def test_why_a_column_of_several_blocks_is_text(tmp_path: Path) -> None:
    """The row in a note counts from the file's beginning, not from the block's."""
    rows = ["1"] * 100 + ["oops"] + ["1"] * 10
    table = open_points(write_csv(tmp_path / "t.csv", "x\n" + "\n".join(rows)))
    assert table.type_notes == {"x": "'oops' in row 102"}


def test_types_are_found_late_and_once(tmp_path: Path) -> None:
    """Opening reads the header only; the pass over all values is made at the first question, and not again."""
    path = write_csv(tmp_path / "t.csv", "x\n1\n")
    table = open_points(path)
    write_csv(path, "x\n2.5\n")
    assert table.schema.field("x").type == FLOAT64
    write_csv(path, "x\nabc\n")
    assert table.schema.field("x").type == FLOAT64
    with pytest.raises(InputError, match=r"t\.csv: expected CSV"):
        list(table.batches())
