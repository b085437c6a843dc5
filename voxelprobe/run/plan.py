"""The plan stage: from a table of points to chunk groups on disk."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from voxelprobe.errors import InputError, StaleRunError
from voxelprobe.ordering import PointRun, sort_run
from voxelprobe.planning import ChunkJobs, RegionTally, locate_points, merge_jobs
from voxelprobe.points import read_coordinates, suggest_unit
from voxelprobe.records import (
    CHUNK,
    CHUNKS,
    COUNT,
    GROUP,
    PLACE,
    POINT,
    REGION,
    STATUS,
    Status,
    read_columns,
    write_columns,
)
from voxelprobe.run.manifests import Manifest, read_manifest, write_manifest
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.spec import Run
from voxelprobe.run.spool import RunSpool
from voxelprobe.run.threads import count_threads, map_in_order

PLAN_MANIFEST = "plan/manifest.json"
# Points that are sorted at once: few enough for a cache, unless there were more than a thousand such runs to merge.
_SORTED_POINTS = 1 << 18
_MANY_POINTS = 1 << 28
# Points of groups that are merged at once, at about 32 bytes each.
_MERGED_POINTS = 12 << 20
_SAMPLE_POINTS = 50_000
# Fewer points outside than this are no sign of a wrong unit, just of odd points.
_MIN_POINTS_TO_JUDGE = 20

logger = logging.getLogger(__name__)


def read_plan(run: Run) -> Manifest | None:
    """Return the plan's marker, or None if there is no whole plan."""
    return read_manifest(run.folder, PLAN_MANIFEST, run.key)


def expect_plan(run: Run) -> Manifest:
    """Return the plan's marker.

    Raises
    ------
    StaleRunError
        If there is no whole plan.
    """
    plan = read_plan(run)
    if plan is None:
        raise StaleRunError(f"{run.folder.location.url}: the plan is gone or damaged; run again")
    return plan


def read_jobs(run: Run, group: int, *, with_points: bool = True) -> ChunkJobs:
    """Return the chunks and points of a planned group; for who needs only the chunks, without the points."""
    chunks, regions, counts = read_columns(
        run.folder.local_copy(f"plan/chunks-{group:03d}.parquet"), CHUNK, REGION, COUNT
    )
    points = places = np.zeros(0, np.int64)
    if with_points:
        points, places = read_columns(run.folder.local_copy(f"plan/points-{group:03d}.parquet"), POINT, PLACE)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ChunkJobs(chunks, regions, first, points, places.astype(np.int64))


