"""What all tasks share: the command's parameters, the run they name, and completeness by its markers."""

from __future__ import annotations

import functools
import os
import secrets
import signal
from abc import abstractmethod
from typing import Any

import luigi

from tasks.failures import remember_run
from tasks.patience import within_patience
from voxelprobe.errors import InputError, VoxelProbeError
from voxelprobe.processes import die_with_parent
from voxelprobe.transport.silence import READ_TIMEOUT_SECONDS, set_read_timeout

EXECUTION_VARIABLE = "VOXELPROBE_EXECUTION"
# One word for all processes that one command starts: corrupt chunks are tried once an execution.
_EXECUTION = os.environ.setdefault(EXECUTION_VARIABLE, secrets.token_hex(6))
_MAIN_PROCESS = os.getpid()

DEFAULT_CACHE_BYTES = 20 << 30
DEFAULT_FETCH_THREADS = 64
DEFAULT_AUDIT = "1000"
# Measured by benchmarks/graphene.py: within 5 % of the best over a network, and below 1 MB a request.
DEFAULT_GRAPHENE_BATCH_SIZE = 50_000
DEFAULT_GRAPHENE_CONCURRENCY = 2


class RunTask(luigi.Task):
    """A stage of the run that the parameters name."""

    volume = luigi.Parameter(
        default="",
        description="Volume to read: gs://…, s3://…, https://…, file://… or mem://…, with or without precomputed:// "
        "in front, or with zarr://, zarr2://, zarr3:// or n5://; or "
        "graphene://https://HOST/segmentation/table/NAME. Required.",
    )
    points = luigi.Parameter(
        default="",
        description="Points table: .parquet (a file or folder), .csv, .csv.gz, .feather, .arrow or .npy (n, 3); a "
        "local path or a cloud URL. Required.",
    )
    workspace = luigi.Parameter(
        default="./workspace",
        description="Folder for the state, results and reports of runs; a local path or a bucket.",
    )
    mip = luigi.Parameter(
        default="0", description="Scale to read: its index, or its resolution in nm as in 8,8,40."
    )
    coord_resolution = luigi.Parameter(
        default="",
        description="Unit of the points: voxel size in nm as in 4,4,40 (fractions allowed), or nm. Default: voxels of "
        "mip 0.",
    )
    point_columns = luigi.Parameter(
        default="x,y,z",
        description="Columns with the points: three names, or one or more prefixes as in pre_pt,post_pt, each a list "
        "or struct column PREFIX_position (or PREFIX) or three columns PREFIX_position_x/_y/_z (or PREFIX_x/_y/_z).",
    )
    missing_chunks = luigi.Parameter(
        default="null",
        description="What a chunk that the store lacks means: null (its points get no label and the status "
        "missing_chunk) or error.",
    )
    cache = luigi.Parameter(
        default="",
        significant=False,
        description="Local folder of the chunk cache, shared by runs. Default: cache in the workspace.",
    )
    cache_bytes = luigi.IntParameter(
        default=DEFAULT_CACHE_BYTES,
        significant=False,
        description="Budget of the chunk cache in bytes; the least recently used files go first.",
    )
    fetch_threads = luigi.IntParameter(
        default=DEFAULT_FETCH_THREADS,
        significant=False,
        description="Requests under way at once, a worker process.",
    )
    read_timeout = luigi.IntParameter(
        default=READ_TIMEOUT_SECONDS,
        significant=False,
        description="Seconds after which a silent connection is given up and tried again; for graph servers ten times "
        "as many.",
    )

    @property
    def engine_run(self) -> Any:
        """Return the run (`voxelprobe.run.spec.Run`) that the parameters name; opened once a process."""
        set_read_timeout(self.read_timeout)
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
        return _EXECUTION

    def complete(self) -> bool:
        """Return whether the stage's marker is there and whole. Errors are for `run()` to raise."""
        try:
            with within_patience(self.read_timeout, is_work=False):
                done = self.is_done()
        except VoxelProbeError:
            done = False
        if not done:
            _load_engine()
        return done

    @abstractmethod
    def is_done(self) -> bool:
        """Return whether the stage's marker is there and whole."""

    def run(self) -> Any:
        """Do the stage's work, ending with the parent whatever ends it."""
        if os.getpid() != _MAIN_PROCESS:
            # Ctrl-C is the parent's to handle: it ends its workers.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            die_with_parent(_MAIN_PROCESS)
        with within_patience(self.read_timeout, is_work=True):
            return self.work()

    @abstractmethod
    def work(self) -> Any:
        """Do the stage's work."""


