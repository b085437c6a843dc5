"""Measure voxelprobe against other readers: `python -m benchmarks.run`, from the checkout.

Each run is a whole process, `luigi --module pipeline SamplePoints` with two workers and a fresh workspace, or a peer
that reads the same Parquet table and writes one with labels. Participants take turns, and a ratio is of the medians of
one invocation: times of different invocations, or machines, are not to be compared. Every label of every table is held
against the segmentation that the volume was made of, and against the peer's: a wrong one ends the run with status 1.
CloudVolume is given a subsample, and its rate without start-up stands against ours with it.

What was aimed at is printed beside what was found. Peers that are not installed, or fail, are said to.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import sys
from pathlib import Path

from benchmarks.answers import MismatchError, check_table, compare_tables, count_least
from benchmarks.cases import CASES, CLOUDVOLUME, COLD, FIRST_SEED, OTHER_SEED, OURS, TENSORSTORE, Case
from benchmarks.measure import Cost, run_measured
from benchmarks.results import (
    CaseResult,
    Measured,
    format_costs,
    format_exactness,
    format_goals,
    format_stages,
    to_json,
)
from benchmarks.store import ROOT, Served, serve
from benchmarks.tables import count_rows
from benchmarks.volumes import Source

WORKERS = 2
# Settings of the person at the keyboard that would change what is measured.
_OWN_SETTINGS = ("LUIGI_CONFIG_PATH", "LUIGI_CONFIG_PARSER", "VOXELPROBE_EXECUTION", "http_proxy", "HTTP_PROXY",
                 "all_proxy", "ALL_PROXY")
_MODULES = {TENSORSTORE: "tensorstore", CLOUDVOLUME: "cloudvolume"}


class OursFailedError(Exception):
    """Our own command did not end with 0."""


class Bench:
    """Runs cases in a scratch folder of their own, against one store."""

    def __init__(self, source: Source, store: Served, folder: Path) -> None:
        self._source, self._store, self._folder = source, store, folder
        self._environment = {name: value for name, value in os.environ.items() if name not in _OWN_SETTINGS}
        self._environment["PYTHONPATH"] = str(ROOT)

    def run(self, case: Case, repeats: int, peers: set[str]) -> CaseResult:
        """Return the runs of a case, all labels compared."""
        volume = self._source.make(case.volume)
        points = case.table(self._source, seed=OTHER_SEED if case.warm else FIRST_SEED)
        least = count_least(self._source, case.volume, points)
        result = CaseResult(case, least, least.stored_bytes + (volume / "info").stat().st_size,
                            {OURS: Measured(count_rows(points))})
        if case.warm:
            result.participants[COLD] = Measured(count_rows(case.table(self._source)))
        if case.tensorstore and TENSORSTORE in peers:
            result.participants[TENSORSTORE] = Measured(count_rows(points))
        if case.cloudvolume and CLOUDVOLUME in peers:
            result.participants[CLOUDVOLUME] = Measured(count_rows(case.subsample(self._source)))
        order = [name for name in result.participants if name != COLD]
        try:
            for repeat in range(repeats):
                # In turns, and from either end: what the machine does besides meets everybody.
                for name in order if repeat % 2 == 0 else reversed(order):
                    self._run_one(case, name, result, points)
                if TENSORSTORE in order and not result.participants[TENSORSTORE].failure:
                    compare_tables(self._output(OURS), self._output(TENSORSTORE))
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return result

    def _run_one(self, case: Case, name: str, result: CaseResult, points: Path) -> None:
        measured = result.participants[name]
        if name == OURS:
            workspace = self._folder / "workspace"
            shutil.rmtree(workspace, ignore_errors=True)
            if case.warm:
                self._sample(case, result.participants[COLD], case.table(self._source), workspace)
            self._sample(case, measured, points, workspace)
            return
        if measured.failure:
            return
        if importlib.util.find_spec(_MODULES[name]) is None:
            measured.failure = "not installed"
            return
        mine = points if name == TENSORSTORE else case.subsample(self._source)
        command = [sys.executable, "-m", "benchmarks.peers", name, "--volume", f"{self._store.url}/{case.volume}",
                   "--points", str(mine), "--output", str(self._output(name)), "--way", case.tensorstore or "vindex"]
        cost = self._measure(command, None)
        if cost.status != 0:
            measured.failure = f"failed ({cost.status}): {(cost.output.strip() or 'no word').splitlines()[-1][:200]}"
            return
        measured.sampling.append(float(re.findall(r"sampled in ([\d.]+) s", cost.output)[-1]))
        self._keep(measured, cost, name, mine)

    def _sample(self, case: Case, measured: Measured, points: Path, workspace: Path) -> None:
        volume = (self._source.make(case.volume).as_uri() if case.local else f"{self._store.url}/{case.volume}")
        command = [str(Path(sys.executable).with_name("luigi")), "--module", "pipeline", "SamplePoints",
                   "--workers", str(WORKERS), "--volume", f"precomputed://{volume}", "--points", str(points),
                   "--output", str(self._output(OURS)), "--workspace", str(workspace),
                   "--audit", "0"]  # the others read each label once (what the audit costs: docs/design/016-audit.md)
        cost = self._measure(command, workspace)
        if cost.status != 0:
            raise OursFailedError(f"{case.name}: status {cost.status}\n{cost.output}")
        self._keep(measured, cost, OURS, points)

    def _measure(self, command: list[str], workspace: Path | None) -> Cost:
        self._folder.mkdir(parents=True, exist_ok=True)
        # What earlier runs left to be written would be written during this one.
        os.sync()
        return run_measured(command, cwd=self._folder, environment=self._environment, server=self._store,
                            workspace=workspace)

    def _keep(self, measured: Measured, cost: Cost, name: str, points: Path) -> None:
        measured.compared += check_table(self._output(name), points, self._source)
        measured.costs.append(cost)
        print(f"  {name}: {measured.points:,} points in {cost.wall:.2f} s", file=sys.stderr, flush=True)

    def _output(self, name: str) -> Path:
        return self._folder / f"{name}.parquet"


def describe_machine(source: Source, latency_ms: float) -> str:
    """Return a line on what the numbers were measured with."""
    versions = []
    for package in ("voxelprobe", "tensorstore", "cloud-volume", "numpy", "pyarrow"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    cores = len(os.sched_getaffinity(0))
    return (f"{cores} cores (load {os.getloadavg()[0]:.1f} at the start), Python {platform.python_version()}, "
            f"{', '.join(versions)}; {source.kind} segmentation, {latency_ms:g} ms a request, {WORKERS} workers")


def choose_cases(names: str | None) -> list[Case]:
    """Return the cases that a command line names, all without."""
    known = {case.name: case for case in CASES}
    chosen = names.split(",") if names else list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise SystemExit(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help=f"of {', '.join(case.name for case in CASES)}; separated by commas")
    parser.add_argument("--scratch", type=Path, default=ROOT / "workspace" / "benchmarks",
                        help="volumes and tables are kept there; several GB, and 15 more while `huge` runs")
    parser.add_argument("--repeat", type=int, help="runs of each participant; each case has its own default")
    parser.add_argument("--peers", default=f"{TENSORSTORE},{CLOUDVOLUME}", help="which; or none")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="leave all numbers there")
    parser.add_argument("--quick", action="store_true", help="tiny: does it run? The numbers say nothing")
    options = parser.parse_args()
    cases = choose_cases(options.cases)
    source = Source(options.scratch.absolute(), quick=options.quick)
    machine = describe_machine(source, options.latency_ms)
    results: list[CaseResult] = []
    failure = "interrupted"
    (source.folder / "volumes").mkdir(parents=True, exist_ok=True)
    # Ended from outside, it ends what it started, and shows what it has.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with serve(source.folder / "volumes", options.latency_ms) as store:
            bench = Bench(source, store, source.folder / f"runs-{os.getpid()}")
            for case in cases:
                print(case.name, file=sys.stderr, flush=True)
                repeats = options.repeat or (1 if options.quick else case.repeats)
                results.append(bench.run(case, repeats, set(options.peers.split(","))))
        failure = ""
    except (MismatchError, OursFailedError) as error:
        failure = f"{type(error).__name__}: {error}"
    finally:
        print(f"{machine}\n\n{format_costs(results)}\n\nSeconds of stages as they passed (summed over groups).\n\n"
              f"{format_stages(results)}\n\n{format_goals(results, quick=options.quick)}\n\n"
              f"Equal to the source, label by label:\n{format_exactness(results)}", flush=True)
        if options.json:
            document = {"machine": machine, "failure": failure, "cases": [to_json(result) for result in results]}
            options.json.write_text(json.dumps(document, indent=1) + "\n")
    if failure:
        print(failure, file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
