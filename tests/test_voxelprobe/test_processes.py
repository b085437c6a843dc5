import faulthandler
import os
import select
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import psutil
import pytest

from voxelprobe.errors import CorruptDataError, TransportError
from voxelprobe.processes import run_isolated, shared_array


def run(count, odd=None, stall_seconds=30.0):
    """Square numbers in isolation, with odd items given as functions; return the results and what was wrong."""
    results = shared_array((count,), np.int64)

    def work(item):
        if odd and item in odd:
            odd[item]()
        results[item] = item * item + 1

    wrong = run_isolated(work, count, what="the test decoder", stall_seconds=stall_seconds)
    return results.tolist(), wrong


def squares(count, but=()):
    return [0 if item in but else item * item + 1 for item in range(count)]


def end_by(number):
    def end():
        faulthandler.disable()  # pytest's: it would write the stack of a crash that is meant
        os.kill(os.getpid(), number)
    return end


def fail(error):
    def raise_it():
        raise error
    return raise_it


def hang():
    threading.Event().wait()


@pytest.mark.parametrize("count", [0, 1, 50])
def test_sound_items_are_all_done(count):
    """Results come back through shared memory, and nothing is reported."""
    assert run(count) == (squares(count), {})


@pytest.mark.parametrize("bad", [[0], [3], [9], [0, 1, 2], [4, 5, 9], list(range(10))])
def test_a_crash_costs_one_item(bad):
    """An item that ends the process is reported by its signal; all others are done."""
    results, wrong = run(10, {item: end_by(signal.SIGSEGV) for item in bad})
    assert results == squares(10, bad)
    assert wrong == dict.fromkeys(bad, "the test decoder crashed (SIGSEGV) on it")


@pytest.mark.parametrize(("end", "said"), [
    (end_by(signal.SIGABRT), "crashed (SIGABRT)"),
    (end_by(signal.SIGKILL), "was killed or made no progress"),
    (lambda: os._exit(3), "ended the process with status 3"),
    (lambda: os._exit(0), "ended the process with status 0"),
    *[(partial(os._exit, status), f"ended the process with status {status}") for status in range(64, 80)],
])
def test_however_an_item_ends_the_process_it_is_reported(end, said):
    """Each way to end is told apart, a quiet exit too: the items after it are not taken for done."""
    results, wrong = run(5, {2: end})
    assert results == squares(5, [2])
    assert wrong == {2: f"the test decoder {said} on it"}


def test_corrupt_items_are_reported_with_their_message():
    """CorruptDataError is the decoder's word on an item; the process goes on with the next."""
    messages = {1: "expected 8 bytes,\nfound 7", 4: "ä" * 5000, 5: "\ud800"}
    results, wrong = run(7, {item: fail(CorruptDataError(text)) for item, text in messages.items()})
    assert results == squares(7, messages)
    assert wrong == {item: str(CorruptDataError(text)) for item, text in messages.items()}


def test_an_item_that_hangs_is_given_up():
    """After the stall time the process is ended, the item reported, and the rest done."""
    results, wrong = run(4, {1: hang}, stall_seconds=1.0)
    assert results == squares(4, [1])
    assert wrong == {1: "the test decoder was killed or made no progress on it"}


def test_crash_corruption_and_hang_in_one_batch():
    """Kinds of trouble don't hide each other."""
    odd = {0: end_by(signal.SIGSEGV), 2: fail(CorruptDataError("bad")), 3: hang, 5: end_by(signal.SIGBUS)}
    results, wrong = run(7, odd, stall_seconds=1.0)
    assert results == squares(7, odd)
    assert list(wrong) == [0, 2, 3, 5]
    assert wrong[2] == "bad"


def test_another_exception_is_the_callers():
    """What isn't CorruptDataError is a fault of ours or of the machine, and raised in the parent as it was."""
    with pytest.raises(TransportError, match=r"^the disk is full$"):
        run(5, {2: fail(TransportError("the disk is full"))})
    with pytest.raises(MemoryError):
        run(5, {2: fail(MemoryError())})


def test_an_exception_that_doesnt_pickle_is_raised_by_its_name():
    """No exception of an item makes the forked copy go on with its parent's work."""
    class LocalError(Exception):
        pass

    parent = os.getpid()
    with pytest.raises(RuntimeError, match=r"^LocalError: 7$"):
        run(5, {2: fail(LocalError(7))})
    assert os.getpid() == parent


@pytest.mark.parametrize("shape", [(), (0, 3), (4, 2)])
def test_a_shared_array_is_zeroed_and_of_its_shape(shape):
    """As np.zeros gives it, empty ones too."""
    array = shared_array(shape, "<u8")
    assert array.tolist() == np.zeros(shape, "<u8").tolist()
    assert array.dtype == np.dtype("<u8")
    assert array.flags.writeable


def test_no_file_stays_open_and_no_child_is_left():
    """A run leaves neither descriptors nor zombies behind, with or without trouble."""
    def count():
        return len(os.listdir("/proc/self/fd"))

    def children():
        return {child.pid for child in psutil.Process().children()}

    before, born = count(), children()
    for odd in (None, {1: end_by(signal.SIGSEGV)}, {1: fail(CorruptDataError("x"))}):
        run(3, odd)
    with pytest.raises(ValueError, match="x"):
        run(3, {1: fail(ValueError("x"))})
    assert count() == before
    assert children() <= born


PARENT = """
import os, signal, sys, threading
from voxelprobe.processes import die_with_parent
if os.fork() == 0:
    die_with_parent()
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    threading.Event().wait(60)
    os._exit(0)
threading.Event().wait(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_ends_with_a_killed_parent():
    """SIGKILL of the parent, which no handler sees, ends the child: its end of the pipe closes."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        ended, _, _ = select.select([parent.stdout], [], [], 30)
        assert ended
        assert parent.stdout.read() == b""


LATE = """
import os, signal, sys, time
from voxelprobe.processes import die_with_parent
main = os.getpid()
if os.fork() == 0:
    while os.getppid() == main:
        time.sleep(0.01)
    die_with_parent(main)
    print("went on", flush=True)
    os._exit(0)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_whose_parent_was_gone_before_it_asked():
    """A child that knows its parent's id ends too if that had ended before the child could ask the kernel."""
    ended = subprocess.run([sys.executable, "-c", LATE], capture_output=True, timeout=30, check=True)
    assert ended.stdout == b""
