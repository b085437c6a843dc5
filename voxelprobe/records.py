"""Column names, statuses and files between the stages: the only place that spells them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: pa.array(np.ascontiguousarray(values)) for name, values in columns.items()})
    # Statistics and dictionaries cost time and nobody reads them here.
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)


def read_columns(path: Path, *names: str) -> list[npt.NDArray[Any]]:
    """Return columns of a file of `write_columns`, each of shape (n,).

    Raises
    ------
    StaleRunError
        If the file isn't one of ours, or is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # A plain file, so that a folder named a=b isn't taken for a partition.
        table = pq.ParquetFile(path, memory_map=True).read(columns=list(names))
        return [table[name].to_numpy() for name in names]
    except (pa.ArrowInvalid, pa.ArrowIOError, KeyError, OSError) as error:
        raise StaleRunError(f"{path}: expected the columns {', '.join(names)} of a run, found: {error}") from error
