import threading

import pytest

from voxelprobe.run.threads import count_threads, map_in_order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_outcomes_come_in_the_order_of_the_items(threads):
    """Whoever is done first waits for those before."""
    gate = threading.Event()

    def work(item):
        if item == 1:
            gate.set()
        if item == 0 and threads > 1:
            assert gate.wait(30)
        return item * item

    assert list(map_in_order(work, range(20), threads)) == [item * item for item in range(20)]
    assert list(map_in_order(work, [], threads)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_in_its_place(threads):
    """What came before it is there, and no item far behind it was begun."""
    begun, outcomes = [], []

    def work(item):
        begun.append(item)
        return 1 // (item - 4)

    with pytest.raises(ZeroDivisionError):
        outcomes.extend(map_in_order(work, range(1000), threads))
    assert max(begun) <= 4 + threads + 1


def test_items_are_taken_as_they_are_needed():
    """A long table isn't read ahead of the work."""
    taken = []
    outcomes = map_in_order(lambda item: item, (taken.append(item) or item for item in range(1000)), 2)
    assert next(outcomes) == 0
    assert len(taken) <= 3
    outcomes.close()


def test_there_is_a_thread_at_least():
    """However few processors there are."""
    assert count_threads() >= 1
