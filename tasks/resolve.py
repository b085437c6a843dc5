"""The resolve stage as a task."""

from __future__ import annotations

from tasks.base import GroupTask, RootsTask
from tasks.decode import DecodePoints


class ResolveRoots(GroupTask, RootsTask):
    """Ask the graph server for the roots of a group's supervoxels. Only graphene volumes have this stage."""

    # Few requests at once, whatever the workers: one group asks, with --graphene-concurrency requests.
    resources = {"graphene": 1}  # noqa: RUF012 (how Luigi declares it)
    priority = 25

    def requires(self) -> DecodePoints:
        """Need the group's labels."""
        return self.clone(DecodePoints)

    def is_done(self) -> bool:
        """Return whether the group has roots, made from the labels that it has now."""
        from voxelprobe.run.root_files import read_resolved

        roots = self.roots_at()
        return self.requires().is_done() and read_resolved(self.engine_run, self.group, roots) is not None

    def work(self) -> None:
        """Resolve."""
        from voxelprobe.run.roots import resolve_group

        resolve_group(self.engine_run, self.group, self.roots_at(), batch_size=self.graphene_batch_size,
                      concurrency=self.graphene_concurrency, board=self.board(), execution=self.execution)
