"""The files of a group's roots: those of its supervoxels, to resolve it again, and those of its points, to merge."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64, UInt64
from voxelprobe.errors import InputError, StaleRunError
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.records import RESOLVED, ROOT, STATUS, SUPERVOXEL, Status, read_columns, write_columns
from voxelprobe.resolving import ResolvedRoots
from voxelprobe.run.blocks import BlockFile, write_blocks
from voxelprobe.run.groups import read_decoded
from voxelprobe.run.manifests import Manifest, read_manifest, write_manifest
from voxelprobe.run.spec import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RootsAt:
    """Which roots a result has: at what time, and of what layer (None: the roots proper)."""

    timestamp: Timestamp
    stop_layer: int | None

    @property
    def key(self) -> str:
        """Return the name of the folder for these roots."""
        layer = "" if self.stop_layer is None else f"-layer{self.stop_layer}"
        return self.timestamp.text.replace("-", "").replace(":", "") + layer

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what a result's metadata says of its roots."""
        return {"timestamp": self.timestamp.text, "stop_layer": self.stop_layer}


def stem_of_roots(group: int, roots: RootsAt) -> str:
    """Return how the names of a group's files begin."""
    return f"roots/{roots.key}/group-{group:03d}"


def read_resolved(run: Run, group: int, roots: RootsAt) -> Manifest | None:
    """Return the marker of a group's roots, made from the labels that there are now, or None."""
    decoded = read_decoded(run, group)
    if decoded is None:
        return None
    return read_manifest(run.folder, f"{stem_of_roots(group, roots)}.json", _key(run, decoded))


def read_roots(run: Run, group: int, roots: RootsAt) -> tuple[Any, Any, Any]:
    """Return a group's supervoxels (n,), each once and sorted, their roots (n,) and whether they have one (n,)."""
    columns = read_columns(run.folder.local_copy(f"{stem_of_roots(group, roots)}.parquet"), SUPERVOXEL, ROOT, RESOLVED)
    if columns[0].dtype != np.uint64 or columns[1].dtype != np.uint64:
        raise StaleRunError(f"roots of group {group}: expected uint64, found {columns[0].dtype}, {columns[1].dtype}")
    return columns[0], columns[1], columns[2]


def open_roots_of_points(run: Run, group: int, roots: RootsAt, resolved: Manifest) -> BlockFile:
    """Return the file of a group's points: `root`, `status`, in the order of its labels' file."""
    path = run.folder.local_copy(f"{stem_of_roots(group, roots)}-points.parquet")
    return BlockFile.of_facts(path, resolved.facts)


def read_earlier(run: Run, group: int, roots: RootsAt) -> tuple[UInt64, UInt64]:
    """Return the ids and roots (n,) of a group that was resolved before its corrupt chunks were mended, if any."""
    name = f"{stem_of_roots(group, roots)}.json"
    try:
        key = str(json.loads(run.folder.read_bytes(name) or b"{}").get("key"))
        if read_manifest(run.folder, name, key) is not None:
            return read_roots(run, group, roots)[:2]
    except (ValueError, AttributeError, InputError, StaleRunError):
        logger.debug("%s can't be used; asking again", name)
    return np.zeros(0, np.uint64), np.zeros(0, np.uint64)


def write_roots(
    run: Run, group: int, roots: RootsAt, decoded: Manifest, *, ids: UInt64, found: ResolvedRoots, points: Int64,
    supervoxels: UInt64, status: npt.NDArray[np.uint8], facts: dict[str, Any],
) -> None:
    """Write a group's roots and their marker.

    Parameters
    ----------
    decoded
        The marker of the labels that they are the roots of.
    ids, found
        Each supervoxel once, sorted, shape (m,), and what was found for it.
    points, supervoxels, status
        Shape (n,), in the order of the plan.
    facts
        What else the marker is to say.
    """
    stem = stem_of_roots(group, roots)
    values, states = _of_points(ids, found, supervoxels, status)
    run.folder.sweep(f"{stem}*")
    with run.folder.new_file(f"{stem}.parquet") as path:
        write_columns(path, {SUPERVOXEL: ids, ROOT: found.roots, RESOLVED: found.resolved})
    with run.folder.new_file(f"{stem}-points.parquet") as path:
        written = write_blocks(path, points, {ROOT: values, STATUS: states}, ROOT, found.roots[found.resolved],
                               size=decoded.facts["block_size"])
    counts = np.bincount(states, minlength=len(Status))
    written["status"] = {state.label: int(counts[state]) for state in Status if counts[state]}
    files = [f"{stem}.parquet", f"{stem}-points.parquet"]
    write_manifest(run.folder, f"{stem}.json", _key(run, decoded), files, facts | written)


def _of_points(
    ids: UInt64, found: ResolvedRoots, supervoxels: UInt64, status: npt.NDArray[np.uint8]
) -> tuple[UInt64, npt.NDArray[np.uint8]]:
    """Return the root of each point, shape (n,), 0 without one, and its status."""
    read = status == Status.OK
    values, states = np.zeros(len(read), np.uint64), status.copy()
    at = np.searchsorted(ids, supervoxels[read])
    values[read] = found.roots[at]
    states[read] = np.where(found.resolved[at], Status.OK, Status.NO_ROOT)
    return values, states


def _key(run: Run, decoded: Manifest) -> str:
    return f"{run.key}-{decoded.facts['digest']}"
