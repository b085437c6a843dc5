"""What all tasks share: the command's parameters, the run they name, and completeness by its markers."""

from __future__ import annotations

import functools
import os
import secrets
from typing import Any

import luigi

from voxelprobe.errors import InputError, VoxelProbeError
from voxelprobe.processes import die_with_parent

EXECUTION_VARIABLE = "VOXELPROBE_EXECUTION"
# One word for all processes that one command starts: corrupt chunks are tried once an execution.
os.environ.setdefault(EXECUTION_VARIABLE, secrets.token_hex(6))
_MAIN_PROCESS = os.getpid()

DEFAULT_CACHE_BYTES = 20 << 30
DEFAULT_FETCH_THREADS = 32


def _text(default: str, name: str, description: str, *, significant: bool = True) -> Any:
    # One section of the configuration serves every task, so that a part of a run needs no section of its own.
    return luigi.Parameter(default=default, description=description, significant=significant,
                           config_path={"section": "SamplePoints", "name": name})


def _number(default: int, name: str, description: str) -> Any:
    return luigi.IntParameter(default=default, description=description, significant=False,
                              config_path={"section": "SamplePoints", "name": name})


class RunTask(luigi.Task):
    """A stage of the run that the parameters name."""

    volume = _text("", "volume", "Volume to read: gs://…, s3://…, https://…, file://…, mem://…, with or without "
                   "precomputed:// in front.")
    points = _text("", "points", "Points table: .parquet (a file or folder), .csv, .csv.gz, .feather, .arrow or .npy "
                   "(n, 3); a local path or a cloud URL.")
    workspace = _text("./workspace", "workspace", "Folder for the state, results and reports of runs; a local path or "
                      "a bucket.")
    mip = _text("0", "mip", "Scale to read: its index, or its resolution in nm as in 8,8,40.")
    coord_resolution = _text("", "coord_resolution", "Unit of the points: voxel size in nm as in 4,4,40 (fractions "
                             "allowed), or nm. Default: voxels of mip 0.")
    point_columns = _text("x,y,z", "point_columns", "Columns with the points: three names, or one or more prefixes as "
                          "in pre_pt,post_pt, each a list or struct column PREFIX_position (or PREFIX) or three "
                          "columns PREFIX_position_x/_y/_z (or PREFIX_x/_y/_z).")
    missing_chunks = _text("null", "missing_chunks", "What a chunk that the store lacks means: null (its points get "
                           "no label and the status missing_chunk) or error.")
    cache = _text("", "cache", "Local folder of the chunk cache, shared by runs. Default: cache in the workspace.",
                  significant=False)
    cache_bytes = _number(DEFAULT_CACHE_BYTES, "cache_bytes", "Budget of the chunk cache in bytes; the least recently "
                          "used files go first.")
    fetch_threads = _number(DEFAULT_FETCH_THREADS, "fetch_threads", "Requests under way at once, a worker process.")

    @property
    def engine_run(self) -> Any:
        """Return the run (`voxelprobe.run.spec.Run`) that the parameters name; opened once a process."""
        outcome = _open_once(self.volume, self.points, self.workspace, self.mip, self.coord_resolution,
                             self.point_columns, self.missing_chunks)
        if isinstance(outcome, VoxelProbeError):
            raise outcome
        return outcome

    def chunk_cache(self) -> Any:
        """Return the volume's part of the chunk cache."""
        return self.engine_run.cache(self.cache, self.cache_bytes)

    def board(self) -> Any:
        """Return the progress board, reporting to Luigi too."""
        from voxelprobe.run.progress import ProgressBoard

        def report(message: str, percent: int) -> None:
            # These are there only inside run().
            if self.set_status_message is not None and self.set_progress_percentage is not None:
                self.set_status_message(message)
                self.set_progress_percentage(percent)

        return ProgressBoard(self.engine_run.folder.local, self.execution, report)

    @property
    def execution(self) -> str:
        """Return the word for this execution of the command."""
        return os.environ[EXECUTION_VARIABLE]

    def complete(self) -> bool:
        """Return whether the stage's marker is there and whole. Errors are for `run()` to raise."""
        try:
            return self.is_done()
        except VoxelProbeError:
            return False

    def is_done(self) -> bool:
        """Return whether the stage's marker is there and whole."""
        raise NotImplementedError

    def run(self) -> Any:
        """Do the stage's work, ending with the parent whatever ends it."""
        if os.getpid() != _MAIN_PROCESS:
            die_with_parent()
        return self.work()

    def work(self) -> Any:
        """Do the stage's work."""
        raise NotImplementedError


class OutputTask(RunTask):
    """A stage that leaves the result table."""

    output = _text("", "output", "Result table: .parquet, .csv, .csv.gz, .feather or .arrow; a local path or a cloud "
                   "URL. Default: result.parquet in the run's folder.")


class GroupTask(RunTask):
    """A stage of one chunk group."""

    group = luigi.IntParameter(description="Number of the chunk group, from 0.")

    def check_group(self) -> None:
        """Raise if the plan has no such group."""
        from voxelprobe.run.plan import read_plan

        plan = read_plan(self.engine_run)
        if plan is not None and not 0 <= self.group < plan.facts["groups"]:
            raise InputError(f"group {self.group}: the plan has {plan.facts['groups']} groups, numbered from 0")


@functools.lru_cache(maxsize=16)
def _open_once(
    volume: str, points: str, workspace: str, mip: str, coord_resolution: str, point_columns: str, missing_chunks: str
) -> Any:
    """Return the run, or the error that opening it ended with: asking again would not change it."""
    from voxelprobe.run.spec import RunSettings, open_run

    try:
        for name, value in (("volume", volume), ("points", points)):
            if not value:
                raise InputError(f"--{name} is missing; see luigi --module pipeline SamplePoints --help")
        return open_run(RunSettings(volume, points, workspace, mip, coord_resolution or None, point_columns,
                                    missing_chunks))
    except VoxelProbeError as error:
        return error
