"""Points in CSV, plain or gzipped: RFC 4180 in UTF-8, comma-separated, with a header.

Two readings by Arrow's parser: the first takes every field as text and finds the types (`csv_types`) and the number of
rows, the later ones convert to those types at once. Both stream block by block.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa

from voxelprobe.errors import InputError
from voxelprobe.points.csv_types import ColumnEvidence
from voxelprobe.points.sources import check_unique

if TYPE_CHECKING:
    import pyarrow.csv as arrow_csv

# A row has to fit into a block. 8 MiB was the fastest of 1, 8 and 32 (420 MB/s, one thread).
_BLOCK_BYTES = 8 << 20
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _Scan(NamedTuple):
    """What one pass over all of a CSV's text found."""

    schema: pa.Schema
    num_rows: int
    notes: Mapping[str, str]


class CsvSource:
    """The rows of a CSV file. Opening reads its header only; the first question about types reads it all."""

    def __init__(self, path: Path, *, gzipped: bool) -> None:
        self._path = path
        self._gzipped = gzipped
        self._names, self._has_rows = self._read_header()

    @property
    def schema(self) -> pa.Schema:
        """The column names, and the types that all of their values allow."""
        return self._scan.schema

    @property
    def num_rows(self) -> int:
        """The number of rows below the header."""
        return self._scan.num_rows

    @property
    def type_notes(self) -> Mapping[str, str]:
        """For each text column, the first value that made it so."""
        return self._scan.notes

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows a block at a time, converted to the types of `schema`."""
        types = {field.name: field.type for field in self.schema}
        # Empty fields are null for numbers only.
        return self._blocks(types, columns, strings_can_be_null=False)

    @cached_property
    def _scan(self) -> _Scan:
        evidence = [ColumnEvidence() for _ in self._names]
        num_rows = 0
        text = dict.fromkeys(self._names, pa.string())
        for block in self._blocks(text, self._names, strings_can_be_null=True):
            for column, values in zip(evidence, block.columns, strict=True):
                column.add(values, first_row=num_rows + 2)
            num_rows += block.num_rows
        schema = pa.schema([(name, e.arrow_type) for name, e in zip(self._names, evidence, strict=True)])
        notes = {name: e.note for name, e in zip(self._names, evidence, strict=True) if e.note is not None}
        return _Scan(schema, num_rows, notes)

    def _read_header(self) -> tuple[list[str], bool]:
        """Return the column names, and whether anything follows them."""
        where = f"points table {self._path}"
        opener: Any = gzip.open if self._gzipped else open
        try:
            with opener(self._path, "rt", encoding="utf-8-sig", newline="") as file:
                names = next((row for row in csv.reader(file) if row), [])
                has_rows = any(line.strip("\r\n") for line in file)
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: expected text in UTF-8, found other bytes: {error}") from error
        except (csv.Error, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{where}: expected {'gzipped ' * self._gzipped}CSV, found something else: "
                             f"{error}") from error
        if "\0" in "".join(names):
            raise InputError(f"{where}: expected CSV, found bytes that are no text")
        filled = [name for name in names if name.strip()]
        if not filled:
            raise InputError(f"{where}, row 1: expected a header of column names, found none")
        if all(_NUMBER.fullmatch(name.strip()) for name in filled):
            raise InputError(f"{where}, row 1: expected a header of column names such as x,y,z, found numbers: "
                             f"{','.join(names)[:80]}")
        check_unique(names, where)
        return names, has_rows

    def _blocks(self, types: Mapping[str, pa.DataType], columns: Sequence[str], *, strings_can_be_null: bool,
                ) -> Iterator[pa.RecordBatch]:
        if not self._has_rows:
            return  # Arrow takes a header without a line end for an empty file
        import pyarrow.csv as arrow_csv

        ragged: list[arrow_csv.InvalidRow] = []

        def refuse(row: arrow_csv.InvalidRow) -> Literal["error"]:
            ragged.append(row)
            return "error"

        with self._open_bytes() as stream:
            try:
                yield from arrow_csv.open_csv(
                    stream,
                    # Only a single thread knows the number of a row it complains about; it is no slower.
                    read_options=arrow_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
                    parse_options=arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
                    convert_options=arrow_csv.ConvertOptions(
                        column_types=dict(types), include_columns=list(columns), null_values=[""],
                        strings_can_be_null=strings_can_be_null, quoted_strings_can_be_null=True,
                    ),
                )
            except pa.ArrowInvalid as error:
                raise self._explain(error, ragged) from error

    def _open_bytes(self) -> Any:
        file = pa.OSFile(str(self._path), "rb")
        return pa.CompressedInputStream(file, "gzip") if self._gzipped else file

    def _explain(self, error: pa.ArrowInvalid, ragged: Sequence[arrow_csv.InvalidRow]) -> InputError:
        where = f"points table {self._path}"
        if ragged:
            row = ragged[0]
            return InputError(f"{where}, row {row.number} (the header is row 1): expected {row.expected_columns} "
                              f"fields as in the header, found {row.actual_columns} in {row.text[:80]!r}")
        if "straddling" in str(error):
            return InputError(f"{where}: expected rows of at most {_BLOCK_BYTES >> 20} MiB, found a longer one; "
                              "is a quote not closed?")
        return InputError(f"{where}: expected CSV in UTF-8, found something else: {error}")
