"""The plan stage: from a table of points to chunk groups on disk."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from voxelprobe.errors import InputError
from voxelprobe.planning import ChunkJobs, LocatedPoints, RegionTally, locate_points, order_by_chunk
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
from voxelprobe.run.spool import GroupSpool

PLAN_MANIFEST = "plan/manifest.json"
# With fewer points located at once they are kept between the two passes over the table.
_KEPT_POINTS = 8 << 20
_SAMPLE_POINTS = 50_000
# Fewer points outside than this are no sign of a wrong unit, just of odd points.
_MIN_POINTS_TO_JUDGE = 20

logger = logging.getLogger(__name__)


def read_plan(run: Run) -> Manifest | None:
    """Return the plan's marker, or None if there is no whole plan."""
    return read_manifest(run.folder, PLAN_MANIFEST, run.key)


def read_jobs(run: Run, group: int) -> ChunkJobs:
    """Return the chunks and points of a planned group."""
    chunks, regions, counts = read_columns(
        run.folder.local_copy(f"plan/chunks-{group:03d}.parquet"), CHUNK, REGION, COUNT
    )
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
        tally = RegionTally(run.volume.regions)
        kept: list[tuple[int, LocatedPoints]] | None = [] if total <= _KEPT_POINTS else None
        _first_pass(run, tally, kept, board, total)
        groups = tally.cut_groups()
        count = int(groups.max(initial=-1)) + 1
        scratch = run.folder.path(".tmp-spool")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            # The last group is for the points that lie in no chunk.
            spool = GroupSpool(scratch, count + 1)
            for first, located in kept if kept is not None else _locate(run):
                _distribute(run, spool, tally, np.append(groups, count), first, located)
                board.add("plan", 0, len(located.status), 0)
            facts = _write_groups(run, spool, count)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        facts |= {"points": total, "rows": run.table.num_rows, "seconds": round(time.monotonic() - started, 3)}
        files = [f"plan/{kind}-{group:03d}.parquet" for group in range(count) for kind in ("chunks", "points")]
        write_manifest(run.folder, PLAN_MANIFEST, run.key,
                       [*files, "plan/groups.parquet", "plan/unplaced.parquet"], facts)
        logger.info("planned %s points in %s chunks, %d groups, %.1f s",
                    f"{total:,}", f"{facts['chunks']:,}", count, time.monotonic() - started)


def _locate(run: Run) -> Iterator[tuple[int, LocatedPoints]]:
    """Yield the located points of each batch and prefix, with the number of the first point.

    Points of one batch and prefix are numbered first, first + prefixes, first + 2 * prefixes, ….
    """
    sources = list(dict.fromkeys(name for columns in run.columns for name in columns.sources))
    row = 0
    for batch in run.table.batches(sources):
        for prefix, columns in enumerate(run.columns):
            coordinates = read_coordinates(batch, columns, row)
            voxels = run.conversion.to_voxels(coordinates.values, coordinates.valid)
            yield row * len(run.columns) + prefix, locate_points(voxels, coordinates.valid, run.volume.grid)
        row += batch.num_rows


def _first_pass(
    run: Run, tally: RegionTally, kept: list[tuple[int, LocatedPoints]] | None, board: ProgressBoard, total: int
) -> None:
    """Count regions over the whole table, and refuse points in a wrong unit before anything is fetched."""
    board.expect("plan", 0, 2 * total)
    valid = outside = 0
    for first, located in _locate(run):
        tally.add(located.chunks[located.status == Status.OK])
        valid += int((located.status != Status.INVALID_COORDINATE).sum())
        outside += int((located.status == Status.OUT_OF_BOUNDS).sum())
        if kept is not None:
            kept.append((first, located))
        board.add("plan", 0, len(located.status), 0)
    if outside * 2 > valid:
        _judge_unit(run, valid, outside)


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


def _distribute(
    run: Run, spool: GroupSpool, tally: RegionTally, groups: Any, first: int, located: LocatedPoints
) -> None:
    """Put a batch's points into the spool by group; those without a chunk into the last, with their status."""
    step = len(run.columns)
    points = first + np.arange(len(located.status), dtype=np.int64) * step
    placed = located.status == Status.OK
    if not placed.all():
        nowhere = ~placed
        last = np.full(int(nowhere.sum()), groups[-1], np.int64)
        spool.add(points[nowhere], np.full(len(last), -1, np.int64), located.status[nowhere].astype(np.int64), last)
        points, chunks, places = points[placed], located.chunks[placed], located.places[placed]
    else:
        chunks, places = located.chunks, located.places
    order = np.argsort(chunks, kind="stable")
    ordered = chunks[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    of_chunk = groups[np.searchsorted(tally.numbers, run.volume.regions.numbers(ordered[starts]))]
    of_point = np.repeat(of_chunk, np.diff(np.append(starts, len(ordered))))
    spool.add(points[order], ordered, places[order], of_point)


def _write_groups(run: Run, spool: GroupSpool, count: int) -> dict[str, Any]:
    chunks = np.zeros(count, np.int64)
    points = np.zeros(count, np.int64)
    for group in range(count):
        jobs = order_by_chunk(*spool.take(group), run.volume.regions)
        with run.folder.new_file(f"plan/chunks-{group:03d}.parquet") as path:
            write_columns(path, {CHUNK: jobs.chunks, REGION: jobs.regions, COUNT: np.diff(jobs.first)})
        with run.folder.new_file(f"plan/points-{group:03d}.parquet") as path:
            write_columns(path, {POINT: jobs.points, PLACE: jobs.places.astype(np.uint32)})
        chunks[group], points[group] = len(jobs.chunks), len(jobs.points)
    nowhere, _, status = spool.take(count)
    with run.folder.new_file("plan/unplaced.parquet") as path:
        write_columns(path, {POINT: nowhere, STATUS: status.astype(np.uint8)})
    with run.folder.new_file("plan/groups.parquet") as path:
        write_columns(path, {GROUP: np.arange(count), CHUNKS: chunks, COUNT: points})
    return {"groups": count, "chunks": int(chunks.sum()), "chunks_of_group": chunks.tolist(),
            "unplaced": len(nowhere)}
