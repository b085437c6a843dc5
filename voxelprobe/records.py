"""Column names, statuses and files between the stages: the only place that spells them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import from_arrow, to_arrow
from voxelprobe.errors import StaleRunError

ALGORITHM_VERSION = 1
"""Part of every run key. Raised by hand when the same input would give another table."""

POINT = "point"  # row * number of prefixes + prefix
CHUNK = "chunk"  # chunk number in the grid
REGION = "region"
PLACE = "place"  # flat place in a whole chunk, x fastest
COUNT = "points"  # points in a chunk, or in a group
GROUP = "group"
CHUNKS = "chunks"
STATUS = "status"
SUPERVOXEL = "supervoxel"
ROOT = "root"
RESOLVED = "resolved"


# Before a run's Parquet file's footer, followed by the CRC-32C of all that comes after.
_SEAL_MAGIC = b"vpCRC32C"


class Status(IntEnum):
    """Why a point has the label it has, or none."""

    OK = 0
    OUT_OF_BOUNDS = 1
    MISSING_CHUNK = 2
    INVALID_COORDINATE = 3
    CORRUPT_CHUNK = 4
    NO_ROOT = 5

    @property
    def label(self) -> str:
        """Return the word that stands in the result."""
        return self.name.lower()


STATUS_LABELS = [status.label for status in Status]
NOT_SET = 255
"""Where a status will be written; never in a result."""


def label_columns(prefix: str | None, channels: int) -> list[str]:
    """Return the result's label columns for one prefix: `label`, `label_0`, `pre_pt_label`."""
    stem = "label" if prefix is None else f"{prefix}_label"
    return [stem] if channels == 1 else [f"{stem}_{channel}" for channel in range(channels)]


def supervoxel_column(prefix: str | None) -> str:
    """Return a graphene result's column of supervoxels: `supervoxel_id`, `pre_pt_supervoxel_id`."""
    return "supervoxel_id" if prefix is None else f"{prefix}_supervoxel_id"


def root_column(prefix: str | None) -> str:
    """Return a graphene result's column of roots: `root_id`, `pre_pt_root_id`."""
    return "root_id" if prefix is None else f"{prefix}_root_id"


def status_column(prefix: str | None) -> str:
    """Return the result's status column for one prefix: `status`, `pre_pt_status`."""
    return STATUS if prefix is None else f"{prefix}_{STATUS}"


def write_columns(path: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays of shape (n,) as the columns of a Parquet file."""
    write_pieces(path, [columns])


def write_pieces(path: Path, pieces: Sequence[Mapping[str, npt.NDArray[Any]]], *, few: Collection[str] = ()) -> None:
    """Write arrays of shape (n,) as the columns of a Parquet file, each piece as a row group that can be read alone.

    Parameters
    ----------
    pieces
        One or more, all with the same columns and dtypes; each of at most 64 Mi rows, or it is several row groups.
    few
        Columns with few different values, which a dictionary makes small.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pa.table({name: to_arrow(values) for name, values in piece.items()}) for piece in pieces]
    schema = tables[0].schema
    # Nobody but us reads these files: differences are a third of zstd's time and smaller (docs/design/009-merging.md).
    # Neither they nor lz4 would notice a flipped bit, so every page has a checksum.
    dictionaries: Any = [field.name for field in schema if field.name in few or field.type.bit_width <= 8]
    differences = {field.name: "DELTA_BINARY_PACKED" for field in schema
                   if pa.types.is_integer(field.type) and field.name not in dictionaries}
    with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=dictionaries or False,
                          column_encoding=differences or None, write_statistics=False,
                          write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
    _seal(path)


def read_columns(path: Path, *names: str, pieces: Sequence[int] | None = None) -> list[npt.NDArray[Any]]:
    """Return columns of a file of `write_columns` or `write_pieces`, each of shape (n,).

    Parameters
    ----------
    pieces
        Numbers of the pieces to read, one after the other; all of them by default.

    Raises
    ------
    StaleRunError
        If the file isn't one of ours, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        _check_seal(path)
        # A plain file, so that a folder named a=b isn't taken for a partition.
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            if pieces is None:
                table = file.read(columns=list(names))
            else:
                table = file.read_row_groups(list(pieces), columns=list(names))
        return [_from_arrow(table[name]) for name in names]
    except (pa.ArrowException, KeyError, OSError, IndexError, ValueError, TypeError) as error:
        raise StaleRunError(f"{path}: expected the columns {', '.join(names)} of a run, found: {error}. Delete the "
                            "file and run the same command: it is made again") from error


def _seal(path: Path) -> None:
    """Put a checksum before a file's footer, which has none: one flipped bit there makes other numbers of the pages."""
    with open(path, "r+b") as file:
        begin, footer = _read_footer(file)
        file.seek(begin)
        file.write(_seal_of(footer) + footer)


def _check_seal(path: Path) -> None:
    """Raise ValueError if a file's footer isn't the one that was written."""
    with open(path, "rb") as file:
        begin, footer = _read_footer(file)
        file.seek(max(begin - len(_SEAL_MAGIC) - 4, 0))
        if file.read(len(_SEAL_MAGIC) + 4) != _seal_of(footer):
            raise ValueError("a footer that doesn't match its checksum")


def _read_footer(file: BinaryIO) -> tuple[int, bytes]:
    """Return where a Parquet file's footer begins, and all from there on."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 8, 0))
    tail = file.read()
    begin = end - 8 - int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != b"PAR1" or begin < 4:
        raise ValueError(f"{end} bytes that don't end as a Parquet file does")
    file.seek(begin)
    return begin, file.read()


def _seal_of(footer: bytes) -> bytes:
    import google_crc32c

    return _SEAL_MAGIC + int(google_crc32c.value(footer)).to_bytes(4, "little")


def _from_arrow(column: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    chunks = [from_arrow(chunk) for chunk in column.chunks or [pa.array([], column.type)]]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
