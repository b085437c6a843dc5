"""Points in Arrow's own format: IPC files (Feather version 2) and IPC streams.

Format: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
Both are memory-mapped, so that columns which nobody asks for cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.points.sources import read_ends

_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class IpcFileSource:
    """The rows of an IPC file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.type_notes: Mapping[str, str] = {}
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            self.schema = reader.schema

    @cached_property
    def num_rows(self) -> int:
        """The rows of all record batches."""
        return sum(batch.num_rows for batch in self.read(_narrowest(self.schema)))

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the file's record batches."""
        with pa.memory_map(str(self._path)) as file:
            reader = pa.ipc.open_file(file, options=_only(self.schema, columns))
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


class IpcStreamSource:
    """The rows of an IPC stream kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.type_notes: Mapping[str, str] = {}
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
            self.schema = reader.schema

    @cached_property
    def num_rows(self) -> int:
        """The rows of all record batches: a stream has no table of contents, so this walks over them."""
        return sum(batch.num_rows for batch in self.read(_narrowest(self.schema)))

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the stream's record batches."""
        with pa.memory_map(str(self._path)) as file:
            yield from pa.ipc.open_stream(file, options=_only(self.schema, columns))


def open_ipc(path: Path) -> IpcFileSource | IpcStreamSource:
    """Return the reader of an IPC file or stream, told apart by their first bytes.

    Raises
    ------
    InputError
        If it is cut short. A stream has to end with its end-of-stream marker: without it a stream that was cut
        between two record batches can't be told from a whole one, and points would be lost without a word.
    UnsupportedError
        If it is Feather version 1.
    """
    begin, end = read_ends(path, 8)
    if begin.startswith(b"FEA1"):
        raise UnsupportedError(f"points table {path}: Feather version 1; write it again as version 2 or as Parquet")
    if begin.startswith(_MAGIC):
        if not end.endswith(_MAGIC):
            raise InputError(f"points table {path}: expected an Arrow IPC file, which ends with {_MAGIC!r}, "
                             f"found {end!r}: the file was cut short")
        return IpcFileSource(path)
    if not begin.startswith(_END_OF_STREAM[:4]):
        raise InputError(f"points table {path}: expected an Arrow IPC file, which begins with {_MAGIC!r}, or an IPC "
                         f"stream, found {begin!r}")
    source = IpcStreamSource(path)
    if end != _END_OF_STREAM:
        raise InputError(f"points table {path}: expected an Arrow IPC stream with its end-of-stream marker, found "
                         f"{end!r} at its end: it was cut short, or its writer was not closed")
    return source


def _only(schema: pa.Schema, columns: Sequence[str]) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in columns])


def _narrowest(schema: pa.Schema) -> list[str]:
    """Return one column that is cheap to decompress, to count rows by."""
    numbers = [field.name for field in schema if pa.types.is_primitive(field.type)]
    return (numbers or schema.names)[:1]
