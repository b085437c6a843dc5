"""What was found for all points, block by block of point numbers, gathered from the files of the groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Int64
from voxelprobe.errors import StaleRunError
from voxelprobe.records import NOT_SET, POINT, ROOT, STATUS, Status, label_columns, read_columns
from voxelprobe.run import blocks
from voxelprobe.run.blocks import BlockFile
from voxelprobe.run.groups import check_labels, open_labels, read_decoded
from voxelprobe.run.manifests import Manifest
from voxelprobe.run.root_files import RootsAt, open_roots_of_points, read_resolved
from voxelprobe.run.spec import Run


@dataclass(frozen=True, slots=True)
class PointValues:
    """What was found for points that follow each other, by point number.

    Attributes
    ----------
    labels
        Shape (n,), an array a channel; meant only where it was read.
    status
        Shape (n,), values of `Status`.
    roots
        Shape (n,), or None without a graph.
    """

    labels: Sequence[npt.NDArray[Any]]
    status: npt.NDArray[np.uint8]
    roots: npt.NDArray[np.uint64] | None

    def part(self, points: slice) -> PointValues:
        """Return the values of some of the points, without a copy."""
        roots = None if self.roots is None else self.roots[points]
        return PointValues([channel[points] for channel in self.labels], self.status[points], roots)


@dataclass(frozen=True, slots=True)
class GatheredRun:
    """A run whose groups are all done.

    Attributes
    ----------
    has_roots
        Whether there are to be roots.
    points
        How many.
    decoded, resolved
        The markers of the groups' labels and of their roots, and the files; none of roots if there are to be none.
    unplaced
        The points that lie in no chunk, shape (n,), ascending, and their status.
    """

    run: Run
    has_roots: bool
    points: int
    decoded: Sequence[tuple[Manifest, BlockFile]]
    resolved: Sequence[tuple[Manifest, BlockFile]]
    unplaced: tuple[Int64, npt.NDArray[np.uint8]]

    def blocks(self) -> Iterator[PointValues]:
        """Yield the values of all points in order, a block at a time.

        Raises
        ------
        StaleRunError
            If a file is gone or damaged, or has not all points.
        """
        groups_of: dict[int, list[int]] = {}
        for group, (_, file) in enumerate(self.decoded):
            for block in file.blocks:
                groups_of.setdefault(block, []).append(group)
        scale = self.run.volume.scale
        size = blocks.block_size(self.points)
        for block, first in enumerate(range(0, self.points, size)):
            count = min(size, self.points - first)
            labels = [np.zeros(count, scale.dtype) for _ in range(scale.num_channels)]
            roots = np.zeros(count, np.uint64) if self.has_roots else None
            values = PointValues(labels, np.full(count, NOT_SET, np.uint8), roots)
            nowhere = slice(*np.searchsorted(self.unplaced[0], [first, first + count]))
            values.status[self.unplaced[0][nowhere] - first] = self.unplaced[1][nowhere]
            for group in groups_of.get(block, []):
                self._fill(values, group, block, first)
            if values.status.max() == NOT_SET:
                unset = np.flatnonzero(values.status == NOT_SET)
                raise StaleRunError(f"{len(unset)} points are in no group, the first is point {first + unset[0]}; "
                                    "run again")
            yield values

    def _fill(self, values: PointValues, group: int, block: int, first: int) -> None:
        """Put a group's values of a block where they belong."""
        manifest, file = self.decoded[group]
        names = label_columns(None, len(values.labels))
        all_ok = list(manifest.facts["status"]) == [Status.OK.label]
        points, *found = file.read_block(block, POINT, *names, *([] if all_ok or self.has_roots else [STATUS]))
        check_labels(self.run, group, found[: len(names)])
        at = points - first
        if len(at) and not 0 <= at.min() <= at.max() < len(values.status):
            raise StaleRunError(f"labels of group {group}: expected points of block {block} ({len(values.status)} from "
                                f"{first} on), found {points.min()} to {points.max()}")
        for channel, labels in zip(values.labels, found, strict=False):
            channel[at] = labels
        if values.roots is not None:
            values.roots[at], values.status[at] = self.resolved[group][1].read_block(block, ROOT, STATUS)
        else:
            values.status[at] = Status.OK if all_ok else found[-1]

    def facts(self) -> dict[str, Any]:
        """Return what there is to say of the values."""
        counts = np.bincount(self.unplaced[1], minlength=len(Status)).tolist()
        for manifest, _ in self.resolved if self.has_roots else self.decoded:
            for word, count in manifest.facts["status"].items():
                counts[Status[word.upper()]] += count
        corrupt: dict[str, str] = {}
        for manifest, _ in self.decoded:
            corrupt |= manifest.facts["corrupt"]
        name = label_columns(None, self.run.volume.scale.num_channels)[0]
        roots = blocks.count_different(file.read_different(ROOT) for _, file in self.resolved)
        return {
            "labels": blocks.count_different(file.read_different(name) for _, file in self.decoded),
            "roots": roots if self.has_roots else None,
            "background": sum(manifest.facts["background"] for manifest, _ in self.decoded),
            "status": {state.label: int(counts[state]) for state in Status if counts[state]},
            "corrupt": corrupt,
        }


def gather_values(run: Run, plan: Manifest, roots: RootsAt | None) -> GatheredRun:
    """Return the values of a run whose groups are all done.

    Raises
    ------
    StaleRunError
        If the labels or roots of a group are gone or damaged.
    """
    decoded, resolved = [], []
    for group in range(int(plan.facts["groups"])):
        manifest = _there("labels", group, read_decoded(run, group))
        decoded.append((manifest, open_labels(run, group, manifest)))
        if roots is not None:
            manifest = _there("roots", group, read_resolved(run, group, roots))
            resolved.append((manifest, open_roots_of_points(run, group, roots, manifest)))
    points, states = read_columns(run.folder.local_copy("plan/unplaced.parquet"), POINT, STATUS)
    order = np.argsort(points, kind="stable")
    unplaced = points[order], states[order]
    return GatheredRun(run, roots is not None, int(plan.facts["points"]), decoded, resolved, unplaced)


def _there(what: str, group: int, manifest: Manifest | None) -> Manifest:
    if manifest is None:
        raise StaleRunError(f"{what} of group {group} are gone or damaged; run again")
    return manifest


class RowCutter:
    """The values of points that follow each other, cut as the rows of the table come."""

    def __init__(self, blocks: Iterator[PointValues]) -> None:
        self._blocks = blocks
        self._held: list[PointValues] = []

    def take(self, count: int) -> PointValues:
        """Return the values of the next points."""
        missing = count - sum(len(part.status) for part in self._held)
        while missing > 0:
            block = next(self._blocks, None)
            if block is None:
                raise StaleRunError(f"expected {count} points more in the plan, found {count - missing}; run again")
            self._held.append(block)
            missing -= len(block.status)
        whole = self._held[0] if len(self._held) == 1 else _join(self._held)
        rest = whole.part(slice(count, None))
        self._held = [rest] if len(rest.status) else []
        return whole.part(slice(count))


def _join(parts: Sequence[PointValues]) -> PointValues:
    roots = [part.roots for part in parts if part.roots is not None]
    return PointValues(
        [np.concatenate(channel) for channel in zip(*(part.labels for part in parts), strict=True)],
        np.concatenate([part.status for part in parts]),
        np.concatenate(roots) if roots else None,
    )
