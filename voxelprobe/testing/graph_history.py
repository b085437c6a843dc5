"""What was written to a chunked graph, in arrays that answer for any time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from voxelprobe.testing.graph_layout import Ids, Integers

FOREVER_MS = np.iinfo(np.int64).max


def to_milliseconds(seconds: float) -> int:
    """Return whole milliseconds: microseconds count as they would in a datetime, the rest is cut off."""
    return round(seconds * 1e6) // 1000


class Edit(NamedTuple):
    """A split or merge: the former roots of each new root, in the order of `new`."""

    at_ms: int
    former: tuple[Ids, ...]
    new: Ids


@dataclass(frozen=True, slots=True)
class History:
    """What was written so far: edges sorted by child and time, roots sorted by id."""

    child: Ids
    since_ms: Integers
    parent: Ids
    roots: Ids
    root_since_ms: Integers
    root_until_ms: Integers

    def parents(self, ids: Ids, at_ms: int) -> Ids:
        """Return the parent of each id, 0 where it has none."""
        begin = np.searchsorted(self.child, ids, "left")
        row = np.searchsorted(self.child, ids, "right") - 1
        while (late := (row >= begin) & (self.since_ms[row] > at_ms)).any():
            row[late] -= 1
        return np.where(row >= begin, self.parent[row], np.uint64(0))

    def find_roots(self, ids: Ids) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.intp]]:
        """Return which ids are, or were, roots, and the row of each."""
        row = np.minimum(np.searchsorted(self.roots, ids), len(self.roots) - 1)
        return self.roots[row] == ids, row
