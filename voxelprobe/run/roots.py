"""The resolve stage of one chunk group: supervoxels to roots at one pinned time, a checkpoint a batch."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelprobe.arrays import UInt64
from voxelprobe.errors import InputError, StaleRunError, TransportError, VoxelProbeError
from voxelprobe.graphene.table import GraphTable
from voxelprobe.graphene.timestamps import Timestamp, parse_timestamp
from voxelprobe.points import UnitConversion, unit_of_resolution
from voxelprobe.records import RESOLVED, ROOT, SUPERVOXEL, Status, read_columns, write_columns
from voxelprobe.resolving import ResolvedRoots, resolve_roots, wanted_layer
from voxelprobe.run.groups import read_decoded, read_labels
from voxelprobe.run.manifests import Manifest, read_manifest, write_manifest
from voxelprobe.run.plan import read_jobs
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.spec import Run

# A supervoxel is in the graph chunk that its voxel is in, always at cv_mip. At a coarser mip a voxel
# may have the label of a neighbour across the border of a chunk; more than that is a wrong unit.
MAX_MISMATCH_SHARE = 0.05

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


def pin_roots(run: Run, timestamp: str, stop_layer: int | None) -> RootsAt:
    """Return the time and layer of a run's roots; `now` is the time at which this run was first asked for it.

    Raises
    ------
    InputError
        If the volume has no graph, the graph no such layer, or the text names no past time.
    """
    graph = graph_of(run)
    wanted_layer(graph.layout, stop_layer)
    now = time.time()
    if timestamp.strip().lower() != "now":
        return RootsAt(parse_timestamp(timestamp, now=now), stop_layer)
    # Written down, so that a resumed run, and every process of it, means the same moment.
    with run.lock("now"):
        content = run.folder.read_bytes("roots/now.json")
        if content is not None:
            return RootsAt(Timestamp(int(json.loads(content)["milliseconds"])), stop_layer)
        pinned = parse_timestamp("now", now=now)
        document = {"timestamp": pinned.text, "milliseconds": pinned.milliseconds}
        run.folder.write_bytes("roots/now.json", json.dumps(document).encode() + b"\n")
        return RootsAt(pinned, stop_layer)


def warn_of_roots(run: Run, roots: RootsAt) -> None:
    """Say what a reader of these roots should know: a time that isn't settled, supervoxels that were split."""
    graph = graph_of(run)
    if warning := roots.timestamp.recent_warning(time.time()):
        logger.warning("%s", warning)
    if graph.layout.ocdbt_seg:
        logger.warning(
            "%s: ocdbt_seg is true: supervoxels may have been split in a copy of the watershed; the labels are read "
            "from %s, whose old supervoxels resolve to outdated roots", graph.url.url, graph.layout.data_dir,
        )


def graph_of(run: Run) -> GraphTable:
    """Return the graph of a run's volume, or raise if it has none."""
    if run.volume.graph is None:
        raise InputError(f"{run.settings.volume} has no roots: expected a graphene:// volume")
    return run.volume.graph


def read_resolved(run: Run, group: int, roots: RootsAt) -> Manifest | None:
    """Return the marker of a group's roots, made from the labels that there are now, or None."""
    decoded = read_decoded(run, group)
    if decoded is None:
        return None
    return read_manifest(run.folder, f"{_stem(group, roots)}.json", _key(run, decoded))


def read_roots(run: Run, group: int, roots: RootsAt) -> tuple[Any, Any, Any]:
    """Return a group's supervoxels (n,), each once and sorted, their roots (n,) and whether they have one (n,)."""
    columns = read_columns(run.folder.local_copy(f"{_stem(group, roots)}.parquet"), SUPERVOXEL, ROOT, RESOLVED)
    if columns[0].dtype != np.uint64 or columns[1].dtype != np.uint64:
        raise StaleRunError(f"roots of group {group}: expected uint64, found {columns[0].dtype}, {columns[1].dtype}")
    return columns[0], columns[1], columns[2]


def resolve_group(
    run: Run, group: int, roots: RootsAt, *, batch_size: int, concurrency: int, board: ProgressBoard, execution: str
) -> None:
    """Resolve a group's supervoxels and leave their roots with the marker.

    Parameters
    ----------
    execution
        Once a group has failed in it, the server isn't asked for others: what one was refused, all would be,
        and a server that is down costs minutes of waiting.

    Raises
    ------
    InputError
        If many supervoxels aren't of the graph chunk that their points are in: the server isn't asked.
    AuthorizationError, TransportError
        If the server refuses or doesn't answer. The batches that were answered stay.
    """
    graph = graph_of(run)
    with run.lock(f"resolve-{group:03d}-{roots.key}"), _failing_once(run, group, roots, execution):
        if read_resolved(run, group, roots) is not None:
            return
        decoded = read_decoded(run, group)
        if decoded is None:
            raise StaleRunError(f"labels of group {group} are gone or damaged; run again")
        started = time.monotonic()
        _, labels, status = read_labels(run, group)
        read = status == Status.OK
        share = _check_chunks(run, group, graph, labels[:, 0], read)
        ids = np.unique(labels[read, 0])
        checkpoints = _Checkpoints(run, f"{_stem(group, roots)}.parts")
        known = checkpoints.read(_read_earlier(run, group, roots))
        board.expect("resolve", group, len(ids))

        def keep(begin: int, asked: UInt64, answers: UInt64) -> None:
            checkpoints.write(asked, answers)
            board.add("resolve", group, len(asked), 0)

        with closing(graph.open_client(connections=concurrency)) as client:
            found = resolve_roots(
                ids, fetch=lambda some: client.fetch_roots(some, timestamp=roots.timestamp,
                                                           stop_layer=roots.stop_layer),
                layout=graph.layout, stop_layer=roots.stop_layer, batch_size=batch_size, concurrency=concurrency,
                on_batch=keep, known=known,
            )
            requests, received = client.traffic.requests, client.traffic.bytes
        facts = {"supervoxels": len(ids), "asked": found.asked, "requests": requests, "bytes": received,
                 "unresolved": int(np.count_nonzero(~found.resolved)), "chunk_mismatch_share": share}
        _write_roots(run, group, roots, ids, found, facts | {"seconds": round(time.monotonic() - started, 3)},
                     _key(run, decoded))
        checkpoints.remove()
        logger.info("group %d: resolved %s supervoxels in %s requests, %s without a root, %.1f s", group,
                    f"{len(ids):,}", f"{requests:,}", f"{facts['unresolved']:,}", time.monotonic() - started)


