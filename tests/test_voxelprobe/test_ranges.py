import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.transport.ranges import SMALL_GAP_BYTES, Span, coalesce_ranges

RANGES = st.lists(
    st.tuples(st.integers(0, 120), st.integers(0, 40)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12
)
LIMITS = st.integers(0, 60)


def plan(ranges, max_gap_bytes, max_span_bytes):
    return coalesce_ranges([r[0] for r in ranges], [r[1] for r in ranges],
                           max_gap_bytes=max_gap_bytes, max_span_bytes=max_span_bytes)


def slow_spans(ranges, max_gap_bytes):
    """Spans without a limit, byte by byte: mark what is wanted, fill the short gaps, read off the runs."""
    wanted = np.zeros(300, bool)
    for start, end in ranges:
        wanted[start:end] = True
    filled = wanted.copy()
    places = np.flatnonzero(wanted)
    for a, b in itertools.pairwise(places):
        if b - a - 1 <= max_gap_bytes:
            filled[a:b] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@settings(deadline=None)
@given(RANGES, LIMITS, st.integers(0, 100))
def test_every_range_is_inside_exactly_one_span(ranges, gap, most):
    """Each wanted range is a member of one span and lies in it, and no span holds bytes beyond its members' ends."""
    spans = plan(ranges, gap, most)
    members = [m for span in spans for m in span.members]
    assert sorted(members) == list(range(len(ranges)))
    for span in spans:
        inside = [ranges[m] for m in span.members]
        assert span.start == min(start for start, _ in inside)
        assert span.end == max(end for _, end in inside)
        assert inside == sorted(inside, key=lambda r: r[0])
    assert spans == sorted(spans, key=lambda s: (s.start, s.end))


@settings(deadline=None)
@given(RANGES, LIMITS, st.integers(0, 100))
def test_only_a_single_range_makes_a_span_exceed_the_limit(ranges, gap, most):
    """A span longer than `max_span_bytes` is exactly one of its members."""
    for span in plan(ranges, gap, most):
        assert span.size_bytes <= most or (span.start, span.end) in [ranges[m] for m in span.members]


@settings(deadline=None)
@given(RANGES, LIMITS, st.integers(0, 100))
def test_no_unwanted_run_is_longer_than_the_gap(ranges, gap, most):
    """Within a span, no more than `max_gap_bytes` bytes that nobody wants follow each other."""
    for span in plan(ranges, gap, most):
        reach = span.start
        for member in span.members:
            assert ranges[member][0] - reach <= gap
            reach = max(reach, ranges[member][1])


@settings(deadline=None)
@given(RANGES, LIMITS, st.integers(0, 100))
def test_neighbouring_spans_could_not_be_one(ranges, gap, most):
    """Of two spans that follow each other, joining would break a limit: there are no needless requests."""
    spans = [span for span in plan(ranges, gap, most) if span.size_bytes]
    for one, other in itertools.pairwise(spans):
        assert other.start - one.end > gap or max(one.end, other.end) - one.start > most


@settings(deadline=None)
@given(RANGES, LIMITS)
def test_without_a_limit_spans_are_the_runs_of_wanted_bytes(ranges, gap):
    """With no limit on length, spans are what a byte-by-byte marking gives."""
    spans = plan(ranges, gap, 10**9)
    assert [(s.start, s.end) for s in spans if s.size_bytes] == slow_spans(ranges, gap)


@settings(deadline=None)
@given(RANGES, LIMITS, st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_order_of_ranges_does_not_matter(ranges, gap, most, random):
    """Shuffled ranges give the same spans."""
    shuffled = ranges[:]
    random.shuffle(shuffled)
    bounds = [[(s.start, s.end) for s in plan(some, gap, most)] for some in (ranges, shuffled)]
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize(("ranges", "gap", "most", "spans"), [
    ([], 10, 10, []),
    ([(5, 9)], 0, 0, [Span(5, 9, (0,))]),
    ([(0, 4), (4, 8)], 0, 8, [Span(0, 8, (0, 1))]),
    ([(0, 4), (5, 8)], 0, 8, [Span(0, 4, (0,)), Span(5, 8, (1,))]),
    ([(5, 8), (0, 4)], 1, 8, [Span(0, 8, (1, 0))]),
    ([(0, 4), (4, 8)], 9, 7, [Span(0, 4, (0,)), Span(4, 8, (1,))]),
    # A long range takes in those inside of it, whatever the limit and the order.
    ([(0, 10), (0, 100), (20, 30), (90, 101)], 0, 50, [Span(0, 100, (1, 0, 2)), Span(90, 101, (3,))]),
    # Empty ranges take no request and bridge no gap.
    ([(0, 10), (15, 15), (20, 30)], 5, 99, [Span(0, 10, (0,)), Span(15, 15, (1,)), Span(20, 30, (2,))]),
    ([(3, 3), (0, 10), (3, 3)], 0, 99, [Span(0, 10, (1,)), Span(3, 3, (0,)), Span(3, 3, (2,))]),
])
def test_spans_of_a_few_cases(ranges, gap, most, spans):
    """The cases one would draw on paper."""
    assert plan(ranges, gap, most) == spans


def test_arrays_give_plain_numbers():
    """Numpy arrays are taken; spans hold ints, which requests and JSON need, even beyond 2**32."""
    starts = np.array([2**40, 0], np.int64)
    spans = coalesce_ranges(starts, starts + 5, max_gap_bytes=0, max_span_bytes=10)
    assert spans == [Span(0, 5, (1,)), Span(2**40, 2**40 + 5, (0,))]
    assert {type(x) for s in spans for x in (s.start, s.end, *s.members)} == {int}


@pytest.mark.parametrize(("starts", "ends", "gap", "most"), [
    ([5], [4], 0, 0), ([-1], [4], 0, 0), ([1, 2], [3], 0, 0), ([1], [2], -1, 0), ([1], [2], 0, -1),
    ([[1]], [[2]], 0, 0),
])
def test_impossible_arguments_are_refused(starts, ends, gap, most):
    """Ranges that end before they start, negative limits and unequal lengths are errors of the caller."""
    with pytest.raises(ValueError, match="expected"):
        coalesce_ranges(starts, ends, max_gap_bytes=gap, max_span_bytes=most)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), min_size=1, max_size=30), st.floats(0, 2))
def test_no_span_has_more_waste_than_its_share(sizes_and_gaps, share):
    """But for gaps no longer than a request's own bytes, a span has at most the given share of unwanted bytes."""
    edges = np.cumsum(np.array(sizes_and_gaps).ravel())
    starts, ends = edges[::2], edges[1::2]
    spans = coalesce_ranges(starts, ends, max_gap_bytes=8000, max_span_bytes=10**9, max_waste=share)
    assert sorted(m for span in spans for m in span.members) == list(range(len(starts)))
    for span in spans:
        gaps = [int(starts[b] - ends[a]) for a, b in itertools.pairwise(span.members)]
        assert max(gaps, default=0) <= 8000
        if any(gap > SMALL_GAP_BYTES for gap in gaps):
            last = max(row for row, gap in enumerate(gaps) if gap > SMALL_GAP_BYTES)
            wanted = sum(int(ends[m] - starts[m]) for m in span.members[: last + 2])
            assert sum(gaps[: last + 1]) <= share * wanted
