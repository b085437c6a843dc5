"""The fetch and decode stages of one chunk group."""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

import numpy as np

from voxelprobe.arrays import Int64
from voxelprobe.cache.protocol import ChunkCache
from voxelprobe.decoding import DecodedPoints, decode_points
from voxelprobe.errors import StaleRunError
from voxelprobe.fetching import fetch_chunks
from voxelprobe.fetching_voxels import can_read_voxels
from voxelprobe.planning import ChunkJobs
from voxelprobe.records import STATUS, Status, label_columns
from voxelprobe.run.blocks import BlockFile, block_size, write_blocks
from voxelprobe.run.manifests import Manifest, read_manifest, write_manifest
from voxelprobe.run.plan import expect_plan, read_jobs
from voxelprobe.run.progress import ProgressBoard, format_bytes
from voxelprobe.run.spec import Run

# Of the labels' files. 2: by block of points, and with the different labels.
_LAYOUT = 2

logger = logging.getLogger(__name__)


def read_fetched(run: Run, group: int) -> Manifest | None:
    """Return the marker of a group's fetch, or None."""
    return read_manifest(run.folder, f"fetch/group-{group:03d}.json", run.key)


def read_decoded(run: Run, group: int) -> Manifest | None:
    """Return the marker of a group's labels, or None."""
    return read_manifest(run.folder, f"labels/group-{group:03d}.json", _key(run))


def open_labels(run: Run, group: int, decoded: Manifest) -> BlockFile:
    """Return a decoded group's file: `point`, `status`, and the labels of each channel."""
    path = run.folder.local_copy(f"labels/group-{group:03d}.parquet")
    return BlockFile.of_facts(path, decoded.facts)


def read_labels(run: Run, group: int, decoded: Manifest, points: Int64) -> tuple[Any, Any]:
    """Return labels (n, channels) and status (n,) of a decoded group, in the order of its planned points (n,)."""
    names = label_columns(None, run.volume.scale.num_channels)
    status, *labels = open_labels(run, group, decoded).read_points(points, STATUS, *names)
    check_labels(run, group, labels)
    return np.stack(labels, axis=1), status


def check_labels(run: Run, group: int, labels: list[Any]) -> None:
    """Raise `StaleRunError` if labels that were read aren't of the volume's dtype."""
    if any(column.dtype != run.volume.scale.dtype for column in labels):
        raise StaleRunError(f"labels of group {group}: expected {run.volume.scale.dtype}, found {labels[0].dtype}")


def expect_groups(run: Run, board: ProgressBoard, chunks_of_group: list[int]) -> None:
    """Tell the board of the groups that are still to be done, so that it knows the whole."""
    for group, chunks in enumerate(chunks_of_group):
        if read_decoded(run, group) is None:
            board.expect("decode", group, chunks)
            if read_fetched(run, group) is None:
                board.expect("fetch", group, chunks)


def fetch_group(run: Run, group: int, cache: ChunkCache, *, threads: int, board: ProgressBoard) -> None:
    """Bring a group's chunks into the cache and leave its marker."""
    with run.lock(f"fetch-{group:03d}"):
        if read_fetched(run, group) is not None:
            return
        run.folder.sweep(f"fetch/group-{group:03d}.json")
        started = time.monotonic()
        jobs = read_jobs(run, group, with_points=can_read_voxels(run.volume))
        board.expect("fetch", group, len(jobs.chunks))
        report = fetch_chunks(
            run.volume, jobs, cache, threads=threads, missing_is_error=run.missing_is_error,
            progress=lambda chunks, received: board.add("fetch", group, chunks, received),
        )
        seconds = time.monotonic() - started
        facts = {name: getattr(report, name)
                 for name in ("chunks", "cached", "fetched", "absent", "by_range", "requests", "bytes", "retries")}
        corrupt = {run.volume.chunk_label(chunk): message for chunk, message in report.corrupt.items()}
        write_manifest(run.folder, f"fetch/group-{group:03d}.json", run.key, [],
                       facts | {"corrupt": corrupt, "seconds": round(seconds, 3)})
        logger.info(
            "group %d: fetched %s of %s chunks, %s in %s requests, %s missing, %.1f s", group,
            f"{report.fetched:,}", f"{report.chunks:,}", format_bytes(report.bytes), f"{report.requests:,}",
            f"{report.absent:,}", seconds,
        )


