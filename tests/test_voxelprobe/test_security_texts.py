"""Texts that come from data: what messages, terminals and spreadsheets show of them, and can't be made to do."""

from __future__ import annotations

import csv
import io
import logging
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.console import _PlainFormatter
from pipeline.show import format_rows
from voxelprobe import InputError, UnsupportedError, VoxelProbeError
from voxelprobe.cache.region_file import RegionFile
from voxelprobe.errors import MOST_SHOWN, CorruptDataError, TransportError, printable
from voxelprobe.points import open_points, open_writer, parse_point_columns
from voxelprobe.points.csv_safety import guard_texts
from voxelprobe.transport.protocol import RetryableError, StoredObject
from voxelprobe.volume.info import parse_info

HOSTILE = ["\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]52;c;cGF5bG9hZA==\x07", "a\rb", "a\x08b", "\x9b31m", "\u202eevil",
           "\x00", "\x7f", "\ud800", "\u2028", "\x1bP+q\x1b\\", "a\x0bb\x0cc"]


@given(st.text(st.characters(), max_size=200) | st.sampled_from(HOSTILE))
def test_a_shown_text_is_harmless(text: str) -> None:
    """Only printable characters and line ends are left, within the bound; what was printable is unchanged."""
    shown = printable(text)
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert len(shown) <= MOST_SHOWN
    assert printable(shown) == shown
    if all(letter.isprintable() or letter == "\n" for letter in text):
        assert shown == text


@pytest.mark.parametrize("letter", ["a", "\x1b", "\n", "\U0001f9e0", "\u202e"])
@pytest.mark.parametrize("length", [MOST_SHOWN - 1, MOST_SHOWN, MOST_SHOWN + 1, 10_000_000])
def test_a_long_text_is_cut(letter: str, length: int) -> None:
    """10 MB of anything are shown as the beginning and the length, in no time."""
    begin = time.monotonic()
    shown = printable(letter * length)
    assert time.monotonic() - begin < 5
    assert len(shown) <= MOST_SHOWN
    assert printable(shown) == shown
    assert shown.endswith("characters)") == (len(shown) < length or letter in "\x1b\u202e")


@pytest.mark.parametrize("kind", [VoxelProbeError, InputError, UnsupportedError, CorruptDataError, TransportError,
                                  RetryableError])
@pytest.mark.parametrize("text", HOSTILE)
def test_every_error_is_shown_so(kind: type[Exception], text: str) -> None:
    """As text, each of our errors is harmless to a terminal, in a notebook too."""
    error = kind(f"points table {text}: {'x' * 20_000}")
    assert str(error) == printable(error.args[0])
    assert len(str(error)) <= MOST_SHOWN


@pytest.mark.parametrize("text", [*HOSTILE, "a\n12:00:00 nothing to do"])
def test_lines_of_the_log(text: str) -> None:
    """A text in the log makes no line of its own that could be taken for ours, and moves no cursor."""
    record = logging.LogRecord("voxelprobe", logging.INFO, "f", 1, "table %s", (text,), None)
    line = _PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S").format(record)
    assert all(letter.isprintable() or letter == "\n" for letter in line)
    assert all(part.startswith("    ") for part in line.split("\n")[1:])


@pytest.mark.parametrize("text", HOSTILE[:6] + HOSTILE[7:9])
def test_a_table_that_is_shown(text: str, tmp_path: Path) -> None:
    """Names and cells of a table can't do anything to the terminal that its first rows are shown on."""
    pq.write_table(pa.table({f"x{text}": [text, "b"], "y": ["\n\n", text * 3]}), tmp_path / "t.parquet")
    shown = format_rows(tmp_path / "t.parquet", 10)
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert shown.count("\n") == 3


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("member", ["data_type", "type", "encoding", "key", "num_channels"])
def test_what_an_info_says(member: str, text: str) -> None:
    """Whatever text stands in an info, and however long it is, the message about it is short and harmless."""
    scale = {"key": "a", "size": [9, 9, 9], "resolution": [4, 4, 40], "chunk_sizes": [[3, 3, 3]], "encoding": "raw"}
    for value in (text, text * 1_000_000):
        document: dict[str, Any] = {"data_type": "uint8", "num_channels": "x", "scales": [scale]}
        (scale if member in scale else document)[member] = value
        with pytest.raises(VoxelProbeError) as caught:
            parse_info(document, f"gs://b/{value}")
        assert printable(str(caught.value)) == str(caught.value)


SQL = ['x"; DROP TABLE chunks; --', "x'; DROP TABLE chunks; --", "chunks", "key", "x]; --", "%s", "?", ":name", "{}",
       "'); ATTACH 'f' AS a; --", "x\x00y"]


