"""Two commands at the same time: `python -m reliability.pairs --rounds 10 --seed 1`.

Two identical runs; two runs that share a cache; a run beside one whose small budget evicts what it wants; a run that is
read by RefreshRoots in another process. In half of the rounds one of the two is killed with -9 at a random instant. A
round fails if a command hangs, ends badly without having been killed, or shows a traceback, or if after the same
commands again a table isn't byte-identical to that of a run alone.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reliability import worlds
from reliability.commands import Command, Machine
from reliability.tables import format_columns
from reliability.traces import leftovers
from reliability.worlds import World

ALREADY_RUNNING = 10
PAIRS = ("identical", "shared cache", "eviction", "refresh")
# Of a cache of some 60 kB: every write measures, and nearly all is evicted.
SMALL_BYTES = 8_000
LATER = "2023-11-16T12:00:00Z"
THEN = "2023-11-15T12:00:00Z"


@dataclass
class Round:
    """What two commands at the same time came to."""

    pair: str
    killed: bool = False
    longest: float = 0.0
    problems: list[str] = field(default_factory=list)
    said: str = ""


class One:
    """One of two commands: what it is given, and the table that it has to leave."""

    def __init__(self, parameters: Mapping[str, Any], output: Path, table: bytes, task: str = "SamplePoints") -> None:
        self.parameters, self.output, self.table, self.task = parameters, output, table, task

    def start(self, machine: Machine) -> Command:
        """Return the command under way."""
        return machine.start(self.parameters, task=self.task)


def run_round(pair: str, both: list[One], machine: Machine, rng: random.Random, *, kill: bool) -> Round:
    """Start two commands at almost the same moment, kill one of them or none, and see how they and their tables end."""
    outcome = Round(pair)
    commands = []
    for one in both:
        commands.append(one.start(machine))
        time.sleep(rng.choice([0.0, rng.uniform(0.0, 1.0)]))
    victim = rng.randrange(2) if kill else None
    if victim is not None:
        time.sleep(rng.uniform(0.5, 2.5))
        outcome.killed = commands[victim].is_under_way()
        commands[victim].strike("group", signal.SIGKILL)
    for number, (command, one) in enumerate(zip(commands, both, strict=True)):
        ended = command.wait()
        outcome.longest = max(outcome.longest, ended.seconds)
        outcome.said += f"--- {number}: {ended.code} after {ended.seconds:.1f} s\n{ended.said}"
        if ended.code is None:
            outcome.problems.append(f"{number} hung")
        elif number != victim and ended.code not in ((0, ALREADY_RUNNING) if pair == "identical" else (0,)):
            outcome.problems.append(f"{number} ended with {ended.code}")
        elif ended.code == 0 and one.output.read_bytes() != one.table:
            outcome.problems.append(f"{number}: the table's bytes differ")
        if "Traceback" in ended.said:
            outcome.problems.append(f"{number}: a traceback was shown")
    for number, one in enumerate(both):
        ended = one.start(machine).wait()
        outcome.said += f"--- {number} again: {ended.code}\n{ended.said}"
        if ended.code != 0:
            outcome.problems.append(f"{number} again ended with {ended.code}")
        elif one.output.read_bytes() != one.table:
            outcome.problems.append(f"{number} again: the table's bytes differ")
    if left := leftovers(machine):
        outcome.problems.append(f"left: {', '.join(left[:4])}")
    return outcome


@dataclass
class Scene:
    """The worlds of the pairs, and a second table of points of the plain one."""

    plain: World
    other: World
    graphene: World
    dated: Path
    tables: dict[str, bytes]

    def pair(self, name: str, machine: Machine) -> list[One]:
        """Return two commands for a machine."""
        folder = machine.folder
        first = One(self.plain.parameters | {"output": folder / "first.parquet"}, folder / "first.parquet",
                    self.plain.table)
        if name == "identical":
            return [first, first]
        second = One(self.other.parameters | {"output": folder / "second.parquet"}, folder / "second.parquet",
                     self.other.table)
        if name == "shared cache":
            apart = {"cache": folder / "cache"}
            return [One(one.parameters | apart | {"workspace": folder / f"workspace-{number}"}, one.output, one.table)
                    for number, one in enumerate((first, second))]
        if name == "eviction":
            small = {"cache": folder / "cache", "cache_bytes": SMALL_BYTES}
            return [One(one.parameters | (small if number else {"cache": folder / "cache"}), one.output, one.table)
                    for number, one in enumerate((first, second))]
        output = folder / "later.parquet"
        given = {"table": self.dated, "timestamp": LATER, "output": output}
        sampled = One(self.graphene.parameters | {"timestamp": LATER, "output": folder / "sampled.parquet"},
                      folder / "sampled.parquet", self.tables["sampled"])
        return [sampled, One(given, output, self.tables["refreshed"], "RefreshRoots")]


@contextlib.contextmanager
def open_scene(folder: Path) -> Iterator[Scene]:
    """Give the worlds, each with the table of a run alone."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(worlds.plain_world(folder / "plain", latency_seconds=0.02))
        graphene = stack.enter_context(worlds.graphene_world(folder / "graphene", latency_seconds=0.02))
        other = worlds.with_other_points(plain, folder / "other.csv")
        tables = {}
        graph = graphene.graph
        assert graph is not None
        worlds.split_a_root(graph.api.graph, at=1_700_100_000.0)
        for name, world in (("plain", plain), ("other", other)):
            machine = Machine(folder / f"whole-{name}")
            world.sample(machine)
            machine.close()
        machine = Machine(folder / "whole-graphene")
        dated = folder / "dated.parquet"
        for output, at in ((dated, THEN), (folder / "sampled.parquet", LATER)):
            ended = machine.run(graphene.parameters | {"timestamp": at, "output": output})
            assert ended.code == 0, ended.said
        ended = machine.run({"table": dated, "timestamp": LATER, "output": folder / "later.parquet"},
                            task="RefreshRoots")
        assert ended.code == 0, ended.said
        tables = {"sampled": (folder / "sampled.parquet").read_bytes(),
                  "refreshed": (folder / "later.parquet").read_bytes()}
        assert tables["sampled"] == tables["refreshed"] != dated.read_bytes()
        machine.close()
        yield Scene(plain, other, graphene, dated, tables)


