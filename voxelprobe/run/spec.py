"""What a run is: its settings, its key, and where it keeps what."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxelprobe.cache.disk import DiskCache, ScaleCache
from voxelprobe.errors import InputError, StaleRunError
from voxelprobe.local_files import private_folder
from voxelprobe.locations import Location, parse_location
from voxelprobe.opening import Volume, open_volume
from voxelprobe.points import (
    PointColumns,
    PointsTable,
    UnitConversion,
    check_output_suffix,
    open_points,
    parse_coord_resolution,
    parse_point_columns,
    unit_of_resolution,
)
from voxelprobe.records import ALGORITHM_VERSION
from voxelprobe.run.inputs import fingerprint_points, localise_points
from voxelprobe.storage import Folder

MISSING_CHUNKS = ("null", "error")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run is asked for, as the command's parameters of the same names."""

    volume: str
    points: str
    workspace: str
    mip: str
    coord_resolution: str | None
    point_columns: str
    missing_chunks: str


@dataclass(frozen=True)
class Run:
    """One run: its inputs, and the folder that is named by what decides its result.

    Attributes
    ----------
    key
        Digest of all that decides the result.
    folder
        Where the stages leave their files.
    """

    settings: RunSettings
    volume: Volume
    points: Path
    points_fingerprint: str
    unit: tuple[str, str, str]
    key: str
    folder: Folder

    @property
    def missing_is_error(self) -> bool:
        """Return whether an absent chunk ends the run."""
        return self.settings.missing_chunks == "error"

    @functools.cached_property
    def table(self) -> PointsTable:
        """Return the points table, opened."""
        return open_points(self.points)

    @functools.cached_property
    def columns(self) -> tuple[PointColumns, ...]:
        """Return the points of each row; one without a prefix, or one a prefix."""
        notes = self.table.type_notes
        where = f"points table {self.settings.points}"
        return parse_point_columns(self.settings.point_columns, self.table.schema, where, notes)

    @property
    def conversion(self) -> UnitConversion:
        """Return how the points' unit becomes voxels of the mip."""
        return UnitConversion.between(self.unit, self.volume.scale.resolution)

    def cache(self, folder: str | None, budget_bytes: int) -> ScaleCache:
        """Return the volume's part of the chunk cache in `folder`, or of the workspace's own."""
        root = parse_location(folder).path if folder else self._machine_folder / "cache"
        if root is None:
            raise InputError(f"cache {folder}: expected a local folder, since SQLite needs one")
        return DiskCache(root, budget_bytes=budget_bytes).of_scale(self.volume.url, self.volume.scale.fingerprint)

    def output(self, output: str | None, default: str = "result.parquet") -> tuple[Folder, str]:
        """Return the folder and name of the result table."""
        if not output:
            return self.folder, default
        check_output_suffix(output)
        location = parse_location(output)
        if location.url.startswith(("http://", "https://")):
            raise InputError(f"output {output}: expected a local path or a bucket, found a web server")
        return Folder(location.parent, self.folder.path("outputs")), location.name

    def check_points(self) -> None:
        """Raise `StaleRunError` if the points table was replaced while it was read."""
        if fingerprint_points(self.points) != self.points_fingerprint:
            raise StaleRunError(f"points table {self.settings.points}: was changed while the run was reading it; "
                                "run again")

    def lock(self, stage: str) -> AbstractContextManager[None]:
        """Hold a stage of this run for this process."""
        return self.folder.lock(f"locks/{stage}.lock", f"{stage} of the same run")

    @property
    def provenance(self) -> dict[str, Any]:
        """Return where the values come from: the same for every execution of this run."""
        scale, graph = self.volume.scale, self.volume.graph
        return ({} if graph is None else {"graphene": graph.url.url}) | {
            "run_key": self.key,
            "algorithm_version": ALGORITHM_VERSION,
            "volume": self.volume.url,
            "mip": self.volume.mip,
            "resolution_nm": list(scale.resolution),
            "scale_key": scale.key,
            "encoding": scale.encoding,
            "info_fingerprint": scale.fingerprint,
            "points_fingerprint": self.points_fingerprint,
            "coord_resolution_nm": list(self.unit),
            "point_columns": self.settings.point_columns,
            "missing_chunks": self.settings.missing_chunks,
        }

    @property
    def _machine_folder(self) -> Path:
        return machine_folder(parse_location(self.settings.workspace))


def machine_folder(workspace: Location) -> Path:
    """Return the local folder for what stays on this machine: the workspace itself if it is local.

    Raises
    ------
    InputError
        If somebody else may write to it.
    """
    if workspace.path is not None:
        return workspace.path
    digest = hashlib.blake2b(workspace.url.encode(), digest_size=8).hexdigest()
    # Its name can be guessed, and where it is anybody may have made it before us.
    return private_folder(Path(tempfile.gettempdir()) / f"voxelprobe-{os.getuid()}") / digest


def open_run(settings: RunSettings) -> Run:
    """Return the run that the settings name.

    Raises
    ------
    InputError
        If a setting is wrong, or there are no such points or volume.
    AuthorizationError, TransportError
        If a store refuses or doesn't answer.
    """
    if settings.missing_chunks not in MISSING_CHUNKS:
        raise InputError(f"missing-chunks {settings.missing_chunks!r}: expected one of {', '.join(MISSING_CHUNKS)}")
    workspace = parse_location(settings.workspace)
    if workspace.url.startswith(("http://", "https://")):
        raise InputError(f"workspace {settings.workspace}: expected a local path or a bucket, found a web server")
    machine = machine_folder(workspace)
    unit = parse_coord_resolution(settings.coord_resolution)
    points = localise_points(parse_location(settings.points), machine / "inputs")
    volume = open_volume(settings.volume, mip=settings.mip)
    if unit is None:
        unit = unit_of_resolution(volume.info.scales[0].resolution)
    columns = ",".join(part.strip() for part in settings.point_columns.split(","))
    fingerprint = fingerprint_points(points)
    facts = [ALGORITHM_VERSION, fingerprint, points.suffix, volume.url, volume.scale.fingerprint,
             unit, columns, settings.missing_chunks]
    if volume.graph is not None:
        facts += [volume.graph.url.url, repr(volume.graph.layout)]
    key = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    source = volume.cloudpath.location.name if volume.graph is None else volume.graph.url.table
    stems = [re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:40] for text in (Path(points.name).stem, source)]
    name = "-".join([*stems, key[:12]])
    folder = Folder(workspace.child(f"runs/{name}"), machine / "runs" / name)
    run = Run(settings, volume, points, fingerprint, unit, key, folder)
    _sign(run)
    return run


def _sign(run: Run) -> None:
    """Leave a readable note of the settings in the run's folder, or check the one that is there."""
    content = run.folder.read_bytes("run.json")
    if content is None:
        with run.lock("run"):
            run.folder.sweep("run.json")
            document = {"key": run.key, "provenance": run.provenance}
            run.folder.write_bytes("run.json", json.dumps(document, indent=1).encode() + b"\n")
        return
    try:
        found = json.loads(content)["key"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found != run.key:
        raise StaleRunError(
            f"{run.folder.location.url}/run.json: expected run key {run.key}, found {found}; "
            "the folder was made by another run or edited: move it away"
        )
