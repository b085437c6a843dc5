"""A run killed in every way, at every stage: `python -m reliability.kills --kills 200 --seed 1`.

Each trial starts the command on a new machine, strikes once or three times, and gives the same command again. A trial
fails if that does not end well, if its table is not byte-identical to an undisturbed run's, if work with a marker, a
chunk in the cache or an answered batch of roots was asked for again, if a process outlived the one that started it
by 20 s, or if a temporary file is left. The seed and the number of a trial repeat it: `--seed 1 --only 17`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from reliability import worlds
from reliability.commands import Command, Machine
from reliability.power import cut_power, recording
from reliability.strikes import Strike, launch, plan_strike
from reliability.traces import Trace, leftovers, take_trace
from reliability.worlds import World

KINDS = {
    "kill -9 of a worker": ("worker", signal.SIGKILL),
    "kill -9 of the parent": ("parent", signal.SIGKILL),
    "kill -9 of the group": ("group", signal.SIGKILL),
    "SIGTERM to the parent": ("parent", signal.SIGTERM),
    "SIGTERM to the group": ("group", signal.SIGTERM),
    "SIGINT to the parent": ("parent", signal.SIGINT),
    "SIGINT to the group": ("group", signal.SIGINT),
    "power cut": ("group", signal.SIGKILL),
    "three, of any kind": ("", 0),
}
POWER, SEVERAL = "power cut", "three, of any kind"
SIGNALS = [kind for kind in KINDS if kind not in (POWER, SEVERAL)]


@dataclass
class Outcome:
    """What a trial came to."""

    kind: str
    world: str
    stages: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    orphan_seconds: float = 0.0
    lost: Counter[str] = field(default_factory=Counter)
    said: str = ""


def run_trial(world: World, kind: str, machine: Machine, rng: random.Random, *, strikes: list[Strike] | None = None,
              workers: int = 2) -> Outcome:
    """Strike a run on a new machine as often as its kind says, and see what the same command makes of it."""
    outcome = Outcome(kind, world.name)
    count = len(strikes) if strikes else 3 if kind == SEVERAL else 1
    for number in range(count):
        way = rng.choice(SIGNALS) if kind == SEVERAL else kind
        whom, signal_number = KINDS[way]
        strike = strikes[number] if strikes else plan_strike(world, rng)
        log = machine.folder / "power"
        env = recording(machine.workspace, log) if kind == POWER and world.gate is None else {}
        world.clear()
        trace = take_trace(world, machine)
        command, struck = launch(world, machine, strike, whom, signal_number, env=env,
                                 parameters=world.of_machine(machine) | {"workers": workers})
        outcome.stages += [struck] if struck else []
        _end(command, outcome)
        check_not_repeated(world, machine, trace, outcome)
        if kind == POWER:
            machine = _lose_power(world, machine, rng, outcome, log)
    trace = take_trace(world, machine)
    if kind == POWER:
        # The cache is not brought to the disk: what is lost of it is fetched again.
        trace = dataclasses.replace(trace, chunks=set())
    world.clear()
    command = machine.start(world.of_machine(machine) | {"workers": workers})
    ended = command.wait()
    if ended.code != 0:
        outcome.failures.append(f"the same command ended with {ended.code}")
    elif (content := world.result(machine)) != world.table:
        wrong = content is None or not world.is_exact(content)
        outcome.failures.append("the table is WRONG" if wrong else "the table's bytes differ")
    check_not_repeated(world, machine, trace, outcome)
    _end(command, outcome)
    # SQLite's journal of a region that nobody has opened since the power came back goes with the next who does.
    if left := [name for name in leftovers(machine) if kind != POWER or not name.endswith("-journal")]:
        outcome.failures.append(f"left: {', '.join(left[:5])}")
    world.clear()
    return outcome


def check_not_repeated(world: World, machine: Machine, before: Trace, outcome: Outcome) -> None:
    """Add what was done that had been done when the trace was taken."""
    for what, names in before.repeated(world, machine).items():
        outcome.failures.append(f"{what} again: {', '.join(sorted(names)[:3])} ({len(names)})")


def _end(command: Command, outcome: Outcome) -> None:
    """Wait for all processes of a command."""
    ended = command.wait()
    outcome.said += f"--- ended with {ended.code} after {ended.seconds:.1f} s, struck: {outcome.stages}\n{ended.said}"
    if ended.code is None:
        outcome.failures.append("hung")
    seconds = command.wait_for_orphans()
    if seconds is None:
        outcome.failures.append(f"orphans: {command.processes()}")
        command.stop()
    outcome.orphan_seconds = max(outcome.orphan_seconds, seconds or 0.0)
    # An interrupt while Python still loads Luigi is Python's to tell of: none of our code is there.
    if "Traceback" in ended.said and not (ended.code == -signal.SIGINT and "in start" in outcome.stages[-1:]):
        outcome.failures.append("a traceback was shown")


def _lose_power(world: World, machine: Machine, rng: random.Random, outcome: Outcome, log: Path) -> Machine:
    """Return the machine after the cut; of a run in a bucket another one, since the bucket has what counts."""
    if world.gate is None:
        outcome.lost.update(cut_power(machine.workspace, log, rng))
        shutil.rmtree(log, ignore_errors=True)
        return machine
    machine.close()
    outcome.lost["disks"] += 1
    return Machine(machine.folder.with_name(machine.folder.name + ".other"))


@contextlib.contextmanager
def open_worlds(folder: Path, names: list[str]) -> Iterator[dict[str, World]]:
    """Give worlds by name, each with the table of an undisturbed run."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in names:
            if name == "bucket":
                world = stack.enter_context(worlds.bucket_world(folder / name))
            else:
                make = worlds.plain_world if name == "plain" else worlds.graphene_world
                world = stack.enter_context(make(folder / name, latency_seconds=0.02))
            machine = Machine(folder / f"whole-{name}")
            world.sample(machine)
            machine.close()
            found[name] = world
        yield found


