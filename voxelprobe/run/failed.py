"""The dead letters of a run: the points that could not be read and will be tried again, each with its reason.

`failed.parquet` in the run's folder is made anew from the groups' markers whenever a table is merged or a command ends
with groups failed; once all are mended it has no rows. Nothing reads it: what is tried again is decided by the markers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelprobe.arrays import Int64, to_arrow
from voxelprobe.points import read_coordinates
from voxelprobe.records import Status
from voxelprobe.run.groups import read_decoded
from voxelprobe.run.plan import read_jobs, read_plan
from voxelprobe.run.spec import Run

FAILED = "failed.parquet"
NOT_FETCHED = "not_fetched"
"""What stands for a status where a group's chunks could not be had at all: no result has such points."""
# A store that is down fails every group: the first of so many are listed, of 32 bytes each while they are.
_MOST_POINTS = 1 << 24


def note_failed_group(run: Run, group: int, message: str, execution: str) -> None:
    """Leave a note that a group ended with an error in this execution. Labels that it gets later outdate it."""
    content = json.dumps({"message": message, "execution": execution}).encode()
    run.folder.write_bytes(f"failed/group-{group:03d}.json", content + b"\n")


def write_failed(run: Run, execution: str) -> dict[str, Any]:
    """Write the list of points that could not be read; return how many are on it, and where it is.

    Without any, and without a list from before, nothing is written.
    """
    place = run.folder.child_url(FAILED)
    letters = _collect(run, execution)
    if letters is None and run.folder.state(FAILED) is None:
        return {"points": 0, "table": None}
    with run.lock("failed"):
        run.folder.sweep(FAILED)
        run.folder.sweep("failed/*")
        with run.folder.new_file(FAILED) as path:
            _write(run, letters or _Letters.none(), str(path))
    return {"points": 0 if letters is None else len(letters.points), "table": place if letters is not None else None}


@dataclass(frozen=True, slots=True)
class _Letters:
    """Points by number, ascending, with their chunk, their place in it and the number of their reason; shape (n,)."""

    points: Int64
    chunks: Int64
    places: Int64
    reasons: Int64
    texts: list[tuple[str, str]]

    @classmethod
    def none(cls) -> _Letters:
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, nothing, nothing, [])


def _collect(run: Run, execution: str) -> _Letters | None:
    plan = read_plan(run)
    columns: list[list[Int64]] = []
    texts: list[tuple[str, str]] = []
    held = 0
    for group in range(int(plan.facts["groups"]) if plan is not None else 0):
        reasons = dict(_reasons(run, group, execution))
        if not reasons or held >= _MOST_POINTS:
            continue
        jobs = read_jobs(run, group)
        if -1 not in reasons:
            jobs, _ = jobs.select(np.isin(jobs.chunks, list(reasons)))
        numbers = {chunk: len(texts) + i for i, chunk in enumerate(reasons)}
        texts += reasons.values()
        of_chunks = np.array([numbers.get(chunk, numbers.get(-1, 0)) for chunk in jobs.chunks.tolist()], np.int64)
        counts = np.diff(jobs.first)
        columns.append([jobs.points, np.repeat(jobs.chunks, counts), jobs.places, np.repeat(of_chunks, counts)])
        held += len(jobs.points)
    if not columns:
        return None
    points, chunks, places, reasons_of = (np.concatenate(parts).astype(np.int64)
                                          for parts in zip(*columns, strict=True))
    order = np.argsort(points, kind="stable")[:_MOST_POINTS]
    return _Letters(points[order], chunks[order], places[order], reasons_of[order], texts)


def _reasons(run: Run, group: int, execution: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield status and message by the number of a chunk that failed; -1 for all of a group's."""
    decoded = read_decoded(run, group)
    if decoded is not None:
        corrupt = decoded.facts["corrupt"]
        for chunk in decoded.facts["corrupt_chunks"]:
            yield chunk, (Status.CORRUPT_CHUNK.label, corrupt.get(run.volume.chunk_label(chunk), ""))
        return
    try:
        note = json.loads(run.folder.read_bytes(f"failed/group-{group:03d}.json") or b"{}")
        if note.get("execution") == execution:
            yield -1, (NOT_FETCHED, str(note["message"]))
    except (ValueError, KeyError, AttributeError):
        return  # cut short by a kill: then there will be another execution


def _write(run: Run, letters: _Letters, path: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    words: Any = pa.dictionary(pa.int32(), pa.string())
    coordinates: list[Any] = [pa.field(name, _number_type(run, axis)) for axis, name in enumerate("xyz")]
    voxels: list[Any] = [pa.field(f"voxel_{name}", pa.int64()) for name in "xyz"]
    schema = pa.schema([pa.field("row", pa.int64()), pa.field("prefix", pa.string()), *coordinates, *voxels,
                        pa.field("chunk", words), pa.field("status", words), pa.field("message", words)])
    prefixes = len(run.columns)
    sources = list(dict.fromkeys(name for columns in run.columns for name in columns.sources))
    grid = run.volume.grid
    with pq.ParquetWriter(path, schema) as writer:
        row = 0
        for batch in run.table.batches(sources) if len(letters.points) else ():
            part = slice(*np.searchsorted(letters.points, [row * prefixes, (row + batch.num_rows) * prefixes]))
            points = letters.points[part]
            for prefix, columns in enumerate(run.columns):
                mine = np.flatnonzero(points % prefixes == prefix)
                if not len(mine):
                    continue
                axes = read_coordinates(batch, columns, row).axes
                rows = points[mine] // prefixes
                chunks = letters.chunks[part][mine]
                origins = grid.positions(chunks) * np.array(grid.chunk_size) + np.array(grid.voxel_offset)
                inside = origins + grid.voxels_of(letters.places[part][mine])
                reasons = [letters.texts[reason] for reason in letters.reasons[part][mine].tolist()]
                names = {chunk: run.volume.chunk_label(chunk) for chunk in np.unique(chunks).tolist()}
                writer.write_table(pa.Table.from_arrays([
                    to_arrow(rows), pa.array([columns.prefix] * len(rows), pa.string()),
                    *(to_arrow(axis[rows - row]).cast(field.type)
                      for axis, field in zip(axes, coordinates, strict=True)),
                    *(to_arrow(inside[:, axis]) for axis in range(3)),
                    pa.array([names[chunk] for chunk in chunks.tolist()]).dictionary_encode(),
                    pa.array([status for status, _ in reasons]).dictionary_encode(),
                    pa.array([message for _, message in reasons]).dictionary_encode(),
                ], schema=schema))
            row += batch.num_rows


def _number_type(run: Run, axis: int) -> Any:
    """Return int64 if this coordinate of every prefix is a whole number, else float64."""
    import pyarrow as pa

    sources = list(dict.fromkeys(name for columns in run.columns for name in columns.sources))
    for batch in run.table.batches(sources, 1):
        kinds = {read_coordinates(batch, columns).axes[axis].dtype.kind for columns in run.columns}
        return pa.int64() if kinds == {"i"} else pa.float64()
    return pa.int64()
