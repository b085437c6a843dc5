import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxelprobe.errors import TransportError
from voxelprobe.run.spool import GroupSpool


def add(spool, start, groups):
    points = np.arange(start, start + len(groups))
    spool.add(points, points * 7 - 2**60, (points * 11) % 2**32, np.array(groups, np.int64))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), max_size=20), max_size=8), st.integers(0, 60))
def test_a_group_gets_its_points_in_the_order_they_came(tmp_path_factory, batches, memory_points):
    """Whatever is held in memory and what went to files, each group has its points, once, in order, to the last bit."""
    folder = tmp_path_factory.mktemp("spool") / "below"
    spool = GroupSpool(folder, 6, memory_points=memory_points)
    expected = [[] for _ in range(6)]
    start = 0
    for batch in batches:
        add(spool, start, batch)
        for point, group in enumerate(batch, start):
            expected[group].append(point)
        start += len(batch)
    assert folder.exists() == any(folder.glob("*"))
    for group in (3, 0, 5, 1, 4, 2):
        points, chunks, places = spool.take(group)
        assert points.tolist() == expected[group]
        assert chunks.tolist() == [point * 7 - 2**60 for point in expected[group]]
        assert places.tolist() == [(point * 11) % 2**32 for point in expected[group]]
        assert (points.dtype, chunks.dtype, places.dtype) == (np.int64,) * 3
        assert spool.take(group)[0].tolist() == []
    assert not any(folder.glob("*"))


def test_few_points_never_touch_the_disk(tmp_path):
    """Below the limit no folder is made; places up to 2^32 - 1 fit."""
    spool = GroupSpool(tmp_path / "spool", 257, memory_points=10)
    spool.add(np.array([1]), np.array([2]), np.array([2**32 - 1]), np.array([256]))
    assert [values.tolist() for values in spool.take(256)] == [[1], [2], [2**32 - 1]]
    assert not (tmp_path / "spool").exists()


def test_a_disk_that_refuses_is_a_transport_error(tmp_path):
    """The message names the folder and the reason."""
    (tmp_path / "spool").write_text("")
    spool = GroupSpool(tmp_path / "spool", 2, memory_points=0)
    with pytest.raises(TransportError, match="spool: can't be written: File exists"):
        add(spool, 0, [0, 1])
