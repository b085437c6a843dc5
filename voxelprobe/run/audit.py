"""The audit stage: some of the points read again by other code, straight from the store, before the table is made.

What it finds stands in files of the run, a part each: it depends on no label, and no table needs it made again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from voxelprobe.arrays import Int64, pick
from voxelprobe.audit.places import AuditableScale, Place, find_place
from voxelprobe.audit.reading import AuditedPoints, read_places
from voxelprobe.audit.volumes import read_any_scale
from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.graphene.table import fetch_table
from voxelprobe.opening import fetch_json
from voxelprobe.records import POINT, STATUS, Status, label_columns, write_columns
from voxelprobe.run.audit_sample import AuditExtent, choose_points, cut_parts, seed_of
from voxelprobe.run.manifests import Manifest, read_manifest, write_manifest
from voxelprobe.run.plan import expect_plan, read_plan
from voxelprobe.run.progress import format_bytes
from voxelprobe.run.spec import Run

logger = logging.getLogger(__name__)


def read_audited(run: Run, extent: AuditExtent) -> list[Manifest] | None:
    """Return the markers of all parts of an audit, or None if it isn't whole."""
    plan = read_plan(run)
    if plan is None:
        return None
    parts = [_read_part(run, extent, part) for part in range(len(cut_parts(run, plan, extent)))]
    return [part for part in parts if part is not None] if None not in parts else None


def audit_run(run: Run, extent: AuditExtent, *, threads: int) -> None:
    """Read the points of an audit and leave what was found, with a marker a part.

    Raises
    ------
    AuthorizationError, TransportError
        If the store refuses or doesn't answer.
    """
    with run.lock(f"audit-{extent.text}"):
        plan = expect_plan(run)
        run.folder.sweep(f"audit/{extent.text}/*")
        parts = cut_parts(run, plan, extent)
        for part, groups in enumerate(parts):
            if _read_part(run, extent, part) is not None:
                continue
            started = time.monotonic()
            try:
                with closing(Auditor(run, threads=threads)) as auditor:
                    points = choose_points(run, plan, extent, groups, last=part == len(parts) - 1)
                    found = auditor.read(points)
            except UnsupportedError as error:
                _write_part(run, extent, part, {"way": "", "not_audited": str(error), "points": 0, "chunks": 0,
                                                "unread": {}, "seconds": 0.0})
                logger.warning("the labels are not audited: %s", error)
                continue
            names = label_columns(None, auditor.scale.channels)
            columns: dict[str, Any] = {POINT: points, STATUS: found.status}
            columns |= {name: found.labels[:, channel] for channel, name in enumerate(names)}
            with run.folder.new_file(audit_name(extent, part, "parquet")) as path:
                write_columns(path, columns)
            seconds = time.monotonic() - started
            _write_part(run, extent, part, {
                "way": auditor.way, "not_audited": "", "points": len(points), "chunks": found.chunks,
                "unread": found.unread, "seconds": round(seconds, 3),
            }, [audit_name(extent, part, "parquet")])
            logger.info("audit: read %s points in %s chunks again, %s, %.1f s", f"{len(points):,}",
                        f"{found.chunks:,}", format_bytes(auditor.source.traffic.bytes), seconds)


class Auditor:
    """Reads points of a run the plain way.

    Raises
    ------
    UnsupportedError
        If there is no other way to read such a volume.
    """

    def __init__(self, run: Run, *, threads: int) -> None:
        self.run = run
        self.source = run.volume.open_source(threads=threads)
        self._threads = threads
        try:
            self.scale = self._read_scale()
            self.way = self.scale.explain()
        except BaseException:
            self.source.close()
            raise

    def read(self, points: Int64) -> AuditedPoints:
        """Return what is at points by their numbers, shape (n,), ascending."""
        return read_places(self.scale, self.source, self.places(points), threads=self._threads)

    def places(self, points: Int64) -> list[Place | Status]:
        """Return where points are, by their numbers, ascending, as the user's table has them."""
        return [find_place(self.scale, values) for values in coordinates_of(self.run, points)]

    def close(self) -> None:
        """Release connections."""
        self.source.close()

    def _read_scale(self) -> AuditableScale:
        run = self.run
        kind = run.volume.cloudpath.kind
        now = read_any_scale(kind, self._read_json, run.volume.mip, run.settings.coord_resolution, run.volume.url)
        # What was refused when the run began is not to come in by this door.
        began = run.volume.scale
        expected = (began.key, began.size, began.voxel_offset, began.chunk_size, began.encoding, began.dtype.name,
                    began.num_channels)
        found = (now.key, now.size, now.voxel_offset, now.chunk_size, now.encoding, now.data_type, now.channels)
        if found != expected:
            name = "/info" if kind == "precomputed" else ""
            raise InputError(f"{run.volume.url}{name}: expected the scale {expected} as when the run began, "
                             f"found {found}")
        return now

    def _read_json(self, name: str) -> Any:
        """Return a document of the volume as it is now, None where there is none; only from folders of its scales."""
        run = self.run
        if run.volume.graph is not None:
            return fetch_table(run.settings.volume)[1]
        folder = name.rpartition("/")[0]
        if folder and folder not in {scale.key for scale in run.volume.info.scales}:
            raise InputError(f"{run.volume.url}: expected the scales as when the run began, found one at {folder!r}")
        return fetch_json(self.source, name)


def coordinates_of(run: Run, points: Int64) -> Iterator[list[Any] | None]:
    """Yield the coordinates (x, y, z) of points by their numbers, shape (n,), ascending, as the user's table has them.

    Integers stay Python's integers and floats floats; None where the list or struct of a point is null.
    """
    sources = list(dict.fromkeys(name for columns in run.columns for name in columns.sources))
    prefixes = len(run.columns)
    row = 0
    for batch in run.table.batches(sources) if len(points) else ():
        here = points[slice(*np.searchsorted(points, [row * prefixes, (row + batch.num_rows) * prefixes]))]
        rows, places = np.unique(here // prefixes - row, return_inverse=True)
        values = {name: pick(batch.column(name), rows) for name in sources}
        for place, prefix in zip(places.tolist(), (here % prefixes).tolist(), strict=True):
            yield _point([values[name][place] for name in run.columns[prefix].sources])
        row += batch.num_rows


def _point(values: list[Any]) -> list[Any] | None:
    if len(values) == 3:
        return values
    (value,) = values
    return [value["x"], value["y"], value["z"]] if isinstance(value, dict) else value


def _read_part(run: Run, extent: AuditExtent, part: int) -> Manifest | None:
    return read_manifest(run.folder, audit_name(extent, part, "json"), _key(run))


def _write_part(run: Run, extent: AuditExtent, part: int, facts: dict[str, Any], files: Iterable[str] = ()) -> None:
    write_manifest(run.folder, audit_name(extent, part, "json"), _key(run), files, facts | {"seed": seed_of(run)})


def audit_name(extent: AuditExtent, part: int, suffix: str) -> str:
    """Return the name of a part's file in the run's folder."""
    return f"audit/{extent.text}/part-{part:03d}.{suffix}"


def _key(run: Run) -> str:
    # 2: which sample, how it is written, and what volumes are read. Another one is read anew.
    return f"{run.key}-audit-2"
