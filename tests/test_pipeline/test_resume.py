"""What a killed run leaves, and what the same command makes of it."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.http_store import HttpStore, Request
from voxelprobe.testing.volumes import chunk_name, iterate_chunks, write_volume

SHAPE, CHUNK, POINTS = (80, 64, 40), (16, 16, 16), 60_000
# Kills the process group at the first rename onto a name, before it or after it.
KILL_AT_RENAME = """
import os, re, signal
_replace = os.replace
def replace(source, target, **more):
    moment, pattern = os.environ["KILL_AT"].split(" ")
    hit = re.fullmatch(pattern, "/".join(os.fspath(target).split("/")[-2:]))
    if hit and moment == "before":
        os.killpg(0, signal.SIGKILL)
    _replace(source, target, **more)
    if hit:
        os.killpg(0, signal.SIGKILL)
os.replace = replace
"""


class Case(NamedTuple):
    """A volume and points over it, and the bytes of the table that an uninterrupted run leaves."""

    volume: Path
    points: Path
    table: bytes


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    few = np.random.default_rng(1).integers(2**63, 2**64, tuple(n // 4 for n in SHAPE), dtype=np.uint64)
    return few.repeat(4, 0).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def case(array: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any, new_cli: Any) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("resume")
    write_volume(folder / "seg", array, encoding="compresso", chunk_size=CHUNK, skip_chunks={(0, 0, 0)})
    points = np.random.default_rng(2).integers(-1, SHAPE, (POINTS, 3))
    write_points(folder / "points.csv", points)
    with closing(new_cli(folder / "whole")) as line:
        assert line.run(volume=folder / "seg", points=folder / "points.csv").code == 0
        yield Case(folder / "seg", folder / "points.csv", line.result.read_bytes())


def states_of(folder: Path) -> dict[str, int]:
    """Return the time of change of every file below a folder but locks, which are touched by whoever looks."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".lock"}


def check_finishes(cli: Any, case: Case, **parameters: Any) -> None:
    """The same command finishes what was killed, byte by byte, and leaves nothing half-written."""
    outcome = cli.run(volume=case.volume, points=case.points, **parameters)
    assert outcome.code == 0, outcome.err
    assert cli.result.read_bytes() == case.table
    assert [path.name for path in cli.run_folder.rglob(".tmp-*")] == []


def test_a_finished_run_has_nothing_to_do(cli: Any, case: Case) -> None:
    """The same command again says so, ends well and touches no file."""
    assert cli.run(volume=case.volume, points=case.points).code == 0
    before = states_of(cli.workspace)
    outcome = cli.run(volume=case.volume, points=case.points)
    assert outcome.code == 0
    assert "nothing to do" in outcome.err
    assert str(cli.result) in outcome.err
    assert states_of(cli.workspace) == before


RENAMES = {
    "run": r"[^/]+/run\.json", "plan": r"plan/points-002\.parquet", "planned": r"plan/manifest\.json",
    "fetched": r"fetch/group-001\.json", "decode": r"labels/group-001\.parquet", "decoded": r"labels/group-002\.json",
    "merge": r"[^/]+/result\.parquet", "report": r"[^/]+/report\.json", "merged": r"merge/[^/]+\.json",
}


@pytest.mark.parametrize(("moment", "stages"), [("before", list(RENAMES)), ("after", ["planned", "decode", "merge"])],
                         ids=["before", "after"])
def test_killed_at_the_moment_a_file_appears(stages: list[str], moment: str, cli: Any, case: Case, shim: Any) -> None:
    """Killed with -9 before or after each stage's file gets its name, in turn, the same command finishes the run."""
    for stage in stages:
        env = shim(KILL_AT_RENAME) | {"KILL_AT": f"{moment} {RENAMES[stage]}"}
        assert cli.run(volume=case.volume, points=case.points, env=env).code == -signal.SIGKILL, stage
    check_finishes(cli, case)


STAGES = {"plan": "plan.lock", "fetch": "fetch-001.lock", "decode": "decode-001.lock", "merge": "merge-*.lock"}


@pytest.mark.parametrize(("stage", "workers"), [*((stage, 1) for stage in STAGES), ("fetch", 2), ("decode", 2)])
def test_killed_in_each_stage(stage: str, workers: int, cli: Any, case: Case, wait_until: Any) -> None:
    """Killed with -9 while a stage is at work, the same command finishes the run."""
    process = cli.start(volume=case.volume, points=case.points, workers=workers)
    wait_until(lambda: list(cli.workspace.glob(f"runs/*/locks/{STAGES[stage]}")), f"the stage {stage}")
    assert cli.kill(process).code == -signal.SIGKILL
    check_finishes(cli, case, workers=workers)


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again(seed: int, cli: Any, case: Case, wait_until: Any) -> None:
    """Killed with -9 at any instants, three times, the same command finishes the run."""
    rng = random.Random(seed)
    for _ in range(3):
        process = cli.start(volume=case.volume, points=case.points, workers=1 + seed % 2)
        wait_until((cli.workspace / "runs").exists, "the run's folder")
        # An instant, not a wait for something to happen.
        with pytest.raises(pytest.fail.Exception):
            wait_until(lambda: False, "an instant", rng.uniform(0, 0.6))
        cli.kill(process)
    check_finishes(cli, case)