def print_table(outcomes: list[Outcome]) -> None:
    """Print kills by kind and stage, and by kind how many trials went on well."""
    stages = sorted({stage.split(" ")[-1] for one in outcomes for stage in one.stages})
    width = max(map(len, KINDS)) + 2
    print("kills by stage".ljust(width) + "  ".join([*stages, "kills", "trials", "resumed", "failed"]))
    total = Counter[str]()
    for kind in KINDS:
        own = [one for one in outcomes if one.kind == kind]
        counts = Counter(stage.split(" ")[-1] for one in own for stage in one.stages)
        failed = sum(bool(one.failures) for one in own)
        ends = {"kills": sum(counts.values()), "trials": len(own), "resumed": len(own) - failed, "failed": failed}
        total.update({**counts, **ends})
        cells = [str(counts[name]).rjust(len(name)) for name in stages]
        print(kind.ljust(width) + "  ".join([*cells, *(str(value).rjust(len(name)) for name, value in ends.items())]))
    names = [*stages, "kills", "trials", "resumed", "failed"]
    print("all".ljust(width) + "  ".join(str(total[name]).rjust(len(name)) for name in names))


def main() -> int:
    """Run the trials that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worlds", default="plain,graphene,bucket")
    parser.add_argument("--kinds", default=",".join(KINDS), help="as the table names them, with commas between")
    parser.add_argument("--only", type=int, help="number of the one trial to repeat")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    started, outcomes, number, kills = time.monotonic(), list[Outcome](), 0, 0
    names = options.worlds.split(",")
    kinds = [kind for kind in KINDS if kind in options.kinds]
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder, open_worlds(Path(folder), names) as found:
        while kills < options.kills and (options.only is None or number <= options.only):
            rng = random.Random(f"{options.seed} {number}")
            # Kinds in turn, and worlds by weight: what is quick and has most code below it comes more often.
            kind = kinds[number % len(kinds)]
            name = rng.choice([name for name in names for _ in range({"plain": 5, "graphene": 3, "bucket": 1}[name])])
            if options.only in (None, number):
                machine = Machine(Path(folder) / f"machine-{number}")
                outcome = run_trial(found[name], kind, machine, rng)
                for path in Path(folder).glob(f"machine-{number}*"):
                    shutil.rmtree(path, ignore_errors=True)
                outcomes.append(outcome)
                kills += len(outcome.stages)
                if outcome.failures or options.verbose:
                    print(f"trial {number} (--seed {options.seed} --only {number}), {kind}, {name}, at "
                          f"{outcome.stages}: {outcome.failures or 'well'} {dict(outcome.lost)}", flush=True)
                if outcome.failures:
                    print(outcome.said, flush=True)
            number += 1
    print_table(outcomes)
    failed = sum(bool(one.failures) for one in outcomes)
    lost = sum((one.lost for one in outcomes), Counter())
    print(f"{kills} kills in {len(outcomes)} trials ({dict(Counter(one.world for one in outcomes))}), {failed} failed, "
          f"{time.monotonic() - started:.0f} s; longest life of an orphan "
          f"{max((one.orphan_seconds for one in outcomes), default=0.0):.2f} s; lost with the power: {dict(lost)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