def plan_run(run: Run, board: ProgressBoard) -> None:
    """Write the plan of a run: its groups, the chunks and points of each, and the points that are nowhere.

    Raises
    ------
    InputError
        If columns are missing, or most points fall outside the volume and another unit would fit.
    """
    with run.lock("plan"):
        if read_plan(run) is not None:
            return
        started = time.monotonic()
        run.folder.sweep("plan/*")
        total = run.table.num_rows * len(run.columns)
        logger.info("planning %s points of %s", f"{total:,}", run.settings.points)
        scratch = run.folder.path(".tmp-spool")
        shutil.rmtree(scratch, ignore_errors=True)
        board.expect("plan", 0, 2 * total)
        try:
            with closing(RunSpool(scratch)) as spool, closing(RunSpool(scratch / "unplaced")) as unplaced:
                tally = _sort_points(run, spool, unplaced, board, total)
                groups = tally.cut_groups()
                count = int(groups.max(initial=-1)) + 1
                spool.cut(tally.numbers[np.flatnonzero(np.diff(groups, prepend=-1))])
                facts = _write_groups(run, spool, count, board)
                facts["unplaced"] = _write_unplaced(run, unplaced, board)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        facts |= {"points": total, "rows": run.table.num_rows, "seconds": round(time.monotonic() - started, 3)}
        run.check_points()
        files = [f"plan/{kind}-{group:03d}.parquet" for group in range(count) for kind in ("chunks", "points")]
        write_manifest(run.folder, PLAN_MANIFEST, run.key,
                       [*files, "plan/groups.parquet", "plan/unplaced.parquet"], facts)
        logger.info("planned %s points in %s chunks, %d groups, %.1f s",
                    f"{total:,}", f"{facts['chunks']:,}", count, time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _SortedBatch:
    """The points of a batch: in the order of their chunks, and those that lie in none, with their status as place."""

    rows: int
    placed: PointRun
    unplaced: PointRun
    outside: int


def _sort_points(run: Run, spool: RunSpool, unplaced: RunSpool, board: ProgressBoard, total: int) -> RegionTally:
    """Read the table once: into the spools and the tally. Refuse points in a wrong unit."""
    tally = RegionTally(run.volume.regions)
    valid = outside = 0
    rows = max(1, (_SORTED_POINTS if total <= _MANY_POINTS else 4 * _SORTED_POINTS) // len(run.columns))
    threads = count_threads() if run.table.num_rows > rows else 1
    for batch in map_in_order(lambda item: _sort_batch(run, *item), _number_batches(run, rows), threads):
        tally.add(batch.placed.regions, batch.placed.counts)
        if len(batch.placed.words):
            spool.add(batch.placed)
        if len(batch.unplaced.words):
            unplaced.add(batch.unplaced)
        valid += len(batch.placed.words) + batch.outside
        outside += batch.outside
        board.add("plan", 0, batch.rows * len(run.columns), 0)
    if outside * 2 > valid:
        _judge_unit(run, valid, outside)
    return tally


def _number_batches(run: Run, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the batches of the table's points, with the number of the first row."""
    sources = list(dict.fromkeys(name for columns in run.columns for name in columns.sources))
    row = 0
    for batch in run.table.batches(sources, rows):
        yield row, batch
        row += batch.num_rows


def _sort_batch(run: Run, row: int, batch: pa.RecordBatch) -> _SortedBatch:
    located = []
    for columns in run.columns:
        coordinates = read_coordinates(batch, columns, row)
        located.append(locate_points(coordinates.axes, coordinates.present, run.conversion, run.volume.regions))
    # Points of a row are neighbours in their numbers.
    regions, cells, places, status = (
        getattr(located[0], name) if len(located) == 1 else np.stack([getattr(one, name) for one in located], 1).ravel()
        for name in ("regions", "cells", "places", "status")
    )
    first = row * len(run.columns)
    lost = np.flatnonzero(status)
    nowhere = np.zeros(len(lost), np.uint8)
    unplaced = sort_run(first, lost, nowhere, nowhere, status[lost])
    numbers = None
    if len(lost):
        numbers = np.flatnonzero(status == Status.OK)
        regions, cells, places = regions[numbers], cells[numbers], places[numbers]
    placed = sort_run(first, numbers, regions, cells, places)
    return _SortedBatch(batch.num_rows, placed, unplaced, int((status == Status.OUT_OF_BOUNDS).sum()))


def _judge_unit(run: Run, valid: int, outside: int) -> None:
    """Raise if most points fall outside and another unit or order of axes would put more of them inside."""
    suggestion = suggest_unit(_sample(run), run.volume.info.scales, run.volume.scale, run.unit)
    scale = run.volume.scale
    end = [offset + size for offset, size in zip(scale.voxel_offset, scale.size, strict=True)]
    found = (
        f"points table {run.settings.points}: {outside:,} of {valid:,} points lie outside of {run.volume.url} "
        f"(voxels {list(scale.voxel_offset)} to {end} at mip {run.volume.mip}), "
        f"taken as {','.join(run.unit)} nm a voxel"
    )
    if suggestion is None:
        logger.warning("%s; no other unit or order of axes fits better", found)
        return
    advice = f"{found}; {suggestion.text} would put {suggestion.share:.1%} of them inside"
    if valid < _MIN_POINTS_TO_JUDGE:
        logger.warning("%s", advice)
        return
    raise InputError(advice)


def _sample(run: Run) -> Any:
    sources = list(dict.fromkeys(name for columns in run.columns for name in columns.sources))
    samples = []
    step = max(1, run.table.num_rows * len(run.columns) // _SAMPLE_POINTS)
    for batch in run.table.batches(sources):
        for columns in run.columns:
            coordinates = read_coordinates(batch, columns)
            samples.append(coordinates.values[coordinates.valid][::step])
    return np.concatenate(samples)


def _write_groups(run: Run, spool: RunSpool, count: int, board: ProgressBoard) -> dict[str, Any]:
    def write(group: int) -> tuple[int, int]:
        jobs = merge_jobs(list(spool.take(group)), run.volume.regions)
        with run.folder.new_file(f"plan/chunks-{group:03d}.parquet") as path:
            write_columns(path, {CHUNK: jobs.chunks, REGION: jobs.regions, COUNT: np.diff(jobs.first)})
        with run.folder.new_file(f"plan/points-{group:03d}.parquet") as path:
            write_columns(path, {POINT: jobs.points, PLACE: jobs.places})
        return len(jobs.chunks), len(jobs.points)

    largest = max(map(spool.count, range(count)), default=0)
    threads = max(1, min(count_threads(), count, _MERGED_POINTS // max(largest, 1)))
    chunks = np.zeros(count, np.int64)
    points = np.zeros(count, np.int64)
    for group, written in enumerate(map_in_order(write, range(count), threads)):
        chunks[group], points[group] = written
        board.add("plan", 0, int(points[group]), 0)
    with run.folder.new_file("plan/groups.parquet") as path:
        write_columns(path, {GROUP: np.arange(count), CHUNKS: chunks, COUNT: points})
    return {"groups": count, "chunks": int(chunks.sum()), "chunks_of_group": chunks.tolist()}


def _write_unplaced(run: Run, spool: RunSpool, board: ProgressBoard) -> int:
    spool.cut(np.zeros(1, np.int64))
    points = np.empty(spool.count(0), np.int64)
    status = np.empty(len(points), np.uint8)
    done = 0
    for part in spool.take(0):
        block = slice(done, done + len(part.words))
        points[block] = part.words >> np.uint64(32)
        points[block] += part.first
        status[block] = part.words.astype(np.uint8)
        done = block.stop
    with run.folder.new_file("plan/unplaced.parquet") as path:
        write_columns(path, {POINT: points, STATUS: status})
    board.add("plan", 0, len(points), 0)
    return len(points)
