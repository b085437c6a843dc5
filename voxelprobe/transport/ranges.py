"""Which byte ranges of one object to fetch together: integers in, integers out, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Int64

# The heads of a request and of its answer are as long.
SMALL_GAP_BYTES = 1 << 10


@dataclass(frozen=True, slots=True)
class Span:
    """A byte range to fetch in one request, for the wanted ranges inside of it.

    Attributes
    ----------
    start, end
        Bytes of the object. An empty span (start = end) is nothing to ask a store for.
    members
        Which of the wanted ranges it covers, ordered by where they start; all of each lies in the span.
    """

    start: int
    end: int
    members: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the request transfers."""
        return self.end - self.start


def coalesce_ranges(
    starts: Sequence[int] | Int64, ends: Sequence[int] | Int64, *, max_gap_bytes: int, max_span_bytes: int,
    max_waste: float = math.inf,
) -> list[Span]:
    """Return the spans to fetch for some wanted byte ranges.

    Every range lies in exactly one span. Neighbours share one if at most `max_gap_bytes` unwanted bytes lie between
    them and the span stays within `max_span_bytes`; only a span that is no longer than one wanted range exceeds that.
    Beyond `SMALL_GAP_BYTES` a gap is also held against `max_waste`.
    An empty range gets an empty span for itself, since it takes no request.

    Parameters
    ----------
    starts, ends
        Shape (n,), bytes of one object, in any order; ranges may overlap and repeat.
    max_gap_bytes
        How many bytes are cheaper to transfer for nothing than another request.
    max_span_bytes
        How much to hold in memory, or to lose to a broken connection, at once.
    max_waste
        How many unwanted bytes a span may have for each wanted one, counted up to the gap in question.

    Returns
    -------
    The spans, ordered by start. Spans overlap only where wanted ranges do and `max_span_bytes` keeps them apart.

    Raises
    ------
    ValueError
        If a range ends before it starts, starts below 0, or the arguments contradict each other.
    """
    first, last = np.asarray(starts, np.int64), np.asarray(ends, np.int64)
    if first.shape != last.shape or first.ndim != 1:
        raise ValueError(f"expected as many starts as ends, found shapes {first.shape} and {last.shape}")
    if max_gap_bytes < 0 or max_span_bytes < 0:
        raise ValueError(f"expected limits of at least 0 bytes, found {max_gap_bytes} and {max_span_bytes}")
    if (bad := np.flatnonzero((first < 0) | (last < first))).size:
        raise ValueError(f"range {bad[0]}: expected 0 <= start <= end, found {first[bad[0]]} and {last[bad[0]]}")

    # Of ranges with one start the longest comes first, so that it takes in the others whatever the limit.
    order = np.lexsort((-last, first))
    spans: list[Span] = []
    members: list[int] = []
    span_start = span_end = unwanted = 0
    for index, start, end in zip(order.tolist(), first[order].tolist(), last[order].tolist(), strict=True):
        if start == end:
            spans.append(Span(start, end, (index,)))
            continue
        new_end = max(span_end, end)
        gap = max(0, start - span_end)
        worth = gap <= SMALL_GAP_BYTES or unwanted + gap <= max_waste * (new_end - span_start - unwanted - gap)
        # A range that lies inside the span joins it whatever its length: a long range may have opened it.
        if members and (new_end == span_end
                        or (worth and gap <= max_gap_bytes and new_end - span_start <= max_span_bytes)):
            members.append(index)
            span_end = new_end
            unwanted += gap
            continue
        if members:
            spans.append(Span(span_start, span_end, tuple(members)))
        members, span_start, span_end, unwanted = [index], start, end, 0
    if members:
        spans.append(Span(span_start, span_end, tuple(members)))
    return sorted(spans, key=lambda span: (span.start, span.end))
