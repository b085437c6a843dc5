"""The plan stage as a task."""

from __future__ import annotations

from tasks.base import RunTask


class PlanChunkGroups(RunTask):
    """Cut the points into chunk groups."""

    priority = 30

    def is_done(self) -> bool:
        """Return whether there is a whole plan."""
        from voxelprobe.run.plan import read_plan

        return read_plan(self.engine_run) is not None

    def work(self) -> None:
        """Write the plan."""
        from voxelprobe.run.plan import plan_run

        plan_run(self.engine_run, self.board())
