"""When stores that fail for all tasks in turn are not asked any more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tasks import patience
from tasks.patience import within_patience
from voxelprobe.errors import AuthorizationError, InputError, TransportError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    patience._shared[:] = bytes(len(patience._shared))
    monkeypatch.setattr(patience, "READ_TIMEOUTS", 0.1)
    yield
    patience._shared[:] = bytes(len(patience._shared))


def fail(times: int, seconds: float = 0.0, error: type[Exception] = TransportError, *, is_work: bool = True) -> None:
    def ask() -> None:
        with within_patience(1, is_work=is_work):
            time.sleep(seconds)
            raise error("down")

    for _ in range(times):
        with pytest.raises(error, match=r"^down$"):
            ask()


def test_three_long_failures_in_a_row() -> None:
    """After three failures that took long the next asking is refused at once, with what to do."""
    fail(2, 0.06)
    with within_patience(1, is_work=False):
        pass  # a marker was found, which says nothing of the store of the chunks
    fail(1, 0.06, AuthorizationError, is_work=False)
    message = "failed 3 times in a row, for 0 s, as said above; the same command goes on"
    with pytest.raises(TransportError, match=message), within_patience(1, is_work=True):
        pytest.fail("it was asked")


def test_work_that_was_done_between() -> None:
    """Work that ends well, or quick failures, or errors that aren't a store's leave everything to be tried."""
    fail(2, 0.06)
    with within_patience(1, is_work=True):
        pass
    fail(5)
    fail(5, 0.03, InputError)
    with within_patience(1, is_work=True):
        pass


def test_failures_of_other_processes() -> None:
    """What fails in the processes that Luigi forks counts too."""
    for _ in range(3):
        if (child := os.fork()) == 0:
            fail(1, 0.06)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(TransportError, match="not tried"), within_patience(1, is_work=True):
        pytest.fail("it was asked")


def test_a_later_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after the last failure the stores are asked again; failing still, they are left alone again."""
    fail(3, 0.06)
    monkeypatch.setattr(patience, "REFUSED_SECONDS", 0.2)
    time.sleep(0.25)
    fail(1)
    with pytest.raises(TransportError, match="failed 4 times"), within_patience(1, is_work=True):
        pytest.fail("it was asked")
