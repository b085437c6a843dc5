"""The result table: where it is, what it adds to the user's columns, and how it is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from voxelprobe.arrays import to_arrow
from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.points import check_output_suffix, open_writer
from voxelprobe.records import STATUS_LABELS, Status, label_columns, root_column, status_column, supervoxel_column
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.root_files import RootsAt
from voxelprobe.run.spec import Run
from voxelprobe.run.values import PointValues, RowCutter
from voxelprobe.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY = b"voxelprobe"

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Result:
    """One result table of a run; a graphene run may have one for each time.

    Attributes
    ----------
    roots
        Which roots it has; None for labels or supervoxels alone.
    csv_safe
        Whether its texts are guarded against spreadsheets that would take them for formulas; CSV only.
    """

    run: Run
    folder: Folder
    name: str
    roots: RootsAt | None
    csv_safe: bool = False

    @property
    def url(self) -> str:
        """Return the table's place as the user would name it."""
        return self.folder.child_url(self.name)

    @property
    def marker(self) -> str:
        """Return the name of the table's marker in the run's folder."""
        place = self.url if self.roots is None else f"{self.url} {self.roots.key}"
        place += " csv-safe" if self.csv_safe else ""
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

    def write(self, path: Path, values: Iterator[PointValues], board: ProgressBoard) -> None:
        """Write the user's rows with the values of their points, which come in order, beside them to a local path."""
        import pyarrow as pa

        source = self.run.table.schema
        metadata = {**(source.metadata or {}), METADATA_KEY: json.dumps(self.provenance, sort_keys=True).encode()}
        schema = pa.schema([*source, *self.added_fields()]).with_metadata(metadata)
        board.expect("merge", 0, self.run.table.num_rows)
        with (
            open_writer(path, schema, check_output_suffix(self.name), csv_safe=self.csv_safe) as writer,
            closing(_ahead(self._batches(schema, values))) as batches,
        ):
            for batch in batches:
                writer.write(batch)
                board.add("merge", 0, batch.num_rows, 0)

    def _batches(self, schema: pa.Schema, values: Iterator[PointValues]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the result."""
        import pyarrow as pa

        prefixes = len(self.run.columns)
        cutter = RowCutter(values)
        for batch in self.run.table.batches():
            found = cutter.take(batch.num_rows * prefixes)
            arrays: list[Any] = list(batch.columns)
            for prefix in range(prefixes):
                arrays += _as_arrays(found.part(slice(prefix, None, prefixes)))
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def open_result(run: Run, output: str | None, roots: RootsAt | None, *, csv_safe: bool = False) -> Result:
    """Return the result table that `output` names, or the one in the run's folder.

    Raises
    ------
    InputError
        If no table can be written there.
    """
    folder, name = run.output(output, "result.parquet" if roots is None else f"result-{roots.key}.parquet")
    # Of the other formats it changes no byte, so the same table isn't written again for it.
    return Result(run, folder, name, roots, csv_safe and check_output_suffix(name).startswith(".csv"))


def _ahead(items: Iterator[_Item]) -> Generator[_Item]:
    """Yield the items; each is made in a thread while the one before it is in use, so that there are two at most.

    Reading a batch and writing one are half of the work each, and Arrow does both without the interpreter's lock.
    """
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def _as_arrays(values: PointValues) -> list[Any]:
    """Return the added columns for some points: null where nothing was read."""
    import pyarrow as pa

    states = np.ascontiguousarray(values.status)
    unread = unrooted = None
    if states.any():
        unrooted = states != Status.OK
        # A supervoxel without a root was read all the same.
        unread = unrooted & (states != Status.NO_ROOT)
    arrays = [to_arrow(channel, unread) for channel in values.labels]
    if values.roots is not None:
        arrays.append(to_arrow(values.roots, unrooted))
    return [*arrays, pa.DictionaryArray.from_arrays(to_arrow(states.view(np.int8)), _words(STATUS_LABELS))]


def _words(words: list[str]) -> Any:
    """Return texts as an Arrow array without loading pandas, as `pyarrow.array` would."""
    import pyarrow as pa

    ends = np.cumsum([0, *map(len, words)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(words), pa.py_buffer(ends.data), pa.py_buffer("".join(words).encode()))
