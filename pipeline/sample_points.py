"""The public task."""

from __future__ import annotations

import logging

import luigi
from luigi.configuration import get_config

from tasks.base import OutputTask
from tasks.merge import MergeTable
from voxelprobe.errors import CorruptDataError, InputError

logger = logging.getLogger("voxelprobe")


class SamplePoints(OutputTask):
    """Label a table of points with the segment under each, from a Neuroglancer Precomputed volume."""

    def requires(self) -> list[MergeTable]:
        """Need the merged table."""
        return [] if self._mixed_pair() else [self.clone(MergeTable)]

    def is_done(self) -> bool:
        """Return whether the table is there, with every chunk read."""
        from voxelprobe.run.merge import read_merged

        if self._mixed_pair():
            return False
        manifest = read_merged(self.engine_run, self.output)
        return manifest is not None and not manifest.facts["corrupt"]

    def work(self) -> None:
        """Print the summary, and fail if a chunk could not be read."""
        from voxelprobe.run.merge import read_merged
        from voxelprobe.run.report import format_report

        if message := self._mixed_pair():
            raise InputError(message)
        run = self.engine_run
        self.board().clear()
        print(format_report(run), flush=True)  # noqa: T201 (the command's own output)
        manifest = read_merged(run, self.output)
        if manifest is not None and (corrupt := manifest.facts["corrupt"]):
            points = manifest.facts["status"].get("corrupt_chunk", 0)
            raise CorruptDataError(
                f"{len(corrupt)} corrupt chunks left {points:,} points without a label (status corrupt_chunk) in "
                f"{manifest.facts['output']}; the first is {min(corrupt)}. The same command tries just these again"
            )

    def _mixed_pair(self) -> str:
        """Return a message if half of a configured pair of volume and points was replaced on the command line.

        The points of a demo or of another data set would give plausible labels from the wrong volume.
        """
        config = get_config()
        pair = {name: config.get("SamplePoints", name, "") for name in ("volume", "points")}
        if not all(pair.values()):
            return ""
        same = [name for name, value in pair.items() if getattr(self, name) == value]
        if len(same) != 1:
            return ""
        return (f"--{same[0]} is {pair[same[0]]} from the configuration, where it belongs to the other "
                f"{'points' if same[0] == 'volume' else 'volume'}: name both --volume and --points")


@SamplePoints.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _say_that_nothing_is_to_do(task: SamplePoints) -> None:
    folder, name = task.engine_run.output(task.output)
    logger.info("nothing to do: %s is there, made from the same points and volume", folder.child_url(name))
