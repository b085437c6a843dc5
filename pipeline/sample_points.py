"""The public task."""

from __future__ import annotations

import logging

import luigi

from tasks.base import OutputTask
from tasks.merge import MergeTable
from voxelprobe.errors import CorruptDataError, printable

logger = logging.getLogger("voxelprobe")


class SamplePoints(OutputTask):
    """Label a table of points with the segment under each, from a Neuroglancer Precomputed volume."""

    def requires(self) -> list[MergeTable]:
        """Need the merged table."""
        return [self.clone(MergeTable)]

    def is_done(self) -> bool:
        """Return whether the table is there, with every chunk read and audited."""
        from voxelprobe.run.merge import is_audited, read_merged

        result = self.result()
        manifest = read_merged(result)
        return (manifest is not None and not manifest.facts["corrupt"]
                and is_audited(manifest, result, self.audit_extent()))

    def work(self) -> None:
        """Print the summary, and fail if a chunk could not be read."""
        from voxelprobe.run.merge import read_merged
        from voxelprobe.run.report import format_report

        run = self.engine_run
        self.board().clear()
        print("\n".join(map(printable, format_report(run).split("\n"))), flush=True)  # noqa: T201 (the command's own output)
        manifest = read_merged(self.result())
        if manifest is not None and (corrupt := manifest.facts["corrupt"]):
            points = manifest.facts["status"].get("corrupt_chunk", 0)
            chunks = "chunk" if len(corrupt) == 1 else "chunks"
            raise CorruptDataError(
                f"{len(corrupt)} corrupt {chunks} left {points:,} points without a label (status corrupt_chunk) in "
                f"{manifest.facts['output']}; the first is {min(corrupt)}. The same command tries just these again"
            )


@luigi.Task.event_handler(luigi.Event.PROCESS_FAILURE)
def _say_that_a_worker_died(task: luigi.Task, message: str) -> None:
    # Luigi logs it as information, which is not shown: an end without a word.
    logger.error("%s: its process was killed (out of memory?): %s; the same command goes on from here",
                 task.get_task_family(), message.rsplit(" ", 3)[-1])


@SamplePoints.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _say_that_nothing_is_to_do(task: SamplePoints) -> None:
    from voxelprobe.run.progress import clear_counters

    # One that was killed after its table was done has left them.
    clear_counters(task.engine_run.folder.local)
    logger.info("nothing to do: %s is there, made from the same points and volume", task.result().url)
