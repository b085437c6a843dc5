"""Tables written batch by batch, always to the same bytes for the same batches."""

from __future__ import annotations

import csv
import gzip
import io
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from voxelprobe.errors import InputError
from voxelprobe.points.csv_safety import guard_names, guard_texts
from voxelprobe.points.parquet_encodings import open_parquet
from voxelprobe.points.plain_values import Dynamic, plain_array, plain_type

OUTPUT_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".feather", ".arrow")


class TableWriter(ABC):
    """A table being written; a context manager that finishes the file unless an exception passes through.

    After an exception the file is left incomplete, for the caller to delete: write to a temporary name.
    Errors of the disk, a full one above all, are raised as the OSError they are.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema

    def write(self, batch: pa.RecordBatch) -> None:
        """Append the rows of a batch, which has the writer's schema. In Parquet it is a row group of its own."""
        if not batch.schema.equals(self.schema, check_metadata=False):
            raise ValueError(f"table {self.path}: expected a batch of {self.schema}, found {batch.schema}")
        if batch.num_rows:
            self._append(batch)

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    @abstractmethod
    def discard(self) -> None:
        """Release the file without finishing it."""

    @abstractmethod
    def _append(self, batch: pa.RecordBatch) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
                 ) -> None:
        if kind is None:
            try:
                self.close()
            except BaseException:
                self.discard()
                raise
        else:
            self.discard()


def check_output_suffix(path: PurePath | str) -> str:
    """Return the suffix that decides the format of a result table, in lower case.

    Raises
    ------
    InputError
        If there is no such format; the message lists those there are.
    """
    name = str(path).lower()
    for suffix in OUTPUT_SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise InputError(f"result table {path}: expected a name that ends in one of {', '.join(OUTPUT_SUFFIXES)}, found "
                     f"{PurePath(name).suffix or 'no suffix'}")


def open_writer(
    path: Path, schema: pa.Schema, suffix: str | None = None, *, csv_safe: bool = False
) -> TableWriter:
    """Return a writer of a new table, which replaces whatever `path` was.

    Parameters
    ----------
    path
        Local file.
    schema
        Of every batch; its metadata is kept, except in CSV.
    suffix
        The format, if `path` is a temporary name that doesn't show it.
    csv_safe
        Of CSV, whether texts that a spreadsheet would take for formulas get an apostrophe in front.

    Raises
    ------
    InputError
        If there is no such format, or it can't hold a column of that type.
    """
    suffix = check_output_suffix(path if suffix is None else f"table{suffix}")
    if suffix == ".parquet":
        return _ParquetTableWriter(path, schema)
    if suffix in (".feather", ".arrow"):
        return _IpcTableWriter(path, schema)
    return _CsvTableWriter(path, schema, gzipped=suffix == ".csv.gz", safe=csv_safe)


class _ParquetTableWriter(TableWriter):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path, schema)
        try:
            open_parquet(pa.BufferOutputStream(), schema, None).close()
        except pa.ArrowException as error:
            raise InputError(f"result table {path}: Parquet can't hold one of its columns: {error}") from error
        self._sink = pa.OSFile(str(path), "wb")
        self._writer: Any = None

    def _open(self, first: pa.RecordBatch | None) -> None:
        if self._writer is None:
            self._writer = open_parquet(self._sink, self.schema, first)

    def _append(self, batch: pa.RecordBatch) -> None:
        self._open(batch)
        self._writer.write_batch(batch, row_group_size=batch.num_rows)

    def close(self) -> None:
        self._open(None)
        self._writer.close()
        self._sink.close()

    def discard(self) -> None:
        _release(self._sink, self._writer)


