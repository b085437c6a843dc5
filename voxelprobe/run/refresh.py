"""A finished graphene result brought to a later time: only what was edited since is resolved again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from voxelprobe.arrays import Bool, UInt64, to_arrow
from voxelprobe.errors import InputError
from voxelprobe.graphene.table import fetch_table
from voxelprobe.graphene.timestamps import Timestamp, parse_timestamp
from voxelprobe.points import PointsTable, check_output_suffix, open_points, open_writer
from voxelprobe.records import STATUS_LABELS, Status, root_column, status_column, supervoxel_column
from voxelprobe.resolving import find_latest_roots, resolve_roots
from voxelprobe.run.result import METADATA_KEY
from voxelprobe.storage import Folder

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """What a refresh came to."""

    roots: int
    outdated: int
    supervoxels: int
    changed: int


@dataclass(frozen=True, slots=True)
class OldResult:
    """A finished result with roots, as its metadata tells of it."""

    table: PointsTable
    graphene: str
    timestamp: Timestamp
    stop_layer: int | None
    provenance: dict[str, Any]
    prefixes: tuple[str | None, ...]


def open_old_result(path: Path) -> OldResult:
    """Return the finished result at a local path.

    Raises
    ------
    InputError
        If it isn't a result with roots, or has lost its metadata.
    """
    table = open_points(path)
    schema = table.schema
    try:
        provenance = json.loads((schema.metadata or {})[METADATA_KEY])
        graphene, written = provenance["graphene"], provenance["timestamp"]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"table {path}: expected a result of SamplePoints with roots (.parquet, .feather or .arrow), found one "
            "whose metadata doesn't say from which graph and time its roots are"
        ) from error
    prefixes = _find_prefixes(path, schema, str(provenance.get("point_columns")))
    at = parse_timestamp(str(written), now=time.time())
    return OldResult(table, graphene, at, provenance.get("stop_layer"), provenance, prefixes)


def _find_prefixes(path: Path, schema: pa.Schema, point_columns: str) -> tuple[str | None, ...]:
    """Return the points that the result was sampled for; roots beside theirs are the user's own columns."""
    import pyarrow as pa

    named = [name for name in point_columns.split(",") if root_column(name) in schema.names]
    prefixes = tuple(named) or (None,)
    for prefix in prefixes:
        columns = {supervoxel_column(prefix): pa.uint64(), root_column(prefix): pa.uint64(),
                   status_column(prefix): pa.dictionary(pa.int8(), pa.string())}
        if missing := [name for name in columns if name not in schema.names]:
            raise InputError(f"table {path}: expected the columns {', '.join(columns)}, found no {missing[0]} among "
                             + ", ".join(schema.names))
        for name, dtype in columns.items():
            if schema.field(name).type != dtype:
                raise InputError(f"table {path}: expected {dtype} in {name}, found {schema.field(name).type}")
    return prefixes


def refresh_roots(
    old: OldResult, at: Timestamp, *, output: tuple[Folder, str], changes: tuple[Folder, str], batch_size: int,
    concurrency: int,
) -> RefreshReport:
    """Write a result with the roots of a later time, and the table of what changed.

    The unique roots are asked about once; of those that were replaced, the supervoxels are resolved
    again, and so are supervoxels that had no root. The table is byte-identical to one sampled at
    that time.

    Raises
    ------
    InputError
        If the time is earlier than the result's.
    AuthorizationError, TransportError
        If the server refuses or doesn't answer.
    """
    if at < old.timestamp:
        raise InputError(f"timestamp {at.text}: expected one later than the table's, {old.timestamp.text}; "
                         "SamplePoints gives roots of an earlier time")
    graph, _ = fetch_table(old.graphene)
    roots = _unique(roots[roots != 0] for _, roots, _ in _ids(old))
    with closing(graph.open_client(connections=concurrency)) as client:
        if old.stop_layer is None:
            latest = find_latest_roots(roots, ask=lambda some: client.is_latest(some, at), layout=graph.layout,
                                       batch_size=batch_size, concurrency=concurrency)
        else:
            latest = np.zeros(len(roots), np.bool_)  # the server tells of roots only
        stale = roots[~latest]
        ids = _unique(supervoxels[_is_due(found, status, stale)] for supervoxels, found, status in _ids(old))
        fresh = resolve_roots(
            ids, fetch=lambda some: client.fetch_roots(some, timestamp=at, stop_layer=old.stop_layer),
            layout=graph.layout, stop_layer=old.stop_layer, batch_size=batch_size, concurrency=concurrency,
        )
    logger.info("%s of %s roots were replaced since %s; resolved %s supervoxels again",
                f"{len(stale):,}", f"{len(roots):,}", old.timestamp.text, f"{fresh.asked:,}")
    changed = _write(old, at, stale, ids, fresh.roots, fresh.resolved, output, changes)
    return RefreshReport(len(roots), len(stale), fresh.asked, changed)


