"""The audit stage as a task."""

from __future__ import annotations

from tasks.base import AuditedTask
from tasks.plan import PlanChunkGroups


class AuditPoints(AuditedTask):
    """Read some points again, straight from the store and by other code, for the table to be held against."""

    # After the groups' own work, which is what is waited for.
    priority = 5

    def requires(self) -> PlanChunkGroups:
        """Need the plan; nothing that was read."""
        return self.clone(PlanChunkGroups)

    def is_done(self) -> bool:
        """Return whether the points were read, or none are to be."""
        from voxelprobe.run.audit import read_audited

        extent = self.audit_extent()
        return extent.points == 0 or read_audited(self.engine_run, extent) is not None

    def work(self) -> None:
        """Read them."""
        from voxelprobe.run.audit import audit_run

        audit_run(self.engine_run, self.audit_extent(), threads=self.fetch_threads)
