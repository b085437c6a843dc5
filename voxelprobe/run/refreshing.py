"""A refresh as a resumable step: where its tables are, and the marker that says they are done."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from voxelprobe.errors import InputError
from voxelprobe.graphene.timestamps import Timestamp, parse_timestamp
from voxelprobe.locations import parse_location
from voxelprobe.points import check_output_suffix
from voxelprobe.run.inputs import fingerprint_points, localise_points
from voxelprobe.run.manifests import read_manifest, write_manifest
from voxelprobe.run.refresh import open_old_result, refresh_roots
from voxelprobe.run.spec import machine_folder
from voxelprobe.storage import Folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refresh:
    """A table, a time, and the two tables that come of them."""

    table: Path
    at: Timestamp
    output: tuple[Folder, str]
    changes: tuple[Folder, str]
    markers: Folder
    now: float

    @property
    def marker(self) -> str:
        """Return the name of the marker: one for each place of the new table."""
        place = self.output[0].child_url(self.output[1])
        return f"refresh-{hashlib.blake2b(place.encode(), digest_size=8).hexdigest()}.json"

    @property
    def key(self) -> str:
        """Return what the new table is made from: the table's content and the time."""
        return f"{fingerprint_points(self.table)}-{self.at.unix}"

    def is_done(self) -> bool:
        """Return whether both tables are there as they were written, from this table for this time."""
        manifest = read_manifest(self.markers, self.marker, self.key)
        return manifest is not None and manifest.facts.get("versions") == self._versions()

    def execute(self, *, batch_size: int, concurrency: int) -> None:
        """Write both tables and then the marker; nothing if another process of this machine did so meanwhile."""
        if warning := self.at.recent_warning(self.now):
            logger.warning("%s", warning)
        with self.markers.lock(f"{self.marker}.lock", "the same refresh"):
            if self.is_done():
                return
            key, old = self.key, open_old_result(self.table)
            report = refresh_roots(old, self.at, output=self.output, changes=self.changes, batch_size=batch_size,
                                   concurrency=concurrency)
            self.markers.sweep(self.marker)
            write_manifest(self.markers, self.marker, key, [], asdict(report) | {"versions": self._written()})
        logger.info("%s points have another root: %s; the new table is %s", f"{report.changed:,}",
                    self.changes[0].child_url(self.changes[1]), self.output[0].child_url(self.output[1]))

    def _versions(self) -> list[str | None]:
        return [folder.version(name) for folder, name in (self.output, self.changes)]

    def _written(self) -> list[str | None]:
        return [folder.written_version(name) for folder, name in (self.output, self.changes)]


def plan_refresh(table: str, timestamp: str, output: str, changes: str, workspace: str, *, now: float) -> Refresh:
    """Return the refresh of a table to a time.

    Raises
    ------
    InputError
        If the time isn't one that a repeated command would name again, or a place can't hold a table.
    """
    if timestamp.strip().lower() == "now":
        raise InputError("timestamp now: expected a time that the same command names again tomorrow, as in "
                         "2024-01-31T10:00:00Z")
    home, source = parse_location(workspace), parse_location(table)
    machine = machine_folder(home)
    suffix = check_output_suffix(output)
    outputs = [parse_location(place) for place in (output, changes or f"{output[: -len(suffix)]}-changes.parquet")]
    for location in outputs:
        check_output_suffix(location.url)
    for name, location in zip(("workspace", "output", "changes"), (home, *outputs), strict=True):
        if location.url.startswith(("http://", "https://")):
            raise InputError(f"{name} {location.url}: expected a local path or a bucket, found a web server")
    urls = [location.url for location in (source, *outputs)]
    if len(set(urls)) < 3:
        # A refresh that was killed after it replaced its own table would find nothing changed.
        raise InputError(f"expected three places, for the table, the new one and the changes; found {', '.join(urls)}")
    places = [(Folder(location.parent, machine / "outputs"), location.name) for location in outputs]
    return Refresh(
        localise_points(source, machine / "inputs"), parse_timestamp(timestamp, now=now),
        places[0], places[1], Folder(home.child("refreshes"), machine / "refreshes"), now,
    )
