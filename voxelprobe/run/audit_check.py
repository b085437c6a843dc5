"""A written result table against what the audit found, before the table gets its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64, pick
from voxelprobe.audit.places import Place
from voxelprobe.errors import AuditError, StaleRunError
from voxelprobe.points import open_points
from voxelprobe.records import (
    POINT,
    STATUS,
    STATUS_LABELS,
    Status,
    label_columns,
    read_columns,
    status_column,
    supervoxel_column,
)
from voxelprobe.run.audit import Auditor, read_audited
from voxelprobe.run.audit_sample import AuditExtent, seed_of
from voxelprobe.run.result import Result
from voxelprobe.run.spec import Run

MISMATCHES = "audit/mismatches.json"
# More don't help anybody to find out why.
_MOST_MISMATCHES = 1000
# Labels that were read, with a root or without.
_READ = (Status.OK.label, Status.NO_ROOT.label)

Found = tuple[int, list[Any]]
"""A status and the labels of all channels."""


def read_mismatches(run: Run) -> list[int]:
    """Return the numbers of the points that an audit found wrong, and no later one right."""
    try:
        document = json.loads(run.folder.read_bytes(MISMATCHES) or b"{}")
        return [int(entry["point"]) for entry in document.get("mismatches", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def check_table(result: Result, path: Path, extent: AuditExtent, *, threads: int) -> dict[str, Any]:
    """Compare a table that was just written to a local path with the audit; return what there is to say of it.

    What differs is read again from the store first, since that may have been mended after the audit. So are the points
    that an earlier audit found wrong.

    Raises
    ------
    AuditError
        If a label or status differs.
    StaleRunError
        If the audit's files are gone or damaged.
    """
    run = result.run
    if extent.points == 0:
        return {"asked": "0", "points": 0, "chunks": 0, "compared": 0, "mismatches": 0, "unread": 0,
                "seed": seed_of(run), "seconds": 0.0, "way": "", "not_audited": "--audit 0"}
    audited = read_audited(run, extent)
    if audited is None:
        raise StaleRunError(f"{run.folder.location.url}: the audit is gone or damaged; run again")
    compared = 0
    doubtful: list[int] = []
    for manifest in audited:
        for name in manifest.files:
            points, expected = _read_part(run, name)
            for point, there in zip(points.tolist(), _rows_of(result, path, points), strict=True):
                if there[0] != Status.CORRUPT_CHUNK.label:
                    compared += 1
                    if not _agree(there, expected[point]) and len(doubtful) < _MOST_MISMATCHES:
                        doubtful.append(point)
    before = read_mismatches(run)
    if doubtful or before:
        points = np.unique(np.array(doubtful + before, np.int64))
        mismatches = list(_confirm(result, path, points, threads))
        document = json.dumps({"table": result.url, "mismatches": mismatches}, indent=1)
        run.folder.write_bytes(MISMATCHES, document.encode() + b"\n")
        if mismatches:
            raise AuditError(_describe(result, mismatches, compared))
    first = audited[0].facts
    return {
        "asked": extent.text,
        "points": sum(manifest.facts["points"] for manifest in audited),
        "chunks": sum(manifest.facts["chunks"] for manifest in audited),
        "compared": compared,
        "mismatches": 0,
        "unread": sum(len(manifest.facts["unread"]) for manifest in audited),
        "seed": first["seed"],
        "seconds": round(sum(manifest.facts["seconds"] for manifest in audited), 3),
        "way": first["way"],
        "not_audited": first["not_audited"],
    }


class _Expected(Mapping[int, Found]):
    """What was found at points: labels of shape (n, channels) and statuses of shape (n,)."""

    def __init__(self, points: Int64, status: npt.NDArray[np.uint8], labels: npt.NDArray[Any]) -> None:
        self._points, self._status, self._labels = points, status, labels

    def __getitem__(self, point: int) -> Found:
        at = int(np.searchsorted(self._points, point))
        return int(self._status[at]), list(self._labels[at])

    def __iter__(self) -> Iterator[int]:
        return iter(self._points.tolist())

    def __len__(self) -> int:
        return len(self._points)


def _read_part(run: Run, name: str) -> tuple[Int64, _Expected]:
    names = label_columns(None, run.volume.scale.num_channels)
    points, status, *labels = read_columns(run.folder.local_copy(name), POINT, STATUS, *names)
    return points, _Expected(points, status, np.stack(labels, axis=1))


def _agree(there: tuple[str, list[Any]], found: Found) -> bool:
    """Return whether a row of the table says what was found."""
    word, labels = there
    status, expected = found
    if word not in _READ:
        return word == STATUS_LABELS[status] and labels == [None] * len(labels)
    if status != Status.OK:
        return False
    return all(_equal(label, value) for label, value in zip(labels, expected, strict=True))


def _equal(label: Any, value: np.generic) -> bool:
    if value.dtype.kind != "f":
        return bool(label is not None and int(label) == int(value))
    if np.isnan(value):
        return label is None or bool(np.isnan(label))  # of CSV, an empty field
    return label is not None and bool(value.dtype.type(label) == value)


def _rows_of(result: Result, path: Path, points: Int64) -> Iterator[tuple[str, list[Any]]]:
    """Yield the status and labels that the table has of points by their numbers, shape (n,), ascending."""
    channels = result.run.volume.scale.num_channels
    names = []
    for columns in result.run.columns:
        own = label_columns(columns.prefix, channels)
        if result.run.volume.graph is not None:
            own = [supervoxel_column(columns.prefix)]
        names.append([status_column(columns.prefix), *own])
    prefixes = len(names)
    for row, batch in _batches(path, [name for own in names for name in own], points // prefixes):
        here = points[slice(*np.searchsorted(points, [row * prefixes, (row + batch.num_rows) * prefixes]))]
        rows, places = np.unique(here // prefixes - row, return_inverse=True)
        taken = {name: pick(batch.column(name), rows) for own in names for name in own}
        for place, prefix in zip(places.tolist(), (here % prefixes).tolist(), strict=True):
            word, *labels = (taken[name][place] for name in names[prefix])
            yield str(word), labels


def _batches(path: Path, names: list[str], rows: Int64) -> Iterator[tuple[int, Any]]:
    """Yield columns of the table some rows at a time, with the number of the first; of Parquet only those needed."""
    import pyarrow.parquet as pq

    row = 0
    if path.name.endswith(".parquet"):
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                low, high = np.searchsorted(rows, [row, row + count])
                if low < high:
                    yield row, file.read_row_group(group, columns=names).combine_chunks()
                row += count
        return
    for batch in open_points(path).batches(names):
        yield row, batch
        row += batch.num_rows


@dataclass(frozen=True, slots=True)
class _Reread:
    places: list[Place | Status]
    found: _Expected
    unread: Mapping[str, str]


def _confirm(result: Result, path: Path, points: Int64, threads: int) -> Iterable[dict[str, Any]]:
    """Yield the points that differ from what the store has now."""
    run = result.run
    with closing(Auditor(run, threads=threads)) as auditor:
        places = auditor.places(points)
        found = auditor.read(points)
        expected = _Expected(points, found.status, found.labels)
        for point, place, there in zip(points.tolist(), places, _rows_of(result, path, points), strict=True):
            if there[0] == Status.CORRUPT_CHUNK.label or _agree(there, expected[point]):
                continue
            status, labels = expected[point]
            chunk = auditor.scale.chunk_name(place.grid) if isinstance(place, Place) else None
            yield {
                "point": point, "row": point // len(run.columns),
                "prefix": run.columns[point % len(run.columns)].prefix, "chunk": chunk,
                "table": [there[0], *map(str, there[1])],
                "found": [STATUS_LABELS[status], *(map(str, labels) if status == Status.OK else ()),
                          *([found.unread[chunk]] if chunk in found.unread else ())],
            }


def _describe(result: Result, mismatches: list[dict[str, Any]], compared: int) -> str:
    first = mismatches[0]
    run = result.run
    prefix = f" ({first['prefix']})" if first["prefix"] else ""
    where = f"chunk {first['chunk']} of {run.volume.url}" if first["chunk"] else f"outside of {run.volume.url}"
    return (
        f"audit: {len(mismatches):,} of {compared:,} points differ from what an independent reading of the store "
        f"finds, so {result.url} was not written. The first is row {first['row']}{prefix}, {where}: the table would "
        f"have {' '.join(first['table'])}, found {' '.join(first['found'])}. All are in "
        f"{run.folder.child_url(MISMATCHES)}. The volume was changed, or this run's folder or the chunk cache was "
        f"damaged: delete both, {run.folder.location.url} and the cache of the volume, and run again"
    )
