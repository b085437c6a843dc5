"""Fuzz parsers: `python -m fuzz.run --parser NAME --executions N`; see the package's docstring.

Each parser is fuzzed in a process of its own, which may have so much memory and so many seconds an execution. A finding
ends it: its input is kept in the folder of `--findings`, and `--input FILE` gives it to the check again. What was run
is a line a parser: executions, how many of them were read and how many refused, seconds. The corpus that libFuzzer
collects is thrown away, unless `--corpus` names a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY_BYTES = 1 << 30
"""Address space that a parser may ask for, beside what the process has when it begins."""

SECONDS_AN_EXECUTION = 20
_NOTE_EVERY = 5_000


def main() -> int:
    """Run the command."""
    options = _parse_options()
    from fuzz.targets import NAMES, load_target

    if options.list:
        print("\n".join(NAMES))
        return 0
    if options.child:
        _fuzz(options.parser, options.executions, Path(options.child), options.corpus, options.seed, options.findings)
    if options.input:
        is_read = load_target(options.parser).check(Path(options.input).read_bytes())
        print("read" if is_read else "refused")
        return 0
    names = list(NAMES) if options.parser == "all" else options.parser.split(",")
    return max([_run_one(name, options) for name in names])


def _parse_options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parser", default="all", help="one of --list, several with commas, or all")
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="at most, a parser; 0 for no bound")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", default="", help="folder to keep what libFuzzer finds interesting")
    parser.add_argument("--findings", default="findings", help="folder for the inputs that ended a run")
    parser.add_argument("--input", default="", help="check this one input")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run_one(name: str, options: Any) -> int:
    """Fuzz one parser in a child, print what came of it, and return its exit status."""
    # In memory, where there is such a place: some targets write a file an execution.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="voxelprobe-fuzz-", dir=place) as folder:
        command = [
            sys.executable, "-m", "fuzz.run", "--parser", name, "--executions", str(options.executions), "--seed",
            str(options.seed), "--corpus", options.corpus, "--findings", options.findings, "--child", folder,
        ]
        started = time.monotonic()
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=os.environ | {"TMPDIR": folder},
        )
        try:
            said, _ = child.communicate(timeout=options.seconds or None)
        except subprocess.TimeoutExpired:
            child.kill()
            said = child.communicate()[0] + "\n(ended by --seconds)"
        seconds = time.monotonic() - started
        notes = Path(folder) / "notes"
        noted = json.loads(notes.read_text()) if notes.exists() else {"executions": 0, "read": 0, "refused": 0}
    found = re.search(r"cov: (\d+) .*\Z", said[said.rfind("cov:") :].split("\n")[0]) if "cov:" in said else None
    is_bounded = "(ended by --seconds)" in said
    print(json.dumps({
        "parser": name, **noted, "seconds": round(seconds, 1), "seed": options.seed,
        "coverage": int(found[1]) if found else None,
        "end": "time" if is_bounded else "done" if child.returncode == 0 else "FINDING",
    }), flush=True)
    if child.returncode != 0 and not is_bounded:
        print(said[-6000:], file=sys.stderr, flush=True)
        return 1
    return 0


def _fuzz(name: str, executions: int, folder: Path, corpus: str, seed: int, findings: str) -> None:
    """Fuzz in this process, and leave it."""
    import atheris

    from fuzz.target import nudge
    from fuzz.targets import load_target, modules_of

    with atheris.instrument_imports(include=list(modules_of(name))):
        target = load_target(name)
    seeds = target.seeds()
    places = [folder / "corpus", folder / "seeds"]
    if corpus:
        places[0] = Path(corpus) / name
    for place in (*places, Path(findings)):
        place.mkdir(parents=True, exist_ok=True)
    for index, content in enumerate(seeds):
        (places[1] / f"{index:03d}").write_bytes(content)
        assert target.check(content) in (True, False)
    counts = [0, 0]

    def note() -> None:
        temporary = folder / "notes.tmp"
        temporary.write_text(json.dumps({"executions": sum(counts), "read": counts[1], "refused": counts[0]}))
        temporary.rename(folder / "notes")

    def execute(data: bytes) -> None:
        try:
            counts[target.check(data)] += 1
        except BaseException:
            note()
            raise
        if sum(counts) % _NOTE_EVERY == 0 or sum(counts) >= executions:
            note()

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            data = nudge(rng.choice(seeds), rng)
        elif rng.random() < 0.6 or target.mutate is None:
            data = atheris.Mutate(data, most)
        if target.mutate is not None:
            data = target.mutate(data, rng)
        return bytes(data[:most])

    arguments = [
        sys.argv[0], f"-runs={executions}", f"-max_len={target.most_bytes}", f"-seed={seed}", "-rss_limit_mb=2048",
        f"-timeout={SECONDS_AN_EXECUTION}", f"-artifact_prefix={findings}/{name}-", "-print_final_stats=1",
        *map(str, places),
    ]
    atheris.Setup(arguments, execute, custom_mutator=mutate)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
