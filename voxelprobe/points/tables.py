"""Points tables: one way to read every supported format, in batches of a fixed number of rows.

A table is never held in memory: every use of it is one pass over `PointsTable.batches`, cut at the same rows
whatever pieces the file is made of, so that a stage's checkpoints don't depend on the format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.points.sources import TableSource, check_unique, explained

INPUT_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".feather", ".arrow", ".npy")
_FORMATS = {".parquet": "a Parquet file", ".csv": "a CSV file in UTF-8", ".csv.gz": "a gzipped CSV file in UTF-8",
            ".feather": "an Arrow IPC file", ".arrow": "an Arrow IPC file or stream",
            ".npy": "a NumPy array of shape (n, 3)"}


class PointsTable:
    """A table of points in a file, read in batches. Made by `open_points`.

    Attributes
    ----------
    path
        The file or folder.
    batch_rows
        Rows of every batch but the last.
    """

    def __init__(self, path: Path, source: TableSource, expected: str, batch_rows: int) -> None:
        self.path = path
        self.batch_rows = batch_rows
        self._source = source
        self._expected = expected

    @property
    def schema(self) -> pa.Schema:
        """Names, types and metadata of all columns. A CSV's types are found in one pass, at the first use."""
        with explained(self.path, self._expected):
            return self._source.schema

    @property
    def num_rows(self) -> int:
        """The exact number of rows. Counting a CSV's or a compressed IPC stream's takes a pass, at the first use."""
        with explained(self.path, self._expected):
            return self._source.num_rows

    @property
    def type_notes(self) -> Mapping[str, str]:
        """Why a CSV column came out as text, by column name; for `parse_point_columns` to tell the user."""
        with explained(self.path, self._expected):
            return self._source.type_notes

    def batches(self, columns: Sequence[str] | None = None, rows: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows in file order, some at a time; the last batch may be smaller.

        Parameters
        ----------
        columns
            Names of the columns wanted, in the order wanted. All of them by default.
        rows
            Rows of every batch but the last; `batch_rows` by default.

        Yields
        ------
        Record batches of the table's own types and metadata. None at all for a table without rows.

        Raises
        ------
        InputError
            If there is no such column, or the file turns out to be damaged or to change while it is read.
        UnsupportedError
            If Arrow can't put so many rows of a column into one array.
        """
        schema = self.schema
        names = schema.names if columns is None else list(columns)
        if not names:
            raise InputError(f"points table {self.path}: expected one column or more to read, found none")
        for name in names:
            if name not in schema.names:
                raise InputError(f"points table {self.path}: no column {name!r}; its columns are "
                                 + ", ".join(schema.names))
        wanted = pa.schema([schema.field(name) for name in names]).with_metadata(schema.metadata)
        found = 0
        with explained(self.path, self._expected):
            for batch in _recut(_conform(self._source.read(names), wanted), wanted, rows or self.batch_rows):
                found += batch.num_rows
                yield batch
        if found != self.num_rows:
            raise InputError(f"points table {self.path}: expected {self.num_rows} rows, found {found}; "
                             "did it change while it was read?")


def open_points(path: Path, batch_rows: int = 1 << 20) -> PointsTable:
    """Return the points table in a local file or folder.

    Parameters
    ----------
    path
        `.parquet` (a file, or a folder of them read in the order of their relative paths), `.csv`, `.csv.gz`,
        `.feather` or `.arrow` (IPC file or stream), or `.npy` of shape (n, 3).
    batch_rows
        Rows of a batch.

    Raises
    ------
    InputError
        If there is no such file, or it is empty, cut short, not of its suffix's format, or has a column twice.
    UnsupportedError
        If it is a legal table of a kind that can't be read here, such as a folder partitioned by `key=value`.
    """
    if batch_rows < 1:
        raise InputError(f"points table {path}: expected one row a batch or more, found {batch_rows}")
    if not path.exists():
        raise InputError(f"points table {path}: no such file or folder")
    if path.is_dir():
        suffix, expected = ".parquet", "a folder of Parquet files"
    else:
        suffix = next((s for s in INPUT_SUFFIXES if path.name.lower().endswith(s)), "")
        if not suffix:
            raise InputError(f"points table {path}: expected a name that ends in one of {', '.join(INPUT_SUFFIXES)}, "
                             f"found {path.suffix or 'no suffix'}")
        expected = _FORMATS[suffix]
        if path.stat().st_size == 0:
            raise InputError(f"points table {path}: expected {expected}, found an empty file")
    with explained(path, expected):
        source = _open_source(path, suffix)
    return PointsTable(path, source, expected, batch_rows)


def _open_source(path: Path, suffix: str) -> TableSource:
    """Return the reader of a format; each is imported only where it is needed."""
    source: TableSource
    if suffix == ".parquet":
        from voxelprobe.points.parquet_tables import ParquetSource, find_parquet_files

        source = ParquetSource(path, find_parquet_files(path))
    elif suffix in (".feather", ".arrow"):
        from voxelprobe.points.ipc_tables import open_ipc

        source = open_ipc(path)
    elif suffix == ".npy":
        from voxelprobe.points.npy_tables import NpySource

        source = NpySource(path)
    else:
        from voxelprobe.points.csv_tables import CsvSource

        return CsvSource(path, gzipped=suffix == ".csv.gz")  # checks its names itself: its schema takes a pass
    if not source.schema.names:
        raise InputError(f"points table {path}: expected columns, found none")
    check_unique(source.schema.names, f"points table {path}")
    return source


def _conform(pieces: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the pieces with just the columns of `schema`, in its order and with its metadata."""
    for piece in pieces:
        columns = [piece.column(piece.schema.get_field_index(name)) for name in schema.names]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _recut(pieces: Iterator[pa.RecordBatch], schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of exactly `rows`, the last one smaller."""
    held: list[pa.RecordBatch] = []
    missing = rows
    for piece in pieces:
        start = 0
        while start < piece.num_rows:
            part = piece.slice(start, missing)
            held.append(part)
            start += part.num_rows
            missing -= part.num_rows
            if missing == 0:
                yield _join(held, schema)
                held, missing = [], rows
    if held:
        yield _join(held, schema)


def _join(parts: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if len(parts) == 1:
        return parts[0]
    joined = pa.Table.from_batches(parts, schema=schema).combine_chunks().to_batches()
    if len(joined) != 1:
        # Text with 32-bit offsets holds 2 GiB an array.
        raise UnsupportedError(f"a batch of {sum(part.num_rows for part in parts)} rows has more than 2 GiB of text "
                               "in one column; use a smaller batch size or a large_string column")
    return joined[0]
