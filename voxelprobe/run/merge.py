"""The merge stage: labels and roots back beside the user's rows, in the user's order."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.errors import StaleRunError, TransportError
from voxelprobe.records import NOT_SET, POINT, STATUS, Status, read_columns
from voxelprobe.run.groups import read_decoded, read_labels
from voxelprobe.run.manifests import Manifest, read_manifest, write_manifest
from voxelprobe.run.plan import read_plan
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.report import REPORT, write_report
from voxelprobe.run.result import PointValues, Result
from voxelprobe.run.roots import read_roots
from voxelprobe.storage import temporary_path

# Larger arrays live in a file, so that a run of 10^9 points fits a small machine.
_MEMORY_BYTES = 512 << 20

logger = logging.getLogger(__name__)


def read_merged(result: Result) -> Manifest | None:
    """Return the marker of a result table, or None unless the table is there as it was written."""
    manifest = read_manifest(result.run.folder, result.marker, result.run.key)
    if manifest is None or result.folder.version(result.name) != manifest.facts.get("output_version"):
        return None
    return manifest


def merge_run(result: Result, *, board: ProgressBoard, execution: str) -> None:
    """Write the result table of a run whose groups are all done, its report, and then the marker."""
    run = result.run
    stem = result.marker.rsplit("/", 1)[-1].removesuffix(".json")
    with run.lock(f"merge-{stem}"):
        started = time.monotonic()
        plan = read_plan(run)
        if plan is None:
            raise StaleRunError(f"{run.folder.location.url}: the plan is gone or damaged; run again")
        for leftover in (f"{stem}.*", result.marker, REPORT):
            run.folder.sweep(leftover)
        scratch = temporary_path(run.folder.path(f"{stem}."))
        try:
            values, facts = _gather(result, plan, scratch)
            result.folder.sweep(result.name)
            with result.folder.new_file(result.name) as path:
                result.write(path, values, board)
        finally:
            for leftover_path in scratch.parent.glob(f"{scratch.name}*"):
                leftover_path.unlink(missing_ok=True)
        facts |= {
            "output": result.url,
            "output_version": result.folder.version(result.name),
            "roots_at": None if result.roots is None else result.roots.provenance,
            "rows": plan.facts["rows"],
            "points": len(values.status),
            "execution": execution,
            "seconds": round(time.monotonic() - started, 3),
        }
        write_report(result, plan, facts)
        write_manifest(run.folder, result.marker, run.key, [], facts)
        logger.info("merged %s rows into %s, %.1f s", f"{facts['rows']:,}", result.url, time.monotonic() - started)


def _gather(result: Result, plan: Manifest, scratch: Path) -> tuple[PointValues, dict[str, Any]]:
    """Scatter the values of all groups by point number; return them, and what there is to say of them."""
    run = result.run
    count, scale = int(plan.facts["points"]), run.volume.scale
    labels = _allocate((count, scale.num_channels), scale.dtype, scratch, "labels")
    status = _allocate((count,), np.dtype(np.uint8), scratch, "status")
    roots = None if result.roots is None else _allocate((count,), np.dtype(np.uint64), scratch, "roots")
    status[:] = NOT_SET
    points, states = read_columns(run.folder.local_copy("plan/unplaced.parquet"), POINT, STATUS)
    status[points] = states
    corrupt: dict[str, str] = {}
    # Different labels and roots, group by group; the zero share is of labels, or of roots where there are any.
    seen: tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]] = ([], [])
    background = 0
    for group in range(int(plan.facts["groups"])):
        manifest = read_decoded(run, group)
        if manifest is None:
            raise StaleRunError(f"labels of group {group} are gone or damaged; run again")
        corrupt |= manifest.facts["corrupt"]
        points, found, states = read_labels(run, group)
        labels[points] = found
        seen[0].append(np.unique(found[states == Status.OK]))
        background += int(np.count_nonzero((found[:, 0] == 0) & (states == Status.OK)))
        if roots is not None and result.roots is not None:
            supervoxels, of_supervoxels, resolved = read_roots(run, group, result.roots)
            read = states == Status.OK
            at = np.searchsorted(supervoxels, found[read, 0])
            roots[points[read]] = of_supervoxels[at]
            states = states.copy()
            states[read] = np.where(resolved[at], Status.OK, Status.NO_ROOT)
            seen[1].append(np.unique(of_supervoxels[resolved]))
        status[points] = states
    unset = np.flatnonzero(status == NOT_SET)
    if len(unset):
        raise StaleRunError(f"{len(unset)} points are in no group, the first is point {unset[0]}; run again")
    counts = np.bincount(status, minlength=len(Status))
    facts = {
        "labels": _count_different(seen[0]),
        "roots": None if roots is None else _count_different(seen[1]),
        "background": background,
        "status": {state.label: int(counts[state]) for state in Status if counts[state]},
        "corrupt": corrupt,
    }
    return PointValues(labels, status, roots), facts


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any], scratch: Path, name: str) -> npt.NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    if size <= _MEMORY_BYTES:
        return np.zeros(shape, dtype)
    path = scratch.with_name(scratch.name + name)
    try:
        with open(path, "wb") as file:
            # Writing to a map of a file without blocks, on a full disk, ends the process without a word.
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise TransportError(f"{path}: no room for {size:,} bytes: {error.strerror or error}") from error
    return np.memmap(path, dtype, "r+", shape=shape)


def _count_different(parts: list[npt.NDArray[Any]]) -> int:
    return len(np.unique(np.concatenate(parts))) if parts else 0