def main() -> int:
    """Run the rounds that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="of each pair")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pair", default="", help=f"part of a name of: {', '.join(PAIRS)}")
    options = parser.parse_args()
    started, rounds = time.monotonic(), list[Round]()
    with tempfile.TemporaryDirectory(prefix="reliability-") as name, open_scene(Path(name) / "scene") as scene:
        for number in range(options.rounds):
            for pair in (one for one in PAIRS if options.pair in one):
                rng = random.Random(f"{options.seed} {pair} {number}")
                machine = Machine(Path(name) / f"{pair.replace(' ', '-')}-{number}")
                outcome = run_round(pair, scene.pair(pair, machine), machine, rng, kill=number % 2 == 1)
                machine.close()
                shutil.rmtree(machine.folder, ignore_errors=True)
                rounds.append(outcome)
                print(f"{pair}, round {number}: {outcome.problems or 'well'}", flush=True)
                if outcome.problems:
                    print(outcome.said, flush=True)
    rows: list[list[object]] = [["two at once", "rounds", "one killed", "longest s", "failed"]]
    for pair in PAIRS:
        own = [one for one in rounds if one.pair == pair]
        rows.append([pair, len(own), sum(one.killed for one in own),
                     f"{max((one.longest for one in own), default=0.0):.1f}", sum(bool(one.problems) for one in own)])
    print(format_columns(rows))
    print(f"{len(rounds)} rounds, {sum(bool(one.problems) for one in rounds)} failed, "
          f"{time.monotonic() - started:.0f} s")
    return int(any(one.problems for one in rounds))


if __name__ == "__main__":
    sys.exit(main())
