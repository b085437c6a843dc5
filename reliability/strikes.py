"""When a run is struck: as a file gets its name, in the middle of requests, or at any instant."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from reliability.commands import Command, Machine
from reliability.worlds import World
from voxelprobe.testing.store_gate import Verdict

# Strikes as a name is given, before or after; once in a run, whichever of its processes it is.
_AT_RENAME = """
import os, re, signal
_main, _replace, _rename = os.getpid(), os.replace, os.rename
def _strike():
    try:
        os.close(os.open(os.environ["STRIKE_FLAG"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    whom, number = os.environ["STRIKE"].split()
    if whom == "group":
        os.killpg(os.getsid(0), int(number))
    else:
        os.kill(_main if whom == "parent" else os.getpid(), int(number))
def _around(rename):
    def renamed(source, target, **more):
        moment, pattern = os.environ["STRIKE_AT"].split(" ")
        hit = re.search(pattern + "$", os.fspath(target))
        if hit and moment == "before":
            _strike()
        rename(source, target, **more)
        if hit and moment == "after":
            _strike()
    return renamed
os.replace, os.rename = _around(_replace), _around(_rename)
"""

# Files in the order in which a run makes them, by stage.
FILES = {
    "start": [r"/run\.json"],
    "plan": [r"plan/chunks-000\.parquet", r"plan/unplaced\.parquet", r"plan/manifest\.json"],
    "fetch": [r"fetch/group-000\.json", r"fetch/group-001\.json"],
    "decode": [r"labels/group-000\.parquet", r"labels/group-001\.json", r"labels/group-002\.json"],
    "resolve": [r"parts/00000[01]\.npy", r"roots/2.*/group-001\.parquet", r"roots/2.*/group-000\.json"],
    "audit": [r"audit/1000/part-000\.parquet", r"audit/1000/part-000\.json"],
    "merge": [r"/result[^/]*\.parquet", r"/report\.json", r"merge/[^/]+\.json"],
}


class Strike(NamedTuple):
    """An instant: `before` or `after` a file gets its name, at the n-th `request`, or after some `seconds`."""

    moment: str
    stage: str = ""
    pattern: str = ""
    number: int = 0
    seconds: float = 0.0


def plan_strike(world: World, rng: random.Random) -> Strike:
    """Return an instant for a run in a world: a boundary in half of all cases."""
    choice = rng.random()
    if choice < 0.5:
        stages = [stage for stage in FILES if stage != "resolve" or world.graph is not None]
        stage = rng.choice(stages)
        return Strike(rng.choice(["before", "after"]), stage, rng.choice(FILES[stage]))
    if choice < 0.75 and world.store is not None:
        stage = "resolve" if world.graph is not None and rng.random() < 0.5 else "fetch"
        return Strike("request", stage, number=rng.randint(1, 12 if stage == "resolve" else 60))
    return Strike("instant", seconds=rng.uniform(0.1, 3.0 if world.gate is None else 6.0))


def launch(world: World, machine: Machine, strike: Strike, whom: str, number: int, *, parameters: Mapping[str, Any],
           env: Mapping[str, str]) -> tuple[Command, str]:
    """Start the command and strike it; return it, and when it was struck: moment and stage, "" if it ended first."""
    if strike.moment in ("before", "after") and world.gate is not None:
        return _at_put(world, machine, strike, whom, number, parameters)
    if strike.moment in ("before", "after"):
        flag = _next_name(machine.folder, "struck")
        order = {"STRIKE": f"{whom} {int(number)}", "STRIKE_AT": f"{strike.moment} {strike.pattern}"}
        command = machine.start(parameters, env=dict(env) | shim(machine) | order | {"STRIKE_FLAG": str(flag)})
        command.wait()
        return command, f"{strike.moment} {strike.stage}" if flag.exists() else ""
    command = machine.start(parameters, env=env)
    if strike.moment == "request":
        _wait_until(lambda: _count(world, strike.stage) >= strike.number, command)
        stage = f"in {strike.stage}"
    else:
        deadline = time.monotonic() + strike.seconds
        _wait_until(lambda: time.monotonic() >= deadline, command)
        stage = f"in {reached(machine)}" if world.gate is None else "in instant"
    if not command.is_under_way():
        return command, ""
    command.strike(whom, number)
    return command, stage


def shim(machine: Machine) -> dict[str, str]:
    """Return the environment of a Python that strikes itself."""
    folder = machine.folder / "shim"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_AT_RENAME)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def reached(machine: Machine) -> str:
    """Return the stage that a run is in, as far as its files tell."""
    folder = machine.run_folder
    if folder is None:
        return "start"
    if not (folder / "plan/manifest.json").exists():
        return "plan"
    if any((folder / "merge").glob("*.json")) or any(folder.glob("*result*")):
        return "merge"
    for stage, pattern in (("resolve", "roots/2*/*"), ("decode", "labels/*"), ("fetch", "fetch/*")):
        if any(folder.glob(pattern)):
            return stage
    return "fetch"


def _at_put(world: World, machine: Machine, strike: Strike, whom: str, number: int,
            parameters: Mapping[str, Any]) -> tuple[Command, str]:
    """Strike when a PUT of a file arrives, or after it was answered."""
    gate, struck, started = world.gate, list[str](), list[Command]()
    assert gate is not None

    def judge(request: Any) -> Verdict:
        if request.method == "PUT" and not struck and started and re.search(strike.pattern + "$", request.path):
            struck.append(request.path)
            started[0].strike(whom, number)
        return "pass"

    if strike.moment == "before":
        gate.judge = judge
    else:
        gate.see = judge
    started.append(machine.start(parameters))
    started[0].wait()
    return started[0], f"{strike.moment} {strike.stage}" if struck else ""


def _count(world: World, stage: str) -> int:
    if stage == "resolve":
        assert world.graph is not None
        return len(world.graph.calls("roots_binary"))
    return sum(world.chunks_asked().values())


def _wait_until(condition: Callable[[], bool], command: Command, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while command.is_under_way() and not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


def _next_name(folder: Path, stem: str) -> Path:
    return folder / f"{stem}-{sum(1 for _ in folder.glob(f'{stem}-*'))}-{time.monotonic_ns()}"
