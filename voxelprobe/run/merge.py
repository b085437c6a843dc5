"""The merge stage: labels back beside the user's rows, in the user's order."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.errors import InputError, StaleRunError, TransportError, UnsupportedError
from voxelprobe.points import open_writer
from voxelprobe.records import NOT_SET, POINT, STATUS, STATUS_LABELS, Status, label_columns, read_columns, status_column
from voxelprobe.run.groups import read_decoded, read_labels
from voxelprobe.run.manifests import Manifest, read_manifest, write_manifest
from voxelprobe.run.plan import read_plan
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.report import REPORT, write_report
from voxelprobe.run.spec import Run

METADATA_KEY = b"voxelprobe"
# Larger arrays live in a file, so that a run of 10^9 points fits a small machine.
_MEMORY_BYTES = 512 << 20

logger = logging.getLogger(__name__)


def read_merged(run: Run, output: str | None) -> Manifest | None:
    """Return the marker of a result table, or None unless the table is there in full."""
    manifest = read_manifest(run.folder, _marker(run, output), run.key)
    if manifest is None:
        return None
    folder, name = run.output(output)
    return manifest if folder.version(name) == manifest.facts.get("output_version") else None


def check_result_columns(run: Run, output: str | None) -> None:
    """Raise before any work if the result can't be written: clashing names, or types that the format can't hold."""
    schema = run.table.schema
    added = [field.name for field in _added_fields(run)]
    clashes = sorted(set(added) & set(schema.names))
    if clashes or len(set(added)) < len(added):
        raise InputError(
            f"points table {run.settings.points} already has the column {', '.join(clashes)}, "
            "which the result adds: rename or drop it"
        )
    _, name = run.output(output)
    if name.lower().endswith((".csv", ".csv.gz")):
        import pyarrow as pa

        nested = [field.name for field in schema if pa.types.is_nested(field.type)]
        if nested:
            raise UnsupportedError(f"output {name}: CSV can't hold the column {nested[0]} "
                                   f"({schema.field(nested[0]).type}); choose an output that ends in .parquet")


def merge_run(run: Run, output: str | None, *, board: ProgressBoard, execution: str) -> None:
    """Write the result table of a run whose groups all have labels, its report, and then the marker."""
    marker = _marker(run, output)
    stem = marker.rsplit("/", 1)[-1].removesuffix(".json")
    with run.lock(f"merge-{stem}"):
        started = time.monotonic()
        plan = read_plan(run)
        if plan is None:
            raise StaleRunError(f"{run.folder.location.url}: the plan is gone or damaged; run again")
        rows, prefixes = int(plan.facts["rows"]), len(run.columns)
        scale = run.volume.scale
        for leftover in (f"{stem}.*", marker, REPORT):
            run.folder.sweep(leftover)
        scratch = [run.folder.path(f".tmp-{execution}-{stem}.{name}") for name in ("labels", "status")]
        try:
            labels = _allocate((rows * prefixes, scale.num_channels), scale.dtype, scratch[0])
            status = _allocate((rows * prefixes,), np.dtype(np.uint8), scratch[1])
            status[:] = NOT_SET
            corrupt, distinct = _gather(run, int(plan.facts["groups"]), labels, status)
            folder, name = run.output(output)
            folder.sweep(name)
            with folder.new_file(name) as path:
                _write_table(run, path, name, labels, status, board)
            background = int(np.count_nonzero((labels[:, 0] == 0) & (status == Status.OK)))
            counts = np.bincount(status, minlength=len(Status))
        finally:
            for path in scratch:
                path.unlink(missing_ok=True)
        facts = {
            "output": folder.child_url(name),
            "output_version": folder.version(name),
            "points": rows * prefixes,
            "rows": rows,
            "labels": distinct,
            "background": background,
            "status": {state.label: int(counts[state]) for state in Status if counts[state]},
            "corrupt": corrupt,
            "execution": execution,
            "seconds": round(time.monotonic() - started, 3),
        }
        write_report(run, plan, facts)
        write_manifest(run.folder, marker, run.key, [], facts)
        logger.info("merged %s rows into %s, %.1f s", f"{rows:,}", facts["output"], time.monotonic() - started)


def _marker(run: Run, output: str | None) -> str:
    folder, name = run.output(output)
    return f"merge/{hashlib.blake2b(folder.child_url(name).encode(), digest_size=8).hexdigest()}.json"


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any], path: Any) -> npt.NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    if size <= _MEMORY_BYTES:
        return np.zeros(shape, dtype)
    try:
        with open(path, "wb") as file:
            # Writing to a map of a file without blocks, on a full disk, ends the process without a word.
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise TransportError(f"{path}: no room for {size:,} bytes: {error.strerror or error}") from error
    return np.memmap(path, dtype, "r+", shape=shape)


def _gather(run: Run, groups: int, labels: npt.NDArray[Any], status: npt.NDArray[Any]) -> tuple[dict[str, str], int]:
    """Scatter all groups' labels by point number; return the corrupt chunks and how many labels there are."""
    corrupt: dict[str, str] = {}
    seen: list[npt.NDArray[Any]] = []
    points, states = read_columns(run.folder.local_copy("plan/unplaced.parquet"), POINT, STATUS)
    status[points] = states
    for group in range(groups):
        manifest = read_decoded(run, group)
        if manifest is None:
            raise StaleRunError(f"labels of group {group} are gone or damaged; run again")
        corrupt |= manifest.facts["corrupt"]
        points, values, states = read_labels(run, group)
        labels[points], status[points] = values, states
        seen.append(np.unique(values[states == Status.OK]))
    unset = np.flatnonzero(status == NOT_SET)
    if len(unset):
        raise StaleRunError(f"{len(unset)} points are in no group, the first is point {unset[0]}; run again")
    return corrupt, len(np.unique(np.concatenate(seen))) if seen else 0


