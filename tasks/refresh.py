"""A finished result brought to a later time, as tasks; one of them dated, for Luigi's RangeDaily."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import luigi
from luigi.task import MixinNaiveBulkComplete

from tasks.base import DEFAULT_GRAPHENE_BATCH_SIZE, DEFAULT_GRAPHENE_CONCURRENCY, OutputPathParameter
from voxelprobe.errors import InputError, VoxelProbeError
from voxelprobe.processes import die_with_parent
from voxelprobe.transport.silence import READ_TIMEOUT_SECONDS, set_read_timeout

logger = logging.getLogger("voxelprobe")
_MAIN_PROCESS = os.getpid()


class RefreshRoots(luigi.Task):
    """Give a finished graphene result the roots of a later time, and list what changed."""

    table = luigi.Parameter(default="", description="Finished result of SamplePoints on a graphene volume: .parquet, "
                            ".feather or .arrow; a local path or a cloud URL.")
    timestamp = luigi.Parameter(default="", description="The time of the new roots: ISO 8601 with a zone, or unix "
                                "seconds.")
    output = OutputPathParameter(  # type: ignore[assignment]  # see OutputPath
        default="", description="The new result table."
    )
    changes = luigi.Parameter(default="", description="Table of the points whose root changed: row, point (the "
                              "prefix), supervoxel, both roots, both times. Default: OUTPUT-changes.parquet.")
    workspace = luigi.Parameter(default="./workspace", description="Folder for markers and downloads; a local path or "
                                "a bucket.")
    graphene_batch_size = luigi.IntParameter(default=DEFAULT_GRAPHENE_BATCH_SIZE, significant=False,
                                             description="Ids a request.")
    graphene_concurrency = luigi.IntParameter(default=DEFAULT_GRAPHENE_CONCURRENCY, significant=False,
                                              description="Requests to the graph server at once.")
    read_timeout = luigi.IntParameter(default=READ_TIMEOUT_SECONDS, significant=False,
                                      description="Seconds after which a silent connection is given up and tried "
                                      "again; for graph servers ten times as many.")
    resources = {"graphene": 1}  # noqa: RUF012 (how Luigi declares it)

    def plan(self) -> Any:
        """Return what is refreshed into what (`voxelprobe.run.refreshing.Refresh`)."""
        from voxelprobe.run.refreshing import plan_refresh

        for name in ("table", "timestamp", "output"):
            if not getattr(self, name):
                raise InputError(f"--{name} is missing; see luigi --module pipeline RefreshRoots --help")
        set_read_timeout(self.read_timeout)
        return plan_refresh(self.table, self.timestamp, str(self.output), self.changes, self.workspace,
                            now=time.time())

    def complete(self) -> bool:
        """Return whether both tables are there, made from this table for this time."""
        try:
            return bool(self.plan().is_done())
        except VoxelProbeError:
            return False

    def run(self) -> None:
        """Refresh."""
        if os.getpid() != _MAIN_PROCESS:
            die_with_parent(_MAIN_PROCESS)
        plan = self.plan()
        plan.execute(batch_size=self.graphene_batch_size, concurrency=self.graphene_concurrency)


class RefreshRootsOfDay(MixinNaiveBulkComplete, luigi.Task):
    """The roots of midnight UTC at which a day begins, for `RangeDaily --of RefreshRootsOfDay`."""

    # With the mixin RangeDaily asks complete(); without it, it would guess from the names of outputs.

    date = luigi.DateParameter(description="The day whose first moment, in UTC, is the time of the roots.")
    table = luigi.Parameter(default="", description="Finished result of SamplePoints on a graphene volume.")
    folder = luigi.Parameter(default="", description="Folder for the days' tables: DATE.parquet and "
                             "DATE-changes.parquet.")
    workspace = luigi.Parameter(default="./workspace", description="Folder for markers and downloads.")

    def requires(self) -> list[RefreshRoots]:
        """Need the day's table."""
        if not self.folder:
            return []  # said by run(): what is raised here comes with Luigi's traceback
        return [RefreshRoots(
            table=self.table, timestamp=f"{self.date:%Y-%m-%d}T00:00:00Z", workspace=self.workspace,
            output=f"{self.folder.rstrip('/')}/{self.date:%Y-%m-%d}.parquet",
        )]

    def complete(self) -> bool:
        """Return whether the day's tables are there."""
        return bool(self.folder) and all(task.complete() for task in self.requires())

    def run(self) -> None:
        """Say what is missing; the work is that of the day's table."""
        if not self.folder:
            raise InputError("--folder is missing; see luigi --module pipeline RefreshRootsOfDay --help")
