"""Runs with their audit, stage by stage in this process, and what is altered in them that an audit must find."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from voxelprobe.cache.protocol import ChunkCache
from voxelprobe.errors import AuditError
from voxelprobe.records import PLACE, POINT, read_columns, write_columns
from voxelprobe.run.audit import audit_run
from voxelprobe.run.audit_check import MISMATCHES
from voxelprobe.run.audit_sample import parse_audit
from voxelprobe.run.blocks import BlockFile, write_blocks
from voxelprobe.run.groups import decode_group, fetch_group
from voxelprobe.run.manifests import seal
from voxelprobe.run.merge import is_audited, merge_run, read_merged
from voxelprobe.run.plan import plan_run, read_jobs, read_plan
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.result import Result, open_result
from voxelprobe.run.spec import Run, RunSettings, open_run

SHAPE, CHUNK, OFFSET = (40, 24, 18), (8, 8, 8), (100, -30, 7)
"""Size, chunk size and begin of the volume that the points are scattered over, x, y, z."""

FLOATS_AND_PICTURES = {"jpeg": "uint8", "jxl": "uint8", "png": "uint16", "fpzip": "float32", "kempressed": "float32",
                       "zfpc": "float64"}


def make_array(encoding: str) -> npt.NDArray[Any]:
    """Return the labels of a volume of an encoding, of a dtype that it has, shape `SHAPE`."""
    x, y, z = np.indices(SHAPE)
    array: npt.NDArray[Any] = (x // 3 * 1000 + y // 5 * 10 + z // 4).astype(np.uint64) * np.uint64(2**50 + 12345)
    if encoding in FLOATS_AND_PICTURES:
        array = (100 + 80 * np.sin(x / 5) * np.cos(y / 7) + 4 * z).astype(FLOATS_AND_PICTURES[encoding])
    return array


def tabulate(points: npt.NDArray[Any]) -> pa.Table:
    """Return points, shape (n, 3), as a table of the columns x, y and z."""
    return pa.table({axis: points[:, i] for i, axis in enumerate("xyz")})


def scatter_points(offset: Sequence[int]) -> pa.Table:
    """Return 400 points in and just before a volume of `SHAPE` that begins at `offset`, with ids."""
    voxels = np.random.default_rng(5).integers(-2, SHAPE, (400, 3)) + offset
    return tabulate(voxels).append_column("id", pa.array(np.arange(400)))


class Audited:
    """A run of its stages in this process, with a step between any two of them.

    Parameters
    ----------
    folder
        Where the points and the workspace are, and a volume `seg` unless `cloudpath` names another.
    points
        The table; without one, points scattered over a volume that begins at `offset`.
    output
        The result's name in the folder; empty for the run's own.
    settings
        Of `RunSettings`, where they differ.
    """

    def __init__(self, folder: Path, *, points: pa.Table | None = None, offset: Sequence[int] = OFFSET,
                 output: str = "", cloudpath: str = "", **settings: Any) -> None:
        path = folder / "points.parquet"
        self.points = scatter_points(offset) if points is None else points
        pq.write_table(self.points, path, row_group_size=150)
        facts = {"mip": "0", "coord_resolution": None, "point_columns": "x,y,z", "missing_chunks": "null"} | settings
        self.settings = RunSettings(cloudpath or str(folder / "seg"), str(path), str(folder / "ws"), **facts)
        self.output = output and str(folder / output)
        self.board = ProgressBoard(folder / "board", "e")

    @property
    def run(self) -> Run:
        """The run, opened anew."""
        return open_run(self.settings)

    @property
    def result(self) -> Result:
        """The run's result, opened anew."""
        return open_result(self.run, self.output, None)

    @property
    def groups(self) -> range:
        """The numbers of the groups of the plan."""
        plan = read_plan(self.run)
        assert plan is not None
        return range(plan.facts["groups"])

    @property
    def voxels(self) -> npt.NDArray[Any]:
        """The points as they are in the columns x, y and z, shape (n, 3)."""
        return np.stack([self.points[axis].to_numpy() for axis in "xyz"], axis=1)

    def cache(self) -> ChunkCache:
        """Return the volume's cache."""
        return self.run.cache(None, 1 << 30)

    def plan(self) -> None:
        """Plan, unless it is done."""
        plan_run(self.run, self.board)

    def label(self, between: Callable[[], None] | None = None) -> None:
        """Plan, fetch and decode, with a step before the decoding."""
        self.plan()
        for group in self.groups:
            fetch_group(self.run, group, self.cache(), threads=4, board=self.board)
        if between:
            between()
        for group in self.groups:
            decode_group(self.run, group, self.cache(), threads=4, board=self.board, execution="e")

    def merge(self, audit: str = "all") -> dict[str, Any]:
        """Audit and merge; return what the report says of the audit.

        Raises
        ------
        AuditError
            If the audit finds a difference.
        """
        extent = parse_audit(audit)
        if extent.points != 0:
            audit_run(self.run, extent, threads=4)
        merge_run(self.result, board=self.board, execution="e", audit=extent, threads=4)
        report = json.loads(self.run.folder.path("report.json").read_text())
        return dict(report["audit"])

    def done(self, audit: str) -> bool:
        """Return whether the table is there and audited so far."""
        result = self.result
        manifest = read_merged(result)
        return manifest is not None and is_audited(manifest, result, parse_audit(audit))

    def refuse(self, audit: str = "all") -> tuple[str, list[dict[str, Any]]]:
        """Return the error of an audit that finds something, and what it lists; nothing is published."""
        try:
            self.merge(audit)
        except AuditError as error:
            message = str(error)
        else:
            raise AssertionError("the audit found nothing")
        assert not Path(self.result.url).exists()
        assert not list(self.run.folder.path("").rglob(".tmp-*"))
        return message, json.loads(self.run.folder.path(MISMATCHES).read_text())["mismatches"]

    def alter_label(self, group: int = 0, row: int = 3) -> int:
        """Add 1 to a label in a group's file, and make its marker agree; return the point."""
        folder = self.run.folder
        name = f"labels/group-{group:03d}"
        marker = json.loads(folder.path(f"{name}.json").read_text())
        jobs = read_jobs(self.run, group)
        file = BlockFile.of_facts(folder.path(f"{name}.parquet"), marker["facts"])
        status, labels = (column.copy() for column in file.read_points(jobs.points, "status", "label"))
        labels[row] += 1
        marker["facts"] |= write_blocks(file.path, jobs.points, {"status": status, "label": labels}, "label",
                                        labels[status == 0], size=marker["facts"]["block_size"])
        marker["files"] = {f"{name}.parquet": file.path.stat().st_size}
        folder.path(f"{name}.json").write_text(json.dumps(seal(marker)))
        return int(jobs.points[row])

    def halve_places(self) -> None:
        """Halve every place in the plan, as of another unit, and make its marker agree."""
        for group in self.groups:
            path = self.run.folder.path(f"plan/points-{group:03d}.parquet")
            points, places = read_columns(path, POINT, PLACE)
            size = path.stat().st_size
            write_columns(path, {POINT: points, PLACE: (places // 2).astype(np.uint32)})
            marker = self.run.folder.path("plan/manifest.json")
            document = json.loads(marker.read_text())
            assert document["files"][f"plan/{path.name}"] == size
            document["files"][f"plan/{path.name}"] = path.stat().st_size
            marker.write_text(json.dumps(seal(document)))
