"""Which points of a run are audited: decided by the run's key alone, so the same each time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Int64
from voxelprobe.errors import InputError
from voxelprobe.records import COUNT, POINT, read_columns
from voxelprobe.run.manifests import Manifest
from voxelprobe.run.plan import read_jobs
from voxelprobe.run.spec import Run

# A chunk is fetched and decoded whole for its points: what the audit costs.
POINTS_A_CHUNK = 16
"""Chunks of a sample: one for so many points, that is 63 for 1,000."""
CHUNKS_SHARE = 20
"""... and at most one of so many of the run's chunks, that small runs aren't read twice."""
LEAST_CHUNKS = 4
# Points of one file, where all are audited.
_PART_POINTS = 1 << 22


@dataclass(frozen=True, slots=True)
class AuditExtent:
    """How much is audited.

    Attributes
    ----------
    points
        At most so many, 0 for none; None for all.
    """

    points: int | None

    @property
    def text(self) -> str:
        """Return what the user wrote: `1000`, `all`."""
        return "all" if self.points is None else str(self.points)

    def covers(self, other: str) -> bool:
        """Return whether an audit of this extent says as much as one of another's text."""
        wanted = parse_audit(other)
        return self.points is None or (wanted.points is not None and self.points >= wanted.points)


def parse_audit(text: str) -> AuditExtent:
    """Return how much is to be audited.

    Raises
    ------
    InputError
        If it is neither a number nor `all`.
    """
    word = text.strip().lower()
    if word == "all":
        return AuditExtent(None)
    if re.fullmatch(r"[0-9]{1,12}", word):
        return AuditExtent(int(word))
    raise InputError(f"audit {text!r}: expected a number of points, 0 for none, or all")


def seed_of(run: Run) -> int:
    """Return what the sample is drawn with."""
    return int(run.key[:15], 16)


def cut_parts(run: Run, plan: Manifest, extent: AuditExtent) -> list[list[int]]:
    """Return the groups of each part of an audit; points in no group are in the last one."""
    groups = range(int(plan.facts["groups"]))
    if extent.points is not None:
        return [list(groups)]
    (counts,) = read_columns(run.folder.local_copy("plan/groups.parquet"), COUNT)
    parts: list[list[int]] = [[]]
    held = 0
    for group, count in zip(groups, counts.tolist(), strict=True):
        if held and held + count > _PART_POINTS:
            parts.append([])
            held = 0
        parts[-1].append(group)
        held += count
    return parts


def choose_points(run: Run, plan: Manifest, extent: AuditExtent, groups: list[int], *, last: bool) -> Int64:
    """Return the numbers of a part's points, shape (n,), ascending.

    Of a sample, points of a few chunks, and a few of those in no chunk.
    """
    (nowhere,) = read_columns(run.folder.local_copy("plan/unplaced.parquet"), POINT)
    if extent.points is None:
        chosen = [read_jobs(run, group).points for group in groups] + ([nowhere] if last else [])
    else:
        rng = np.random.default_rng(seed_of(run))
        few = rng.choice(nowhere, min(len(nowhere), -(-extent.points // POINTS_A_CHUNK)), replace=False)
        chosen = [*_draw(run, plan, extent.points - len(few), rng), few]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *chosen]))


def _draw(run: Run, plan: Manifest, wanted: int, rng: np.random.Generator) -> Iterator[Int64]:
    """Yield up to `wanted` points in all, of chunks drawn at random: every chunk is as likely."""
    counts = np.array(plan.facts["chunks_of_group"], np.int64)
    total = int(counts.sum())
    most = min(-(-wanted // POINTS_A_CHUNK), max(LEAST_CHUNKS, total // CHUNKS_SHARE), total)
    if most <= 0:
        return
    drawn = np.sort(rng.choice(total, most, replace=False))
    ends = np.cumsum(counts)
    of_group = np.searchsorted(ends, drawn, side="right")
    candidates = []
    for group in np.unique(of_group).tolist():
        jobs = read_jobs(run, group)
        for chunk in (drawn[of_group == group] - (ends[group] - counts[group])).tolist():
            candidates.append(jobs.points[jobs.first[chunk] : jobs.first[chunk + 1]].copy())
    # Small ones first, so that what they haven't is left for the others.
    for left, points in enumerate(sorted(candidates, key=len)):
        share = min(len(points), -(-wanted // (len(candidates) - left)))
        wanted -= share
        yield rng.choice(points, share, replace=False)