@contextmanager
def _failing_once(run: Run, group: int, roots: RootsAt, execution: str) -> Iterator[None]:
    """Note which group failed first in an execution, and raise for the ones after it."""
    note = run.folder.path(f"roots/{roots.key}/failed-{execution}")
    if note.exists():
        raise TransportError(f"group {group} was not resolved, since group {note.read_text()} failed (see above); "
                             "the same command goes on from here")
    for older in note.parent.glob("failed-*"):
        older.unlink(missing_ok=True)
    try:
        yield
    except VoxelProbeError:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(str(group))
        raise


def _stem(group: int, roots: RootsAt) -> str:
    return f"roots/{roots.key}/group-{group:03d}"


def _read_earlier(run: Run, group: int, roots: RootsAt) -> tuple[UInt64, UInt64]:
    """Return the ids and roots (n,) of a group that was resolved before its corrupt chunks were mended, if any."""
    name = f"{_stem(group, roots)}.json"
    try:
        key = str(json.loads(run.folder.read_bytes(name) or b"{}").get("key"))
        if read_manifest(run.folder, name, key) is not None:
            return read_roots(run, group, roots)[:2]
    except (ValueError, AttributeError, InputError, StaleRunError):
        logger.debug("%s can't be used; asking again", name)
    return np.zeros(0, np.uint64), np.zeros(0, np.uint64)


def _key(run: Run, decoded: Manifest) -> str:
    return f"{run.key}-{decoded.facts['digest']}"


def _check_chunks(run: Run, group: int, graph: GraphTable, labels: UInt64, read: Any) -> float:
    """Compare each supervoxel's graph chunk with that of its voxel; return the share of mismatches."""
    jobs, grid, scale = read_jobs(run, group), run.volume.grid, run.volume.scale
    counts = np.diff(jobs.first)
    origins = grid.positions(jobs.chunks) * np.array(scale.chunk_size) + np.array(scale.voxel_offset)
    voxels = np.repeat(origins, counts, axis=0) + grid.voxels_of(jobs.places)
    own = run.volume.info.scales[min(graph.layout.cv_mip, len(run.volume.info.scales) - 1)]
    conversion = UnitConversion.between(unit_of_resolution(scale.resolution), own.resolution)
    wrong, compared = graph.layout.count_mismatches(
        labels[read], conversion.to_voxels(voxels[read]), own.voxel_offset
    )
    share = wrong / compared if compared else 0.0
    if share > MAX_MISMATCH_SHARE:
        raise InputError(
            f"{run.settings.volume}: {share:.1%} of {compared:,} supervoxels of group {group} aren't of the graph "
            f"chunk that their point is in (expected at most {MAX_MISMATCH_SHARE:.0%}): {run.volume.url} isn't this "
            "graph's watershed, or its mip or the graph's info is wrong; the graph server was not asked"
        )
    return share


def _write_roots(
    run: Run, group: int, roots: RootsAt, ids: UInt64, found: ResolvedRoots, facts: dict[str, Any], key: str
) -> None:
    stem = _stem(group, roots)
    run.folder.sweep(f"{stem}.*")
    with run.folder.new_file(f"{stem}.parquet") as path:
        write_columns(path, {SUPERVOXEL: ids, ROOT: found.roots, RESOLVED: found.resolved})
    write_manifest(run.folder, f"{stem}.json", key, [f"{stem}.parquet"], facts)


class _Checkpoints:
    """The answered batches of a group under way: a file each, on this machine, until the group's file is there."""

    def __init__(self, run: Run, name: str) -> None:
        self._folder = run.folder.path(name)
        self._next = 0

    def read(self, earlier: tuple[UInt64, UInt64]) -> tuple[UInt64, UInt64]:
        """Return the ids that were answered, `earlier` too, and their roots; files cut short by a crash don't count."""
        ids, roots = [earlier[0]], [earlier[1]]
        for path in sorted(self._folder.glob("*.npy")):
            self._next = max(self._next, int(path.stem) + 1)
            try:
                pairs = np.load(path, allow_pickle=False)
            except (ValueError, OSError, EOFError):
                continue
            if pairs.dtype == np.uint64 and pairs.ndim == 2 and pairs.shape[0] == 2:
                ids.append(pairs[0])
                roots.append(pairs[1])
        # An id that was answered twice, in a group that was resolved in part before, counts once.
        all_ids, first = np.unique(np.concatenate(ids), return_index=True)
        return all_ids, np.concatenate(roots)[first]

    def write(self, ids: UInt64, roots: UInt64) -> None:
        """Keep a batch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".tmp-{self._next}"
        with open(temporary, "wb") as file:
            np.save(file, np.stack([ids, roots]), allow_pickle=False)
        temporary.rename(self._folder / f"{self._next:06d}.npy")
        self._next += 1

    def remove(self) -> None:
        """Delete the batches: the group's file has them."""
        import shutil

        shutil.rmtree(self._folder, ignore_errors=True)
