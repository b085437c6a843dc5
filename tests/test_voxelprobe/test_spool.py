import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxelprobe.errors import TransportError
from voxelprobe.ordering import PointRun, sort_run
from voxelprobe.run.spool import RunSpool


def run_of(first, regions):
    regions = np.array(regions, np.int64)
    rows = np.arange(len(regions))
    return sort_run(first, None, regions, (rows % 3).astype(np.uint16), (first * 7 + rows).astype(np.uint32))


def values(runs):
    return [(run.first, *(getattr(run, name).tolist() for name in ("regions", "cells", "counts", "words")))
            for run in runs]


def cut_by_hand(run, low, high):
    """The part of a run in regions [low, high), point by point."""
    kept, words, at = [], [], 0
    for index, count in enumerate(run.counts.tolist()):
        if low <= run.regions[index] < high:
            kept.append(index)
            words += run.words[at : at + count].tolist()
        at += count
    return PointRun(run.first, run.regions[kept], run.cells[kept], run.counts[kept], np.array(words, np.uint64))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=20), max_size=8), st.integers(0, 3000),
       st.sets(st.integers(-5, 5), min_size=1))
def test_a_group_gets_its_part_of_each_run(tmp_path_factory, batches, memory_bytes, begins):
    """Whatever is held in memory and what went to the file, each group has its slice of every run, to the last bit."""
    folder = tmp_path_factory.mktemp("spool") / "below"
    spool = RunSpool(folder, memory_bytes=memory_bytes)
    runs = [run_of(100 * number, regions) for number, regions in enumerate(batches)]
    for run in runs:
        spool.add(run)
    bounds = sorted(begins)
    spool.cut(np.array(bounds))
    bounds[0] = -100  # nothing is before the first group
    for group, (low, high) in reversed(list(enumerate(zip(bounds, [*bounds[1:], 100], strict=True)))):
        parts = [part for run in runs if len((part := cut_by_hand(run, low, high)).words)]
        taken = list(spool.take(group))
        assert values(taken) == values(parts)
        assert spool.count(group) == sum(len(part.words) for part in parts)
        for name in ("regions", "cells", "counts", "words"):
            assert {getattr(run, name).dtype for run in taken} <= {getattr(run, name).dtype for run in runs}
    spool.close()


def test_few_points_never_touch_the_disk(tmp_path):
    """Below the limit no folder is made."""
    spool = RunSpool(tmp_path / "spool", memory_bytes=1000)
    spool.add(run_of(0, [1, 2, 1]))
    spool.cut(np.array([1]))
    assert spool.count(0) == 3
    assert not (tmp_path / "spool").exists()


def test_a_disk_that_refuses_is_a_transport_error(tmp_path):
    """The message names the folder and the reason."""
    (tmp_path / "spool").write_text("")
    spool = RunSpool(tmp_path / "spool", memory_bytes=0)
    with pytest.raises(TransportError, match="spool: can't be written: File exists"):
        spool.add(run_of(0, [0, 1]))


def test_a_file_that_was_cut_is_a_transport_error(tmp_path):
    """Points that are gone from the file are not made up."""
    spool = RunSpool(tmp_path / "spool", memory_bytes=0)
    spool.add(run_of(0, [0, 1]))
    spool.cut(np.array([0]))
    os.truncate(tmp_path / "spool" / "points.runs", 10)
    with pytest.raises(TransportError, match="found its end"):
        list(spool.take(0))
    spool.close()