def _ids(old: OldResult) -> Iterator[tuple[UInt64, UInt64, Any]]:
    """Yield supervoxels, roots (0 where null) and statuses, shape (n,), of each batch and prefix."""
    for prefix in old.prefixes:
        names = [supervoxel_column(prefix), root_column(prefix), status_column(prefix)]
        for batch in old.table.batches(names):
            yield _numbers(batch.column(0)), _numbers(batch.column(1)), _codes(batch.column(2), old)


def _numbers(column: Any) -> UInt64:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(column, 0).to_numpy(zero_copy_only=False), np.uint64)


def _codes(column: Any, old: OldResult) -> Any:
    """Return statuses as the numbers of `Status`, whatever the file's dictionary."""
    words = column.dictionary.to_pylist()
    if column.null_count or not set(words) <= set(STATUS_LABELS):
        raise InputError(f"table {old.table.path}: expected a status in every row, one of {', '.join(STATUS_LABELS)}; "
                         "found " + ("none in some" if column.null_count else ", ".join(map(str, words))))
    codes = np.array([STATUS_LABELS.index(word) for word in words], np.uint8)
    return codes[np.asarray(column.indices)]


def _is_due(roots: UInt64, status: Any, stale: UInt64) -> Bool:
    due: Bool = (status == Status.NO_ROOT) | ((status == Status.OK) & np.isin(roots, stale))
    return due


def _unique(parts: Iterator[UInt64]) -> UInt64:
    found = np.zeros(0, np.uint64)
    for part in parts:
        found = np.union1d(found, part)
    return found


def _write(
    old: OldResult, at: Timestamp, stale: UInt64, ids: UInt64, fresh: UInt64, resolved: Bool,
    output: tuple[Folder, str], changes: tuple[Folder, str],
) -> int:
    """Write both tables; return how many points have another root."""
    import pyarrow as pa

    provenance = old.provenance | {"timestamp": at.text}
    metadata = {**(old.table.schema.metadata or {}), METADATA_KEY: json.dumps(provenance, sort_keys=True).encode()}
    schema = old.table.schema.with_metadata(metadata)
    columns_of_changes: dict[str, pa.DataType] = {
        "row": pa.int64(), "point": pa.string(), "supervoxel_id": pa.uint64(), "old_root_id": pa.uint64(),
        "new_root_id": pa.uint64(), "old_timestamp": pa.string(), "new_timestamp": pa.string(),
    }
    change_schema = pa.schema(columns_of_changes).with_metadata({METADATA_KEY: metadata[METADATA_KEY]})
    for folder, name in (output, changes):
        folder.sweep(name)
    changed = first = 0
    with (
        output[0].new_file(output[1], keep=False) as path,
        changes[0].new_file(changes[1], keep=False) as change_path,
        open_writer(path, schema, check_output_suffix(output[1])) as writer,
        open_writer(change_path, change_schema, check_output_suffix(changes[1])) as change_writer,
    ):
        for batch in old.table.batches():
            columns = {name: batch.column(place) for place, name in enumerate(batch.schema.names)}
            for prefix in old.prefixes:
                supervoxels = _numbers(columns[supervoxel_column(prefix)])
                before = _numbers(columns[root_column(prefix)])
                states = _codes(columns[status_column(prefix)], old)
                due = np.flatnonzero(_is_due(before, states, stale))
                after, new_states = before.copy(), states.copy()
                at_ids = np.searchsorted(ids, supervoxels[due])
                after[due] = fresh[at_ids]
                new_states[due] = np.where(resolved[at_ids], Status.OK, Status.NO_ROOT)
                columns[root_column(prefix)] = to_arrow(after, new_states != Status.OK)
                columns[status_column(prefix)] = pa.DictionaryArray.from_arrays(
                    to_arrow(new_states.astype(np.int8)), pa.array(STATUS_LABELS)
                )
                moved = due[(after[due] != before[due]) | (new_states[due] != states[due])]
                changed += len(moved)
                words = [prefix or "", old.timestamp.text, at.text]
                point, was, now = (pa.array([word] * len(moved), pa.string()) for word in words)
                change_writer.write(pa.RecordBatch.from_arrays(
                    [to_arrow(first + moved), point, to_arrow(supervoxels[moved]),
                     to_arrow(before[moved], states[moved] != Status.OK),
                     to_arrow(after[moved], new_states[moved] != Status.OK), was, now], schema=change_schema,
                ))
            writer.write(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
            first += batch.num_rows
    return changed
