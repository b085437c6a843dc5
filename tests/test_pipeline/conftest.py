"""The command line in a subprocess, in a folder of its own; tables in every format; faults injected from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

# Far more than any command here needs: a machine may be busy, a test may not hang.
PATIENCE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


class CommandLine:
    """`luigi --module pipeline …` in processes of its own, in `folder`, with a workspace in it."""

    # None, since most tests here count requests or chunks; "" leaves it to the command's own default.
    audit = "0"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self.home = folder / "home"
        self._started: list[subprocess.Popen[str]] = []
        for place in (self.home, folder / "temporary", folder / "cwd"):
            place.mkdir(parents=True)

    def command(self, task: str, parameters: dict[str, Any], program: str = "luigi") -> list[str]:
        """Return the words of a command; `fetch_threads=2` is `--fetch-threads 2`, `no_lock=True` is `--no-lock`."""
        words = [str(Path(sys.executable).parent / program), "--module", "pipeline", task]
        audit = {"audit": self.audit} if task in ("SamplePoints", "MergeTable") and self.audit else {}
        for name, value in ({"workspace": self.workspace} | audit | parameters).items():
            words += ["--" + name.replace("_", "-")] + ([] if value is True else [str(value)])
        return words

    def start(self, task: str = "SamplePoints", *, env: dict[str, str] | None = None, cwd: Path | None = None,
              program: str = "luigi", **parameters: Any) -> subprocess.Popen[str]:
        """Return a command under way, the leader of a process group of its own."""
        process = subprocess.Popen(
            self.command(task, parameters, program), cwd=cwd or self.folder / "cwd", text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"HOME": str(self.home), "TMPDIR": str(self.folder / "temporary")} | (env or {}),
        )
        self._started.append(process)
        return process

    def run(self, task: str = "SamplePoints", **parameters: Any) -> Outcome:
        """Return how a command ended."""
        return self.wait(self.start(task, **parameters))

    def wait(self, process: subprocess.Popen[str]) -> Outcome:
        """Return how a command that was started ends."""
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        return Outcome(process.returncode, out, err)

    def kill(self, process: subprocess.Popen[str]) -> Outcome:
        """Return how a command ended whose whole process group was killed with -9."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return self.wait(process)

    @property
    def run_folder(self) -> Path:
        """The folder of the one run in the workspace."""
        (folder,) = (self.workspace / "runs").iterdir()
        return folder

    @property
    def result(self) -> Path:
        """The result table of the one run in the workspace, where no output was named."""
        return self.run_folder / "result.parquet"

    def close(self) -> None:
        """Leave nothing running."""
        for process in self._started:
            self.kill(process)


@pytest.fixture(scope="session")
def new_cli() -> type[CommandLine]:
    return CommandLine


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path / "cli")
    yield line
    line.close()


@pytest.fixture
def other_cli(tmp_path: Path) -> Iterator[CommandLine]:
    """A second workspace, for the run to compare with."""
    line = CommandLine(tmp_path / "other")
    yield line
    line.close()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    def wait(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS, pause: float = 0.001) -> None:
        """Return when `condition()` holds; polled, and bounded."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited {seconds:.0f} s for {what}")
            time.sleep(pause)

    return wait


@pytest.fixture(scope="session")
def write_points() -> Callable[[Path, Any], Path]:
    def write(path: Path, points: Any) -> Path:
        """Return `path`, written in the format of its suffix from a table or from an array (n, 3)."""
        table = points
        if not isinstance(points, pa.Table):
            table = pa.table({axis: np.ascontiguousarray(points[:, i]) for i, axis in enumerate("xyz")})
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        elif path.suffix == ".feather":
            pyarrow.feather.write_feather(table, path)
        elif path.suffix == ".npy":
            np.save(path, np.stack([table[axis].to_numpy() for axis in "xyz"], axis=1))
        else:
            with pa.CompressedOutputStream(str(path), "gzip") if path.suffix == ".gz" else path.open("wb") as sink:
                pyarrow.csv.write_csv(table, sink)
        return path

    return write


@pytest.fixture(scope="session")
def read_table() -> Callable[[Path], pa.Table]:
    def read(path: Path) -> pa.Table:
        """Return a result table, dictionaries as plain text; `id` and `label` of a CSV as uint64."""
        if path.suffix == ".parquet":
            table = pq.ParquetFile(path).read()
        elif path.suffix == ".feather":
            table = pyarrow.feather.read_table(path)
        else:
            wide = pyarrow.csv.ConvertOptions(column_types={"id": pa.uint64(), "label": pa.uint64()})
            table = pyarrow.csv.read_csv(path, convert_options=wide)
        for index, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):
                table = table.set_column(index, field.name, table[field.name].cast(pa.string()))
        return table

    return read


@pytest.fixture
def shim(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    def install(code: str) -> dict[str, str]:
        """Return the environment of a Python that runs `code` before anything else: a machine unlike this one."""
        folder = tmp_path / "shim"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        return {"PYTHONPATH": str(folder)}

    return install