def test_names_that_are_sql(tmp_path: Path) -> None:
    """Columns and folders named like statements are names: points are read, the cache is where it should be."""
    names = [name for name in SQL if "\0" not in name]
    pq.write_table(pa.table({name: [1, 2] for name in names}), tmp_path / "t.parquet")
    table = open_points(tmp_path / "t.parquet")
    assert table.schema.names == names
    (columns,) = parse_point_columns(",".join(names[:3]), table.schema, "t")
    assert columns.sources == tuple(names[:3])
    for number, name in enumerate(names):
        folder = tmp_path / f"{number} {name}".replace("/", "_")
        folder.mkdir()
        file = RegionFile(folder / "r00000000.sqlite")
        # The compression's name is a store's word, and stands in a row.
        file.write({7: StoredObject(b"content", name)})
        assert file.read([7]) == {7: StoredObject(b"content", name)}
        file.discard([7])
        assert file.known([7]) == set()


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_many_columns(count: int, tmp_path: Path) -> None:
    """A table of 100,000 columns is opened, and what is wrong with it is said, shortly and in seconds."""
    begin = time.monotonic()
    names = [f"c{i}" for i in range(count)]
    schema = pa.schema([(name, pa.int8()) for name in names])
    with pytest.raises(InputError, match=f"and {count - 60} more") as caught:
        parse_point_columns("x,y,z", schema, "t")
    assert len(str(caught.value)) < MOST_SHOWN
    with (tmp_path / "t.csv").open("w") as file:
        file.write(",".join([*names, "c0"]) + "\n")
    with pytest.raises(InputError, match="more than one column named 'c0'"):
        open_points(tmp_path / "t.csv")
    assert time.monotonic() - begin < 60


def claim_rows(path: Path, rows: int, claimed: int) -> None:
    """Write a Parquet file of `rows` rows whose footer says everywhere that there are `claimed`."""
    table = pa.table({axis: list(range(rows)) for axis in "xyz"})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8].replace(varint(rows), varint(claimed))
    assert varint(claimed) in footer
    path.write_bytes(content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def varint(number: int) -> bytes:
    """Return a number as Thrift's compact protocol has it."""
    number, out = number << 1, b""
    while number >= 0x80:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize("claimed", [12346, 2**31, 2**40, 2**62 - 1])
def test_a_footer_that_claims_more_rows(claimed: int, tmp_path: Path) -> None:
    """A Parquet footer that lies about its rows is found out while they are read; nothing is allocated on its word."""
    import resource

    claim_rows(tmp_path / "t.parquet", 12345, claimed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"t\.parquet"):
        for _ in open_points(tmp_path / "t.parquet").batches():
            pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x","y")', "=cmd|' /C calc'!A0",
            "＝1", "＋1", "－1", "＠x"]  # noqa: RUF001 (full-width on purpose)
HARMLESS = ["", "a=1", "1+1", "'=1", " =1", "label", "ok", "x@y", "ü", "1-2"]


def write_csv(path: Path, table: pa.Table, *, csv_safe: bool) -> list[list[str]]:
    with open_writer(path, table.schema, csv_safe=csv_safe) as writer:
        for batch in table.to_batches():
            writer.write(batch)
    return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))


@pytest.mark.parametrize("kind", [
    pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()),
])
def test_formulas(kind: Any, tmp_path: Path) -> None:
    """Asked for, an apostrophe stands before texts and names that a spreadsheet would run, and before nothing else."""
    texts = pa.array([*FORMULAS, *HARMLESS, None]).cast(kind)
    numbers = pa.array([-1.5] * (len(texts) - 1) + [None])
    table = pa.table([texts, numbers], names=["=evil", "n"])
    header, *rows = write_csv(tmp_path / "safe.csv", table, csv_safe=True)
    assert header == ["'=evil", "n"]
    assert [row[0] for row in rows] == [f"'{text}" for text in FORMULAS] + HARMLESS + [""]
    assert [row[1] for row in rows] == ["-1.5"] * (len(rows) - 1) + [""]
    header, *rows = write_csv(tmp_path / "plain.csv", table, csv_safe=False)
    assert header == ["=evil", "n"]
    assert [row[0] for row in rows] == FORMULAS + HARMLESS + [""]


@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)))
def test_the_guard_only_adds(texts: list[str | None]) -> None:
    """Every guarded text is the text, or an apostrophe and the text; none begins like a formula; nulls stay."""
    guarded = guard_texts(pa.array(texts, pa.string())).to_pylist()
    for text, found in zip(texts, guarded, strict=True):
        assert found in (text, f"'{text}")
        assert not (found or "").startswith(tuple("=+-@\t\r\n"))
        assert (text is None) == (found is None)


def test_numbers_are_not_guarded() -> None:
    """A column of numbers, times or truths passes as it is."""
    for values in (pa.array([-1]), pa.array([-0.5]), pa.array([True]), pc.cast(pa.array([1]), pa.timestamp("s"))):
        assert guard_texts(values).equals(values)
