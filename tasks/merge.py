"""The merge stage as a task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.audit import AuditPoints
from tasks.base import GroupTask, OutputTask, RootsTask, RunTask
from tasks.decode import DecodePoints
from tasks.plan import PlanChunkGroups
from tasks.resolve import ResolveRoots
from voxelprobe.errors import VoxelProbeError


class SampleChunkGroup(GroupTask, RootsTask):
    """Fetch, decode and resolve one chunk group: what one job of a job array runs."""

    def requires(self) -> GroupTask:
        """Need the group's labels, and the roots of a graphene volume."""
        try:
            has_roots = self.has_roots
        except VoxelProbeError:
            has_roots = False  # the plan will say what is wrong
        return self.clone(ResolveRoots if has_roots else DecodePoints)

    def is_done(self) -> bool:
        """Return whether the group has labels, and roots if it is to have any."""
        return self.requires().is_done()

    def work(self) -> None:
        """Do nothing: what it requires is all there is to do."""


class MergeTable(OutputTask):
    """Put the labels and roots back beside the user's rows."""

    def requires(self) -> list[RunTask]:
        """Need the plan, or once there is one every group and the audit; nothing where there can be no result."""
        try:
            self.result()
            self.audit_extent()
        except VoxelProbeError:
            return []
        plan = self.clone(PlanChunkGroups)
        return [*self._groups(), *self._audit()] if plan.complete() else [plan]

    def deps(self) -> list[RunTask]:
        """Need just the plan, as far as Luigi's worker goes.

        It asks again at the moment of running, when `requires` has grown by the groups, which `run`
        yields anyway. `requires` is what `luigi-deps-tree` draws.
        """
        return [self.clone(PlanChunkGroups)] if self.requires() else []

    def is_done(self) -> bool:
        """Return whether the table is there in full and audited, corrupt chunks having been tried in this execution."""
        from voxelprobe.run.groups import is_due
        from voxelprobe.run.merge import is_audited, read_merged

        result = self.result()
        manifest = read_merged(result)
        return (manifest is not None and not is_due(manifest, self.execution)
                and is_audited(manifest, result, self.audit_extent()))

    def work(self) -> Iterator[Any]:
        """Have all groups done, then merge."""
        from voxelprobe.run.groups import expect_groups
        from voxelprobe.run.merge import merge_run
        from voxelprobe.run.plan import read_plan
        from voxelprobe.run.roots import warn_of_roots

        result, audit = self.result(), self.audit_extent()
        result.check_columns()
        board, plan, groups = self.board(), read_plan(self.engine_run), self._groups()
        if plan is not None and not all(group.complete() for group in groups):
            # Luigi enters here twice: before the groups are done, and after.
            expect_groups(self.engine_run, board, plan.facts["chunks_of_group"])
            if result.roots is not None:
                warn_of_roots(self.engine_run, result.roots)
        yield [*groups, *self._audit()]
        merge_run(result, board=board, execution=self.execution, audit=audit, threads=self.fetch_threads)

    def _audit(self) -> list[RunTask]:
        return [] if self.audit_extent().points == 0 else [self.clone(AuditPoints)]

    def _groups(self) -> list[RunTask]:
        from voxelprobe.run.plan import read_plan

        plan = read_plan(self.engine_run)
        count = plan.facts["groups"] if plan is not None else 0
        # The last stage of each, not SampleChunkGroup: a task of no work is forked and scheduled all the same.
        return [self.clone(SampleChunkGroup, group=group).requires() for group in range(count)]