def _added_fields(run: Run) -> list[Any]:
    import pyarrow as pa

    scale = run.volume.scale
    dtype = pa.from_numpy_dtype(scale.dtype)
    fields = []
    for columns in run.columns:
        fields += [pa.field(name, dtype) for name in label_columns(columns.prefix, scale.num_channels)]
        fields.append(pa.field(status_column(columns.prefix), pa.dictionary(pa.int8(), pa.string()), nullable=False))
    return fields


def _write_table(
    run: Run, path: Any, name: str, labels: npt.NDArray[Any], status: npt.NDArray[Any], board: ProgressBoard
) -> None:
    import pyarrow as pa

    source = run.table.schema
    metadata = dict(source.metadata or {}) | {METADATA_KEY: json.dumps(run.provenance, sort_keys=True).encode()}
    schema = pa.schema([*source, *_added_fields(run)]).with_metadata(metadata)
    words = pa.array(STATUS_LABELS)
    prefixes = len(run.columns)
    suffix = ".csv.gz" if name.lower().endswith(".csv.gz") else "." + name.lower().rsplit(".", 1)[-1]
    board.expect("merge", 0, len(status) // prefixes)
    first = 0
    with open_writer(path, schema, suffix) as writer:
        for batch in run.table.batches():
            arrays = list(batch.columns)
            stop = first + batch.num_rows
            for prefix in range(prefixes):
                points = slice(first * prefixes + prefix, stop * prefixes, prefixes)
                states = status[points]
                unread = states != Status.OK
                for channel in range(labels.shape[1]):
                    arrays.append(pa.array(np.ascontiguousarray(labels[points, channel]), mask=unread))
                arrays.append(pa.DictionaryArray.from_arrays(states.astype(np.int8), words))
            writer.write(pa.RecordBatch.from_arrays(arrays, schema=schema))
            board.add("merge", 0, batch.num_rows, 0)
            first = stop
