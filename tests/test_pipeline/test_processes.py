"""Several processes of one run: workers that end with their parent or before it, and commands at the same time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK = (80, 64, 40), (16, 16, 16)


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    few = np.random.default_rng(1).integers(2**63, 2**64, tuple(n // 4 for n in SHAPE), dtype=np.uint64)
    return few.repeat(4, 0).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def data(array: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("processes")
    write_volume(folder / "seg", array, encoding="compresso", chunk_size=CHUNK)
    points = np.random.default_rng(2).integers(0, SHAPE, (20_000, 3))
    return {"volume": folder / "seg", "points": write_points(folder / "points.npy", points)}


@pytest.fixture
def check_right(array: Any, data: dict[str, Path]) -> Callable[[Any], None]:
    def check(cli: Any) -> None:
        """The table is there with every label, and nothing half-written beside it."""
        voxels = np.load(data["points"])
        assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()
        assert [path.name for path in cli.run_folder.rglob(".tmp-*")] == []

    return check


def processes_below(parent: int) -> set[int]:
    """Return the ids of a process's descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry.parent.name)] = int(fields[1])
    found = {child for child, above in parents.items() if above == parent}
    return found.union(*(processes_below(child) for child in found))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def start_stalled(cli: Any, store: HttpStore, points: Path, wait_until: Any) -> Any:
    """Return a command with two workers, both of which wait for a store that answers no more."""
    store.fault_for = lambda request: Fault("stall", seconds=600) if len(store.requests) > 20 else None
    process = cli.start(volume=store.url, points=points, workers=2, fetch_threads=2)
    wait_until(lambda: len(store.requests) > 22, "fetches that stall", pause=0.02)
    wait_until(lambda: len(processes_below(process.pid)) >= 2, "two workers", pause=0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_children_end_with_their_parent(number: signal.Signals, cli: Any, data: dict[str, Path], wait_until: Any,
                                        check_right: Any) -> None:
    """A signal to the parent alone ends every process of the run, and the same command finishes it."""
    with HttpStore(data["volume"]) as store:
        process = start_stalled(cli, store, data["points"], wait_until)
        children = processes_below(process.pid)
        os.kill(process.pid, number)
        outcome = cli.wait(process)
        assert outcome.code != 0
        assert "Traceback" not in outcome.err
        wait_until(lambda: not any(map(is_running, children)), "the children's end", 20, pause=0.02)
        store.fault_for = None
        outcome = cli.run(volume=store.url, points=data["points"], workers=2, fetch_threads=2)
        assert outcome.code == 0, outcome.err
    check_right(cli)


def test_a_child_that_is_killed(cli: Any, data: dict[str, Path], wait_until: Any, check_right: Any) -> None:
    """A worker that is killed alone (as when memory runs out) is told of, and the same command finishes the run."""
    with HttpStore(data["volume"]) as store:
        process = start_stalled(cli, store, data["points"], wait_until)
        os.kill(min(processes_below(process.pid)), signal.SIGKILL)
        store.fault_for = None
        for child in processes_below(process.pid):  # its stalled requests would wait on
            os.kill(child, signal.SIGKILL)
        outcome = cli.wait(process)
        assert outcome.code not in (0, None)
        assert "Traceback" not in outcome.err
        assert any(word in outcome.err for word in ("died", "killed", "SIGKILL", "-9")), outcome.err
        outcome = cli.run(volume=store.url, points=data["points"], workers=2, fetch_threads=2)
        assert outcome.code == 0, outcome.err
    check_right(cli)


def test_two_commands_at_the_same_time(cli: Any, data: dict[str, Path], check_right: Any) -> None:
    """Two processes on one run both end well, and leave one right table."""
    both = [cli.start(**data, fetch_threads=threads) for threads in (3, 4)]
    outcomes = [cli.wait(process) for process in both]
    assert [outcome.code for outcome in outcomes] == [0, 0], "\n".join(outcome.err for outcome in outcomes)
    check_right(cli)


def test_the_very_same_command_twice_at_the_same_time(cli: Any, data: dict[str, Path], check_right: Any) -> None:
    """Of two commands that are the same to the letter, one may say that the other is running; one makes the table."""
    both = [cli.start(**data) for _ in range(2)]
    outcomes = [cli.wait(process) for process in both]
    codes = sorted(outcome.code for outcome in outcomes)
    assert codes in ([0, 0], [0, 10]), "\n".join(outcome.err for outcome in outcomes)
    check_right(cli)
