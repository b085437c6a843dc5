"""The fetch stage as a task."""

from __future__ import annotations

from tasks.base import GroupTask
from tasks.failures import noting_failure
from tasks.plan import PlanChunkGroups


class FetchChunks(GroupTask):
    """Bring a group's chunks into the cache."""

    priority = 10

    def requires(self) -> PlanChunkGroups:
        """Need the plan."""
        return self.clone(PlanChunkGroups)

    def is_done(self) -> bool:
        """Return whether the group was fetched. Chunks evicted since are fetched again by who needs them."""
        from voxelprobe.run.groups import read_fetched

        return read_fetched(self.engine_run, self.group) is not None

    def work(self) -> None:
        """Fetch."""
        from voxelprobe.run.groups import fetch_group

        self.check_group()
        with noting_failure(self.engine_run, self.group, self.execution):
            fetch_group(self.engine_run, self.group, self.chunk_cache(), threads=self.fetch_threads,
                        board=self.board())
