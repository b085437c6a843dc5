"""Runs against servers that fail: `python -m reliability.faults --seed 1`.

Each case gives one server a fault in a share of its answers, and repeats the command until it ends well. A case fails
if a command hangs or shows a traceback, if a table has a value that isn't the truth (or null with `corrupt_chunk`), if
the last table isn't byte-identical to an undisturbed run's, or if that takes more than 40 commands.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reliability import worlds
from reliability.commands import Machine
from reliability.serve import MortalStore, mortal_store
from reliability.tables import format_columns
from reliability.worlds import World
from voxelprobe.testing.faults import Fault
from voxelprobe.testing.store_gate import Verdict

RATES = (0.01, 0.1, 0.5)
MOST_COMMANDS = 40
# A graph server's failures are waited for, up to 30 s each, ten in a row.
PATIENCE_SECONDS = 600.0
# 480 chunks: enough for one in a hundred.
SMALL = (8, 8, 8)
STALL = Fault("stall", seconds=600)
OF_STORE: dict[str, Fault] = {
    "503": Fault("status", status=503),
    "429": Fault("status", status=429),
    "429, Retry-After: 1": Fault("status", status=429, retry_after=1),
    "connection reset": Fault("reset"),
    "stalled, silent": STALL,
    "short body": Fault("short_body"),
    "Content-Length too small": Fault("wrong_length"),
    "half of the object": Fault("truncated"),
    "corrupted, right length": Fault("flipped"),
}
OF_GATE: dict[str, Verdict] = {"503 SlowDown": "throttle", "connection reset": "reset", "stalled, silent": "stall",
                               "short body": "short", "corrupted, right length": "flip"}


@dataclass
class Case:
    """What a server and a fault came to."""

    server: str
    fault: str
    rate: float
    commands: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    met: int = 0
    exact: bool = False
    problems: list[str] = field(default_factory=list)
    said: str = ""


class Shares:
    """Says of each question whether it is one of the unlucky ones, from several threads."""

    def __init__(self, rate: float, rng: random.Random) -> None:
        self._rate, self._rng, self._lock = rate, rng, threading.Lock()
        self.met = 0

    def __call__(self) -> bool:
        """Return whether this one fails."""
        with self._lock:
            unlucky = self._rng.random() < self._rate
            self.met += unlucky
            return unlucky


def run_case(world: World, case: Case, machine: Machine, shares: Shares | None = None, *,
             parameters: Mapping[str, Any] | None = None) -> Case:
    """Repeat the command until it ends well; note what it took."""
    wanted = world.of_machine(machine) | {"read_timeout": 1, "fetch_threads": 64} | dict(parameters or {})
    started = time.monotonic()
    while case.commands < MOST_COMMANDS:
        case.commands += 1
        ended = machine.start(wanted).wait(PATIENCE_SECONDS)
        case.said += f"--- {ended.code} after {ended.seconds:.1f} s\n{ended.said}"
        case.longest = max(case.longest, ended.seconds)
        if ended.code is None:
            case.problems.append("hung")
            break
        if "Traceback" in ended.said:
            case.problems.append("a traceback was shown")
        content = world.result(machine)
        if content is not None and not is_honest(world, content):
            case.problems.append("a table has WRONG values")
        if ended.code == 0:
            case.exact = content == world.table
            if not case.exact:
                case.problems.append("the table's bytes differ")
            break
        if "127.0.0.1" not in ended.said:
            case.problems.append("an error that doesn't name the server")
    else:
        case.problems.append(f"not done after {MOST_COMMANDS} commands")
    case.seconds, case.met = time.monotonic() - started, shares.met if shares else case.met
    return case


def is_honest(world: World, content: bytes) -> bool:
    """Return whether each value of a table is the truth, or null for a chunk that is said to be corrupt."""
    table = pq.read_table(pa.BufferReader(content))
    corrupt = [status == "corrupt_chunk" for status in table["status"].to_pylist()]
    return all(found == true or (found is None and bad)
               for name, truth in world.truth.items()
               for found, true, bad in zip(table[name].to_pylist(), truth, corrupt, strict=True))


def of_store(world: World, name: str, rate: float, rng: random.Random) -> Shares:
    """Have the store fail in a share of its answers."""
    shares = Shares(rate, rng)
    assert world.store is not None
    world.store.fault_for = lambda request: OF_STORE[name] if shares() else None
    return shares


def of_graph(world: World, name: str, rate: float, rng: random.Random) -> Shares:
    """Have the graph server fail in a share of its answers for roots."""
    shares = Shares(rate, rng)
    assert world.graph is not None
    world.graph.fault_for = lambda call: OF_STORE[name] if "roots" in call.path and shares() else None
    return shares


def of_gate(world: World, name: str, rate: float, rng: random.Random) -> Shares:
    """Have the bucket's store fail in a share of its answers to GETs of the volume."""
    shares = Shares(rate, rng)
    assert world.gate is not None
    world.gate.judge = lambda request: (
        OF_GATE[name] if request.method == "GET" and "/seg/" in request.path and shares() else "pass")
    return shares


Inject = Callable[[World, str, float, random.Random], Shares]


