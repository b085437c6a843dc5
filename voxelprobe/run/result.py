"""The result table: where it is, what it adds to the user's columns, and how it is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.points import check_output_suffix, open_writer
from voxelprobe.records import STATUS_LABELS, Status, label_columns, root_column, status_column, supervoxel_column
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.roots import RootsAt
from voxelprobe.run.spec import Run
from voxelprobe.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY = b"voxelprobe"


@dataclass(frozen=True, slots=True)
class PointValues:
    """What was found for all points, by point number.

    Attributes
    ----------
    labels
        Shape (n, channels).
    status
        Shape (n,), values of `Status`.
    roots
        Shape (n,), or None without a graph.
    """

    labels: npt.NDArray[Any]
    status: npt.NDArray[np.uint8]
    roots: npt.NDArray[np.uint64] | None


@dataclass(frozen=True, slots=True)
class Result:
    """One result table of a run; a graphene run may have one for each time.

    Attributes
    ----------
    roots
        Which roots it has; None for labels or supervoxels alone.
    """

    run: Run
    folder: Folder
    name: str
    roots: RootsAt | None

    @property
    def url(self) -> str:
        """Return the table's place as the user would name it."""
        return self.folder.child_url(self.name)

    @property
    def marker(self) -> str:
        """Return the name of the table's marker in the run's folder."""
        place = self.url if self.roots is None else f"{self.url} {self.roots.key}"
        return f"merge/{hashlib.blake2b(place.encode(), digest_size=8).hexdigest()}.json"

    @property
    def provenance(self) -> dict[str, Any]:
        """Return where the values come from."""
        return self.run.provenance | ({} if self.roots is None else self.roots.provenance)

    def added_fields(self) -> list[pa.Field[Any]]:
        """Return the columns that the result adds, in order."""
        import pyarrow as pa

        scale = self.run.volume.scale
        fields: list[pa.Field[Any]] = []
        for columns in self.run.columns:
            names = label_columns(columns.prefix, scale.num_channels)
            if self.run.volume.graph is not None:
                names = [supervoxel_column(columns.prefix)]
            fields += [pa.field(name, pa.from_numpy_dtype(scale.dtype)) for name in names]
            if self.roots is not None:
                fields.append(pa.field(root_column(columns.prefix), pa.uint64()))
            words = pa.dictionary(pa.int8(), pa.string())
            fields.append(pa.field(status_column(columns.prefix), words, nullable=False))
        return fields

    def check_columns(self) -> None:
        """Raise before any work if the table can't be written: clashing names, or types that its format can't hold."""
        import pyarrow as pa

        schema = self.run.table.schema
        added = [field.name for field in self.added_fields()]
        clashes = sorted(set(added) & set(schema.names))
        if clashes or len(set(added)) < len(added):
            raise InputError(
                f"points table {self.run.settings.points} already has the column {', '.join(clashes)}, "
                "which the result adds: rename or drop it"
            )
        if check_output_suffix(self.name).startswith(".csv"):
            nested = [field.name for field in schema if pa.types.is_nested(field.type)]
            if nested:
                raise UnsupportedError(f"output {self.name}: CSV can't hold the column {nested[0]} "
                                       f"({schema.field(nested[0]).type}); choose an output that ends in .parquet")

    def write(self, path: Path, values: PointValues, board: ProgressBoard) -> None:
        """Write the user's rows with the values beside them to a local path."""
        import pyarrow as pa

        source = self.run.table.schema
        metadata = {**(source.metadata or {}), METADATA_KEY: json.dumps(self.provenance, sort_keys=True).encode()}
        schema = pa.schema([*source, *self.added_fields()]).with_metadata(metadata)
        prefixes = len(self.run.columns)
        board.expect("merge", 0, len(values.status) // prefixes)
        first = 0
        with open_writer(path, schema, check_output_suffix(self.name)) as writer:
            for batch in self.run.table.batches():
                arrays: list[pa.Array[Any]] = list(batch.columns)
                stop = first + batch.num_rows
                for prefix in range(prefixes):
                    arrays += _as_arrays(values, slice(first * prefixes + prefix, stop * prefixes, prefixes))
                writer.write(pa.RecordBatch.from_arrays(arrays, schema=schema))
                board.add("merge", 0, batch.num_rows, 0)
                first = stop


def open_result(run: Run, output: str | None, roots: RootsAt | None) -> Result:
    """Return the result table that `output` names, or the one in the run's folder.

    Raises
    ------
    InputError
        If no table can be written there.
    """
    folder, name = run.output(output, "result.parquet" if roots is None else f"result-{roots.key}.parquet")
    return Result(run, folder, name, roots)


def _as_arrays(values: PointValues, points: slice) -> list[Any]:
    """Return the added columns for some points: null where nothing was read."""
    import pyarrow as pa

    states = values.status[points]
    # A supervoxel without a root was read all the same.
    unread = (states != Status.OK) & (states != Status.NO_ROOT)
    arrays = [pa.array(np.ascontiguousarray(values.labels[points, channel]), mask=unread)
              for channel in range(values.labels.shape[1])]
    if values.roots is not None:
        arrays.append(pa.array(np.ascontiguousarray(values.roots[points]), mask=states != Status.OK))
    return [*arrays, pa.DictionaryArray.from_arrays(states.astype(np.int8), pa.array(STATUS_LABELS))]