def sweep_fetches(run: Run) -> None:
    """Delete half-written markers of fetches that nobody will do again, since the groups have their labels."""
    for leftover in run.folder.path("fetch").glob(".tmp-*-group-*.json"):
        group = leftover.stem.rsplit("-", 1)[-1]
        with run.lock(f"fetch-{group}"):
            run.folder.sweep(f"fetch/group-{group}.json")


def decode_group(
    run: Run, group: int, cache: ChunkCache, *, threads: int, board: ProgressBoard, execution: str
) -> None:
    """Read a group's labels and leave them with their marker.

    A group that has labels already but for corrupt chunks has just those done again.

    Parameters
    ----------
    execution
        Noted in the marker: corrupt chunks are tried once an execution.
    """
    with run.lock(f"decode-{group:03d}"):
        before = read_decoded(run, group)
        if before is not None and not is_due(before, execution):
            return
        started = time.monotonic()
        run.folder.sweep(f"labels/group-{group:03d}.*")
        jobs = read_jobs(run, group)
        todo = jobs
        if before is not None:
            todo, of_points = jobs.select(np.isin(jobs.chunks, before.facts["corrupt_chunks"]))
        board.expect("decode", group, len(todo.chunks))
        decoded = decode_points(
            run.volume, todo, cache, threads=threads, missing_is_error=run.missing_is_error,
            progress=lambda chunks, received: board.add("decode", group, chunks, received),
        )
        labels, status = decoded.labels, decoded.status
        if before is not None:
            labels, status = (array.copy() for array in read_labels(run, group, before, jobs.points))
            labels[of_points], status[of_points] = decoded.labels, decoded.status
        _write_labels(run, group, jobs, labels, status, decoded, execution, time.monotonic() - started)
        for chunk, message in decoded.corrupt.items():
            logger.error("%s: %s", run.volume.chunk_label(chunk), message)
        logger.info("group %d: decoded %s points in %s chunks, %.1f s", group,
                    f"{len(todo.points):,}", f"{len(todo.chunks):,}", time.monotonic() - started)


def is_due(manifest: Manifest, execution: str) -> bool:
    """Return whether a stage with corrupt chunks is to be tried again: once an execution."""
    return bool(manifest.facts.get("corrupt")) and manifest.facts.get("execution") != execution


def _write_labels(
    run: Run, group: int, jobs: ChunkJobs, labels: Any, status: Any, decoded: DecodedPoints,
    execution: str, seconds: float,
) -> None:
    names = label_columns(None, run.volume.scale.num_channels)
    file = f"labels/group-{group:03d}.parquet"
    columns = {STATUS: status} | {name: labels[:, channel] for channel, name in enumerate(names)}
    counts = np.bincount(status, minlength=len(Status))
    read = labels if counts[Status.OK] == len(status) else labels[status == Status.OK]
    with run.folder.new_file(file) as path:
        size = block_size(int(expect_plan(run).facts["points"]))
        written = write_blocks(path, jobs.points, columns, names[0], read, size=size)
        if run.volume.graph is not None:
            with open(path, "rb") as content:
                # What roots are made from.
                digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16))
            written["digest"] = digest.hexdigest()
    facts = written | {
        "points": len(jobs.points),
        "chunks": len(jobs.chunks),
        "status": {state.label: int(counts[state]) for state in Status if counts[state]},
        "background": int(np.count_nonzero(read[:, 0] == 0)),
        "fetched_again": decoded.fetched,
        "corrupt": {run.volume.chunk_label(chunk): message for chunk, message in decoded.corrupt.items()},
        "corrupt_chunks": sorted(decoded.corrupt),
        "execution": execution,
        "seconds": round(seconds, 3),
    }
    write_manifest(run.folder, f"labels/group-{group:03d}.json", _key(run), [file], facts)


def _key(run: Run) -> str:
    """Return the key of markers of labels: files of another layout, of an older version, are made again."""
    return f"{run.key}-{_LAYOUT}"
