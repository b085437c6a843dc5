"""What a format of points tables has to provide, and how Arrow's complaints about a file become ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from voxelprobe.errors import InputError, UnsupportedError, VoxelProbeError


class TableSource(Protocol):
    """The rows of one points table, in whatever pieces its format gives them."""

    @property
    def schema(self) -> pa.Schema:
        """Names, types and metadata of all columns."""

    @property
    def num_rows(self) -> int:
        """The exact number of rows."""

    @property
    def type_notes(self) -> Mapping[str, str]:
        """Why a column has an unexpected type, by column, where the format had to guess types."""

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield all rows in file order, in pieces of any size, with at least `columns` in any order.

        A second call starts again from the first row. Memory stays bounded by the pieces, not by the table.
        """


@contextmanager
def explained(path: Path, expected: str) -> Iterator[None]:
    """Turn Arrow's complaints about what is in a file into ours; errors of the disk itself pass through.

    Parameters
    ----------
    path
        The points table, for the message.
    expected
        What it should have been, as in `a Parquet file`.

    Raises
    ------
    InputError
        If the content contradicts the format.
    UnsupportedError
        If it is legal but Arrow can't read it.
    """
    try:
        yield
    except VoxelProbeError:
        raise
    except PermissionError as error:
        raise InputError(f"points table {path}: expected a file that may be read, found {error.strerror}") from error
    except pa.ArrowNotImplementedError as error:
        raise UnsupportedError(f"points table {path}: {expected} that Arrow can't read: {error}") from error
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        # Arrow reports a cut or damaged file as an OSError without a number; the disk's own errors have one.
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise InputError(f"points table {path}: expected {expected}, found a damaged or cut one: {error}") from error


def read_ends(path: Path, num_bytes: int = 16) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of a file, to tell a wrong format from a cut file."""
    with path.open("rb") as file:
        begin = file.read(num_bytes)
        size = file.seek(0, 2)
        file.seek(max(0, size - num_bytes))
        return begin, file.read(num_bytes)


def check_unique(names: Sequence[str], where: str) -> None:
    """Raise an InputError if a column name stands twice: a result could not say which one it kept."""
    # Counted once for all: files may claim any number of columns.
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(f"{where}: expected unique column names, found more than one column named "
                         + ", ".join(repr(name) for name in twice))