class OutputPath(str):
    """The place of the result: a text that Luigi may call, since its tasks have a method `output`."""

    __slots__ = ()

    def __call__(self) -> list[luigi.Target]:
        """Return no targets: completeness is a matter of markers."""
        return []


class OutputPathParameter(luigi.Parameter):
    """A parameter named like the method that it hides."""

    def normalize(self, x: str) -> OutputPath:
        """Return the place, callable."""
        return OutputPath(x)


class AuditedTask(RunTask):
    """A stage that knows how much is read again to be sure."""

    audit = luigi.Parameter(
        default=DEFAULT_AUDIT,
        significant=False,
        description="Points to read again from the store in another way and compare before the table is published: "
        "so many, in at most one chunk for 16 of them and at most a twentieth of the run's chunks; all; or 0 for none.",
    )

    def audit_extent(self) -> Any:
        """Return how much is audited (`voxelprobe.run.audit_sample.AuditExtent`)."""
        from voxelprobe.run.audit_sample import parse_audit

        return parse_audit(self.audit)


class RootsTask(RunTask):
    """A stage that depends on the roots that are asked for. Without a graph these parameters mean nothing."""

    timestamp = luigi.Parameter(
        default="now",
        description="Graphene: the time of the roots; ISO 8601 with a zone, unix seconds, or now (the time at which "
        "this run was first started).",
    )
    stop_layer = luigi.Parameter(
        default="", description="Graphene: resolve to this layer of the graph. Default: the roots."
    )
    agglomerate = luigi.BoolParameter(
        default=True, parsing=luigi.BoolParameter.EXPLICIT_PARSING, description="Graphene: give the roots too."
    )
    no_agglomerate = luigi.BoolParameter(
        default=False, description="Graphene: give the supervoxels only, and don't ask the graph server for roots."
    )
    graphene_batch_size = luigi.IntParameter(
        default=DEFAULT_GRAPHENE_BATCH_SIZE,
        significant=False,
        description="Graphene: supervoxels a request.",
    )
    graphene_concurrency = luigi.IntParameter(
        default=DEFAULT_GRAPHENE_CONCURRENCY,
        significant=False,
        description="Graphene: requests to the graph server at once.",
    )

    @property
    def has_roots(self) -> bool:
        """Return whether the run has a resolve stage."""
        wanted = self.agglomerate and not self.no_agglomerate
        return wanted and self.engine_run.volume.graph is not None

    def roots_at(self) -> Any:
        """Return which roots the result has (`voxelprobe.run.roots.RootsAt`), or None."""
        from voxelprobe.run.roots import pin_roots

        if not self.has_roots:
            if self.stop_layer:
                raise InputError(f"stop-layer {self.stop_layer}: expected a graphene:// volume, found {self.volume}")
            return None
        if self.stop_layer and not self.stop_layer.isdecimal():
            raise InputError(f"stop-layer {self.stop_layer!r}: expected the number of a layer")
        return pin_roots(self.engine_run, self.timestamp, int(self.stop_layer) if self.stop_layer else None)


class OutputTask(RootsTask, AuditedTask):
    """A stage that leaves the result table."""

    output = OutputPathParameter(  # type: ignore[assignment]  # see OutputPath
        default="",
        description="Result table: .parquet, .csv, .csv.gz, .feather or .arrow; a local path or a cloud URL. Default: "
        "result.parquet in the run's folder.",
    )

    csv_safe = luigi.BoolParameter(
        default=False,
        description="CSV results: put an apostrophe before texts and column names that a spreadsheet would take for "
        "formulas (that begin with = + - @, a tab or a line end). Numbers stay numbers.",
    )

    def result(self) -> Any:
        """Return the result table (`voxelprobe.run.result.Result`)."""
        from voxelprobe.run.result import open_result

        return open_result(self.engine_run, self.output, self.roots_at(), csv_safe=self.csv_safe)


class GroupTask(RunTask):
    """A stage of one chunk group."""

    group = luigi.IntParameter(description="Number of the chunk group, from 0.")

    def check_group(self) -> None:
        """Raise if the plan has no such group."""
        from voxelprobe.run.plan import read_plan

        plan = read_plan(self.engine_run)
        if plan is not None and not 0 <= self.group < plan.facts["groups"]:
            raise InputError(f"group {self.group}: the plan has {plan.facts['groups']} groups, numbered from 0")


@functools.cache
def _load_engine() -> None:
    """Import what the stages use, once there is a stage to do: workers are forked a task, and would each import it."""
    import deflate  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sqlitedict  # noqa: F401


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
        run = open_run(RunSettings(volume, points, workspace, mip, coord_resolution or None, point_columns,
                                   missing_chunks))
    except VoxelProbeError as error:
        return error
    remember_run(run, _EXECUTION)
    return run