def committed_chunks(cache: Path, info: dict[str, Any]) -> set[str]:
    """Return the paths of the chunks that the cache's files hold."""
    shape = [-(-n // c) for n, c in zip(SHAPE, CHUNK, strict=True)]
    scale, names = info["scales"][0], {}
    for (x, y, z), _ in iterate_chunks(SHAPE, CHUNK):
        names[x + shape[0] * (y + shape[1] * z)] = chunk_name(scale, (x, y, z))
    found = set()
    for path in cache.rglob("*.sqlite"):
        with closing(sqlite3.connect(path)) as database:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'chunks'").fetchone():
                found |= {names[int(key)] for (key,) in database.execute("SELECT key FROM chunks")
                          if key.isdecimal()}
    return found


@pytest.mark.parametrize(("answered", "workers"), [(5, 1), (30, 1), (50, 2)])
def test_committed_chunks_are_not_fetched_again(answered: int, workers: int, cli: Any, other_cli: Any, array: Any,
                                                tmp_path: Path, write_points: Any, wait_until: Any) -> None:
    """Killed with -9 in the middle of fetching, no chunk that the cache had committed is asked for again."""
    info = write_volume(tmp_path / "seg", array, chunk_size=CHUNK, compress="gzip")
    points = write_points(tmp_path / "p.npy", np.random.default_rng(3).integers(0, SHAPE, (3000, 3)))
    with HttpStore(tmp_path / "seg") as store:
        assert other_cli.run(volume=store.url, points=points, fetch_threads=1).code == 0
        # The first chunks, as one connection asks for them. Two may overtake each other: were the requests counted, the
        # last chunk of the one region that can be committed might be among those that stall.
        asked_in_order = [request.path for request in store.requests if request.path != "info"]
        first, stalled = set(asked_in_order[:answered]), []
        store.clear()

        def stall(request: Request) -> Fault | None:
            if request.path in {"info", *first}:
                return None
            stalled.append(request.path)
            return Fault("stall", seconds=600)

        store.fault_for = stall
        process = cli.start(volume=store.url, points=points, fetch_threads=2, workers=workers)
        wait_until(lambda: len(stalled) >= 2, "a fetch that stalls", pause=0.02)
        wait_until(lambda: committed_chunks(cli.workspace / "cache", info), "a commit", pause=0.1)
        assert cli.kill(process).code == -signal.SIGKILL
        committed = committed_chunks(cli.workspace / "cache", info)
        store.fault_for = None
        store.clear()
        outcome = cli.run(volume=store.url, points=points, fetch_threads=2, workers=workers)
        assert outcome.code == 0, outcome.err
        asked = Counter(request.path for request in store.requests)
        assert committed
        assert not committed & asked.keys()
        del asked["info"]
        assert set(asked.values()) == {1}
        every = {chunk_name(info["scales"][0], grid) for grid, _ in iterate_chunks(SHAPE, CHUNK)}
        assert committed | asked.keys() == every
    assert cli.result.read_bytes() == other_cli.result.read_bytes()


def test_other_points_find_the_chunks_in_the_cache(cli: Any, array: Any, tmp_path: Path, write_points: Any) -> None:
    """Another run over the same volume asks for the info, and for no chunk that is known, absent ones included."""
    write_volume(tmp_path / "seg", array, chunk_size=CHUNK, skip_chunks={(1, 1, 1)})
    first, second = (np.random.default_rng(seed).integers(0, SHAPE, (5000, 3)) for seed in (4, 5))
    with HttpStore(tmp_path / "seg") as store:
        assert cli.run(volume=store.url, points=write_points(tmp_path / "first.npy", first)).code == 0
        store.clear()
        output = tmp_path / "second.parquet"
        points = write_points(tmp_path / "second.npy", second)
        assert cli.run(volume=store.url, points=points, output=output).code == 0
        assert {request.path for request in store.requests} == {"info"}
    table = pq.read_table(output)
    expected = array[tuple(second.T)].astype(object)
    expected[(second // 16 == 1).all(axis=1)] = None
    assert table["label"].to_pylist() == expected.tolist()