class _IpcTableWriter(TableWriter):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path, schema)
        self._dictionaries: dict[int, Dynamic] = {}
        self._sink = pa.OSFile(str(path), "wb")
        options = pa.ipc.IpcWriteOptions(compression="lz4", emit_dictionary_deltas=True)
        self._writer = pa.ipc.new_file(self._sink, schema, options=options)

    def _append(self, batch: pa.RecordBatch) -> None:
        columns = [self._with_one_dictionary(index, column) if pa.types.is_dictionary(column.type) else column
                   for index, column in enumerate(batch.columns)]
        try:
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))
        except pa.ArrowInvalid as error:
            raise InputError(f"result table {self.path}: an Arrow file can't hold these columns ({error}); "
                             "write .parquet instead") from error

    def _with_one_dictionary(self, index: int, column: Dynamic) -> Dynamic:
        """Return the column with the dictionary of the batches before it, which only ever grows at its end.

        An IPC file has one dictionary a column, but each row group of a Parquet input brings its own.
        """
        import pyarrow.compute as pc

        known = self._dictionaries.setdefault(index, column.dictionary)
        if column.dictionary.equals(known):
            return column
        fresh = column.dictionary.filter(pc.is_null(pc.index_in(column.dictionary, known)))
        known = self._dictionaries[index] = pa.concat_arrays([known, fresh])
        try:
            indices = pc.index_in(column.dictionary, known).take(column.indices).cast(column.type.index_type)
        except pa.ArrowInvalid as error:
            raise InputError(f"result table {self.path}: column {self.schema.field(index).name} has more values than "
                             f"its type {column.type} can number; write .parquet instead") from error
        return pa.DictionaryArray.from_arrays(indices, known, ordered=column.type.ordered)

    def close(self) -> None:
        self._writer.close()
        self._sink.close()

    def discard(self) -> None:
        _release(self._sink, self._writer)


class _CsvTableWriter(TableWriter):
    """CSV as Arrow writes it: null is an empty field, an empty text is `""`, all texts are quoted."""

    def __init__(self, path: Path, schema: pa.Schema, *, gzipped: bool, safe: bool) -> None:
        import pyarrow.csv as arrow_csv

        super().__init__(path, schema)
        self._safe = safe
        self._flat = pa.schema([(field.name, _csv_type(field, path)) for field in schema])
        self._file: Any = path.open("wb")
        # No name and no time in the gzip header: the same table is the same bytes. zlib rather than isal, whose output
        # depends on the processor; level 3 is twice as fast as 6 and within a tenth of its size.
        self._sink: Any = self._file
        if gzipped:
            self._sink = gzip.GzipFile("", "wb", 3, self._file, mtime=0)
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(guard_names(schema.names) if safe else schema.names)
        self._header: bytes | None = header.getvalue().encode()
        self._writer = arrow_csv.CSVWriter(self._sink, self._flat, write_options=arrow_csv.WriteOptions(
            include_header=False, batch_size=1 << 14))

    def _append(self, batch: pa.RecordBatch) -> None:
        self._write_header()
        columns = [plain_array(column).cast(dtype)
                   for column, dtype in zip(batch.columns, self._flat.types, strict=True)]
        if self._safe:
            columns = [guard_texts(column) for column in columns]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._flat))

    def _write_header(self) -> None:
        if self._header is not None:
            self._sink.write(self._header)
            self._header = None

    def close(self) -> None:
        self._write_header()
        self._writer.close()
        self._sink.close()
        self._file.close()

    def discard(self) -> None:
        _release(self._file, self._sink, self._writer)


def _csv_type(field: Dynamic, path: Path) -> Dynamic:
    """Return the type to write a column as in CSV.

    Raises
    ------
    InputError
        If CSV has no way to write it.
    """
    import pyarrow.csv as arrow_csv

    dtype = plain_type(field.type)
    if dtype == pa.string_view():
        dtype = pa.large_string()
    try:
        if pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_fixed_size_binary(dtype):
            raise pa.ArrowInvalid("bytes are no text")
        arrow_csv.write_csv(pa.table({"": pa.nulls(1, dtype)}), io.BytesIO())
    except pa.ArrowException as error:
        raise InputError(f"result table {path}: CSV can't hold column {field.name} of type {field.type}; "
                         "write .parquet instead") from error
    return dtype


def _release(*handles: Any) -> None:
    """Close the file first and then what wrote into it, whose complaint that it couldn't finish is no news."""
    for handle in handles:
        with suppress(Exception):
            handle.close()
