"""The resolve stage of one chunk group: supervoxels to roots at one pinned time, a checkpoint a batch."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from voxelprobe.arrays import UInt64, sort_unique
from voxelprobe.errors import InputError, StaleRunError, TransportError, VoxelProbeError
from voxelprobe.graphene.table import GraphTable
from voxelprobe.graphene.timestamps import Timestamp, parse_timestamp
from voxelprobe.planning import ChunkJobs
from voxelprobe.points import UnitConversion, unit_of_resolution
from voxelprobe.records import Status
from voxelprobe.resolving import resolve_roots, wanted_layer
from voxelprobe.run.checkpoints import Checkpoints
from voxelprobe.run.groups import read_decoded, read_labels
from voxelprobe.run.plan import read_jobs
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.root_files import RootsAt, read_earlier, read_resolved, stem_of_roots, write_roots
from voxelprobe.run.spec import Run

# A supervoxel is in the graph chunk that its voxel is in, always at cv_mip. At a coarser mip a voxel
# may have the label of a neighbour across the border of a chunk; more than that is a wrong unit.
MAX_MISMATCH_SHARE = 0.05

logger = logging.getLogger(__name__)


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
        run.folder.sweep("roots/now.json")
        pinned = parse_timestamp("now", now=now)
        document = {"timestamp": pinned.text, "milliseconds": pinned.milliseconds}
        if not run.folder.write_first("roots/now.json", json.dumps(document).encode() + b"\n"):
            content = run.folder.read_bytes("roots/now.json") or b""
            pinned = Timestamp(int(json.loads(content)["milliseconds"]))
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
        jobs = read_jobs(run, group)
        labels, status = read_labels(run, group, decoded, jobs.points)
        supervoxels, read = labels[:, 0], status == Status.OK
        share = _check_chunks(run, group, graph, jobs, supervoxels, read)
        ids = sort_unique(supervoxels[read])
        checkpoints = Checkpoints(run.folder.path(f"{stem_of_roots(group, roots)}.parts"))
        known = checkpoints.read(read_earlier(run, group, roots))
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
                 "unresolved": int(np.count_nonzero(~found.resolved)), "chunk_mismatch_share": share,
                 "seconds": round(time.monotonic() - started, 3)}
        write_roots(run, group, roots, decoded, ids=ids, found=found, points=jobs.points, supervoxels=supervoxels,
                    status=status, facts=facts)
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


def _check_chunks(run: Run, group: int, graph: GraphTable, jobs: ChunkJobs, labels: UInt64, read: Any) -> float:
    """Compare each supervoxel's graph chunk with that of its voxel; return the share of mismatches."""
    grid, scale = run.volume.grid, run.volume.scale
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
