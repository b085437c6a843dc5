"""The short form of `python -m reliability.kills`: power cuts, signals at awkward moments, and what is left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reliability.commands import Machine
from reliability.kills import POWER, SEVERAL, open_worlds, run_trial
from reliability.power import recording
from reliability.strikes import FILES, Strike
from reliability.worlds import World

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="what records fsync is compiled")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, World]]:
    with open_worlds(tmp_path_factory.mktemp("kills"), ["plain", "graphene"]) as found:
        yield found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    line = Machine(tmp_path / "machine")
    yield line
    line.close()


CUTS = {
    "after the table": ("plain", Strike("after", "merge", FILES["merge"][0])),
    "after the last marker": ("plain", Strike("after", "merge", FILES["merge"][2])),
    "among answers of the graph": ("graphene", Strike("request", "resolve", number=6)),
}


@needs_compiler
@pytest.mark.parametrize("name", CUTS)
def test_a_power_cut(name: str, worlds: dict[str, World], machine: Machine) -> None:
    """What was not brought to the disk is lost in part: the same command ends with the same bytes, and leaves none."""
    world, strike = CUTS[name]
    outcome = run_trial(worlds[world], POWER, machine, random.Random(name), strikes=[strike])
    assert outcome.failures == [], outcome.said
    assert outcome.stages
    assert sum(outcome.lost.values()) > 0


@pytest.mark.parametrize(("kind", "moment"), [
    ("SIGINT to the group", "before"), ("kill -9 of a worker", "before"),
])
def test_struck_at_the_last_marker(kind: str, moment: str, worlds: dict[str, World], machine: Machine) -> None:
    """Struck when the table is there already, the same command says so and clears away what the killed one left."""
    strike = Strike(moment, "merge", FILES["merge"][2])
    outcome = run_trial(worlds["plain"], kind, machine, random.Random(1), strikes=[strike])
    assert outcome.failures == [], outcome.said
    assert outcome.stages


def test_struck_three_times(worlds: dict[str, World], machine: Machine) -> None:
    """Killed in three ways at three instants, nothing that was finished is done again."""
    strikes = [Strike("instant", seconds=1.0), Strike("request", "fetch", number=20),
               Strike("before", "decode", FILES["decode"][2])]
    outcome = run_trial(worlds["plain"], SEVERAL, machine, random.Random(7), strikes=strikes)
    assert outcome.failures == [], outcome.said


@needs_compiler
def test_what_a_marker_lists_is_on_the_disk_before_it(worlds: dict[str, World], machine: Machine) -> None:
    """The folder of every file that a marker lists is brought to the disk between the file's rename and the marker's.

    Else a power cut could leave the new marker beside older files of the same size, as of a chunk that was mended.
    """
    log = machine.folder / "power"
    ended = machine.run(worlds["graphene"].parameters, env=recording(machine.workspace, log))
    assert ended.code == 0, ended.said
    events = [line.split("\t") for line in (log / "operations").read_text().splitlines()]
    renamed = {second: place for place, (kind, _, second, _) in enumerate(events) if kind == "rename"}
    run_folder = machine.run_folder
    assert run_folder is not None
    checked = 0
    for marker in [*run_folder.glob("*/*.json"), *run_folder.glob("roots/*/*.json")]:
        for name in json.loads(marker.read_bytes()).get("files", {}):
            path = run_folder / name
            between = events[renamed[str(path)] : renamed[str(marker)]]
            assert ["folder", str(path.parent), "", ""] in between, f"{name} of {marker.name}"
            checked += 1
    assert checked > 10


DROPPED = """
import os, signal, time
import pipeline
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
os.register_at_fork(after_in_parent=interrupt)
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
time.sleep(30)
print("went on")
"""


def test_an_interrupt_in_the_middle_of_a_fork() -> None:
    """Ctrl-C where Python drops exceptions, as in its callbacks of a fork, ends the command a moment later."""
    ended = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGINT
    assert "interrupted; the same command goes on" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_an_interrupt_of_a_process_just_forked(tmp_path: Path) -> None:
    """Ctrl-C is the parent's to handle from a worker's first moment on."""
    code = ("import os, signal, sys\nimport pipeline\nchild = os.fork()\n"
            "if child == 0:\n    os.kill(os.getpid(), signal.SIGINT)\n    os._exit(5)\n"
            "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
                           env=os.environ | {"HOME": str(tmp_path)})
    assert (ended.returncode, ended.stderr) == (5, "")


def test_a_half_written_marker_that_nobody_writes_again(worlds: dict[str, World], machine: Machine) -> None:
    """A fetch's marker that a power cut undid, of a group with labels, leaves no temporary file beside the table."""
    world: Any = worlds["plain"]
    assert machine.run(world.parameters).code == 0
    run_folder = machine.run_folder
    assert run_folder is not None
    (run_folder / "fetch/group-001.json").rename(run_folder / "fetch/.tmp-123-0123abcd-group-001.json")
    (run_folder / "result.parquet").unlink()
    ended = machine.run(world.parameters)
    assert ended.code == 0, ended.said
    assert world.result(machine) == world.table
    assert list(machine.workspace.rglob(".tmp-*")) == []
