"""Whether a table is right, and what it could have cost at the least."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from benchmarks.tables import iterate_voxels
from benchmarks.volumes import Source
from voxelprobe.testing.shards import morton_code, shard_of_chunk


class MismatchError(Exception):
    """A table has a label that is not the volume's, or rows that are not the points'."""


def check_table(output: Path, points: Path, source: Source) -> int:
    """Return how many labels were compared with the source's, after all were equal and their rows the points' own.

    Raises
    ------
    MismatchError
        At the first that is not.
    """
    compared = 0
    with pq.ParquetFile(output) as file:
        kind = file.schema_arrow.field("label").type
        statuses = ["status"] if "status" in file.schema_arrow.names else []
    if str(kind) != "uint64":
        raise MismatchError(f"{output.name}: expected labels of uint64, found {kind}")
    # Batches are cut alike whatever row groups the two files have.
    pairs = zip(iterate_voxels(points), iterate_voxels(output, ["label", *statuses]), strict=True)
    for (voxels, _), (found, batch) in pairs:
        labels = batch.column("label")
        if len(voxels) != len(found) or not np.array_equal(voxels, found):
            raise MismatchError(f"{output.name}: other rows than the points from row {compared} on")
        if labels.null_count:
            raise MismatchError(f"{output.name}: {labels.null_count} points without a label from row {compared} on")
        if statuses and set(batch.column("status").unique().to_pylist()) - {"ok"}:
            raise MismatchError(f"{output.name}: a status other than ok from row {compared} on")
        wrong = np.flatnonzero(labels.to_numpy() != source.labels_at(voxels))
        if len(wrong):
            row = compared + int(wrong[0])
            raise MismatchError(f"{output.name}: {len(wrong):,} wrong labels, the first in row {row}: "
                                f"voxel {voxels[wrong[0]].tolist()}, found {labels[int(wrong[0])]}")
        compared += len(voxels)
    return compared


def compare_tables(output: Path, other: Path) -> int:
    """Return how many labels two tables have, after all were the same.

    Raises
    ------
    MismatchError
        If some are not.
    """
    mine, theirs = (pq.read_table(path, columns=["label"]).column(0) for path in (output, other))
    if not mine.combine_chunks().equals(theirs.combine_chunks()):
        raise MismatchError(f"{output.name} and {other.name} have different labels")
    return len(mine)


class Least(NamedTuple):
    """What no reader of whole chunks can do without: chunks, shards (0 of a volume without), and stored bytes."""

    chunks: int
    shards: int
    stored_bytes: int

    @property
    def requests(self) -> int:
        """One a chunk, or a shard, and the info."""
        return 1 + (self.shards or self.chunks)


def count_least(source: Source, name: str, points: Path) -> Least:
    """Return what the points of a table need of a volume."""
    volume = source.volumes[name]
    needed = np.zeros(volume.grid, bool)
    for voxels, _ in iterate_voxels(points):
        needed[tuple((voxels // volume.chunk).T)] = True
    positions = np.argwhere(needed)
    sizes = {grid: path.stat().st_size for grid, path in source.encoded(volume.encoding, volume.chunk).items()}
    repeats = [int(size) // chunk for size, chunk in zip(source.labels.shape, volume.chunk, strict=True)]
    stored = np.zeros(repeats, np.int64)
    for grid, size in sizes.items():
        stored[grid] = size
    shards = 0
    if volume.sharding:
        ids = (morton_code((x, y, z), volume.grid) for x, y, z in positions.tolist())
        shards = len({shard_of_chunk(chunk, volume.sharding)[0] for chunk in ids})
    return Least(len(positions), shards, int(stored[tuple((positions % repeats).T)].sum()))