def shares_of_faults(folder: Path, server: str, rates: tuple[float, ...], seed: int, only: str) -> Iterator[Case]:
    """Yield the cases of one server."""
    inject: Inject
    with contextlib.ExitStack() as stack:
        if server in ("HTTP, gzip", "HTTP, raw, Content-MD5", "HTTP, raw"):
            inject, names = of_store, list(OF_STORE)
            compress = "gzip" if server == "HTTP, gzip" else None
            world = stack.enter_context(worlds.plain_world(folder / "world", compress=compress, chunk=SMALL))
            assert world.store is not None
            world.store.checksums = "MD5" in server
            if server != "HTTP, gzip":
                names = names[-2:]  # the others are the same without gzip
        elif server == "graph server":
            world = stack.enter_context(worlds.graphene_world(folder / "world", points=1500, batch=10))
            inject, names = of_graph, list(OF_STORE)
        else:
            world = stack.enter_context(worlds.bucket_world(folder / "world", sharded=False, chunk=SMALL))
            inject, names = of_gate, list(OF_GATE)
        whole = Machine(folder / "whole")
        world.sample(whole)
        whole.close()
        for name in names:
            for rate in rates if only in name else ():
                if inject is of_graph and name == "stalled, silent" and rate == 0.5:
                    continue  # ten seconds each, for ever smaller requests: a quarter of an hour, and nothing new
                world.clear()
                machine = Machine(folder / f"machine-{name}-{rate}")
                shares = inject(world, name, rate, random.Random(f"{seed} {server} {name} {rate}"))
                # What is silent for a graph server is silent for ten times as long.
                # The state is on a disk: of a bucket, reading is at issue here.
                parameters = {"workspace": machine.workspace, "graphene_concurrency": 8}
                yield run_case(_on_disk(world), Case(server, name, rate), machine, shares, parameters=parameters)
                machine.close()
        world.clear()


def _on_disk(world: World) -> World:
    """Return the world with its results looked for on the machine's disk."""
    return world if world.gate is None else dataclasses.replace(world, gate=None)


def deaths(folder: Path, seconds_away: tuple[float, ...], seed: int) -> Iterator[Case]:
    """Yield the cases of a store that dies in the middle of a run and is back after some seconds, or never."""
    with worlds.plain_world(folder / "world") as world, \
            mortal_store(folder / "world/seg", latency_seconds=0.1) as store:
        whole = Machine(folder / "whole")
        world.sample(whole)
        whole.close()
        world.parameters = world.parameters | {"volume": store.url}
        # The table's metadata has the address: this world's own undisturbed run.
        whole = Machine(folder / "whole-mortal")
        world.sample(whole)
        whole.close()
        for seconds in seconds_away:
            rng = random.Random(f"{seed} {seconds}")
            machine = Machine(folder / f"machine-{seconds}")
            name = f"dies, back after {seconds:.0f} s" if seconds else "dies, not back"
            yield _run_death(world, store, Case("HTTP, own process", name, 1.0), machine, seconds, rng)
            machine.close()


def _run_death(world: World, store: MortalStore, case: Case, machine: Machine, seconds: float,
               rng: random.Random) -> Case:
    done, dead = threading.Event(), threading.Event()

    def end_and_return() -> None:
        while not done.is_set() and (machine.run_folder is None or
                                     not (machine.run_folder / "plan/manifest.json").exists()):
            time.sleep(0.01)
        done.wait(rng.uniform(0.0, 0.5))
        store.kill()
        dead.set()
        if not done.wait(seconds or 3600.0) or seconds:
            store.start()

    thread = threading.Thread(target=end_and_return)
    thread.start()
    try:
        parameters = {"fetch_threads": 4}
        if not seconds:
            ended = machine.run(world.of_machine(machine) | parameters)
            case.said, case.commands, case.longest = ended.said, 1, ended.seconds
            if ended.code in (0, None) or store.url not in ended.said or "Traceback" in ended.said:
                case.problems.append(f"no clear error, but {ended.code}")
            done.set()
            thread.join()
            store.start()
        case = run_case(world, case, machine, parameters=parameters)
    finally:
        done.set()
        thread.join()
    case.met = int(dead.is_set())
    return case


SERVERS = ("HTTP, gzip", "HTTP, raw, Content-MD5", "HTTP, raw", "S3", "graph server", "deaths")
# Nobody can tell these from the truth: without gzip and without a checksum only the length is known.
UNDETECTABLE = ("HTTP, raw", "corrupted, right length")


def print_table(cases: list[Case]) -> None:
    """Print a line a case."""
    rows: list[list[object]] = [["server", "fault", "rate", "met", "commands", "longest s", "seconds", "table"]]
    for one in cases:
        table = "exact" if one.exact else "NOT exact"
        if (one.server, one.fault) == UNDETECTABLE:
            table += " (can't be found)"
        rows.append([one.server, one.fault, f"{one.rate:.0%}", one.met, one.commands, f"{one.longest:.1f}",
                     f"{one.seconds:.0f}", table])
    print(format_columns(rows))


def main() -> int:
    """Run the cases that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", default="", help=f"part of a name of: {'; '.join(SERVERS)}")
    parser.add_argument("--fault", default="", help="part of a fault's name")
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    options = parser.parse_args()
    rates = tuple(float(rate) for rate in options.rates.split(","))
    started, cases = time.monotonic(), list[Case]()
    with tempfile.TemporaryDirectory(prefix="reliability-") as name:
        for number, server in enumerate(one for one in SERVERS if options.server in one):
            folder = Path(name) / str(number)
            found = (deaths(folder, (5.0, 10.0, 20.0, 0.0), options.seed) if server == "deaths"
                     else shares_of_faults(folder, server, rates, options.seed, options.fault))
            for case in found:
                cases.append(case)
                print(f"{case.server}: {case.fault}, {case.rate:.0%}: {case.commands} commands, {case.seconds:.0f} s, "
                      f"{case.problems or 'well'}", flush=True)
                if case.problems and (case.server, case.fault) != UNDETECTABLE:
                    print(case.said, flush=True)
    print_table(cases)
    failed = [one for one in cases if one.problems and (one.server, one.fault) != UNDETECTABLE]
    print(f"{len(cases)} cases, {sum(one.met for one in cases):,} faults met, {sum(one.commands for one in cases)} "
          f"commands, {len(failed)} failed, {time.monotonic() - started:.0f} s")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
