"""The decode stage as a task."""

from __future__ import annotations

from tasks.base import GroupTask
from tasks.failures import noting_failure
from tasks.fetch import FetchChunks


class DecodePoints(GroupTask):
    """Read a group's labels out of its chunks."""

    # Before further fetches: a decoded group's chunks may leave the cache.
    priority = 20

    def requires(self) -> FetchChunks:
        """Need the group's chunks."""
        return self.clone(FetchChunks)

    def is_done(self) -> bool:
        """Return whether the group has labels, corrupt chunks having been tried in this execution."""
        from voxelprobe.run.groups import is_due, read_decoded

        manifest = read_decoded(self.engine_run, self.group)
        return manifest is not None and not is_due(manifest, self.execution)

    def work(self) -> None:
        """Decode."""
        from voxelprobe.run.groups import decode_group

        self.check_group()
        with noting_failure(self.engine_run, self.group, self.execution):
            decode_group(self.engine_run, self.group, self.chunk_cache(), threads=self.fetch_threads,
                         board=self.board(), execution=self.execution)
