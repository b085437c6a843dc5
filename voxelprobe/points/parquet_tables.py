"""Points in Parquet: one file, or a folder of files that together are one table."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.points.sources import explained, read_ends

_MAGIC = b"PAR1"
# Rows decoded at a time. Small enough that a wide table stays small, and no smaller: below it the cost a call shows.
_PIECE_ROWS = 1 << 18
# Without a buffer the reader takes a whole column of a row group into memory, and a row group may be the whole file.
_BUFFER_BYTES = 1 << 20
# Table formats that keep Parquet files which are no longer part of the table beside those that are.
_TABLE_LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}


class ParquetSource:
    """The rows of Parquet files with one schema, one file after the other."""

    def __init__(self, where: Path, files: Sequence[Path]) -> None:
        import pyarrow.parquet as pq

        self._files = files
        self.num_rows = 0
        self.type_notes: Mapping[str, str] = {}
        schema: pa.Schema | None = None
        for path in files:
            with _checked(path), pq.ParquetFile(str(path)) as file:
                found = file.schema_arrow
                self.num_rows += file.metadata.num_rows
            if schema is None:
                schema = found
            elif not schema.equals(found, check_metadata=False):
                raise InputError(f"points table {where}: expected every file to have the columns of {files[0].name}, "
                                 f"found {_difference(schema, found)} in {path}")
        assert schema is not None
        self.schema = schema

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all files in order."""
        import pyarrow.parquet as pq

        for path in self._files:
            with _checked(path), pq.ParquetFile(str(path), buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                yield from file.iter_batches(batch_size=_PIECE_ROWS, columns=list(columns))


def find_parquet_files(path: Path) -> list[Path]:
    """Return the Parquet files of a table, sorted by relative path; names that begin with `_` or `.` don't count.

    Raises
    ------
    InputError
        If the folder has none, or is linked into itself.
    UnsupportedError
        If columns are in the folders' names (`key=value`), or another format's log says which files count.
    """
    if not path.is_dir():
        return [path]
    files: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        for log, format_name in _TABLE_LOGS.items():
            if log in subfolders:
                raise UnsupportedError(f"points table {path}: a {format_name} table ({folder}/{log}), whose log says "
                                       "which files count; export it to plain Parquet files")
        if any(name.endswith(".metadata.json") for name in names):
            raise UnsupportedError(f"points table {path}: an Iceberg table ({folder}), whose metadata says which "
                                   "files count; export it to plain Parquet files")
        if (real := os.path.realpath(folder)) in seen:
            raise InputError(f"points table {path}: the folder {real} is linked into it more than once")
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(("_", "."))]
        for name in subfolders:
            if "=" in name:
                raise UnsupportedError(f"points table {path}: a table partitioned by folders as in {name!r}; write "
                                       "that column into the files and give the folders other names")
        files += [Path(folder, name) for name in names
                  if name.lower().endswith(".parquet") and not name.startswith(("_", "."))]
    if not files:
        raise InputError(f"points table {path}: expected a folder with .parquet files, found none")
    return sorted(files, key=lambda file: file.relative_to(path).as_posix())


@contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Check both ends of a file before Arrow opens it, and name this file in complaints about its content."""
    with explained(path, "a Parquet file"):
        begin, end = read_ends(path, len(_MAGIC))
        if b"PARE" in (begin, end):
            raise UnsupportedError(f"points table {path}: an encrypted Parquet file; write it without encryption")
        if begin != _MAGIC:
            raise InputError(f"points table {path}: expected a Parquet file, which begins with {_MAGIC!r}, "
                             f"found {begin!r}")
        if end != _MAGIC:
            raise InputError(f"points table {path}: expected a Parquet file, which ends with {_MAGIC!r}, "
                             f"found {end!r}: the file was cut short")
        yield


def _difference(expected: pa.Schema, found: pa.Schema) -> str:
    """Return the first way in which two schemas differ, in words."""
    for name in expected.names:
        if name not in found.names:
            return f"no column {name!r}"
        if expected.field(name) != found.field(name):
            return f"column {name!r} as {_describe(found, name)}, not {_describe(expected, name)},"
    for name in found.names:
        if name not in expected.names:
            return f"another column {name!r}"
    return f"the columns in the order {', '.join(found.names)}"


def _describe(schema: pa.Schema, name: str) -> str:
    field = schema.field(name)
    return str(field.type) if field.nullable else f"{field.type} not null"
