"""What a run has finished, as its files tell; what of it was done again; and what it left behind."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reliability.commands import Machine
from reliability.worlds import World

# What only a run that is under way may have, wherever it is.
_TEMPORARY = re.compile(r"\.tmp-.*|progress-.*\.bin|.*-journal|.*-wal|.*-shm|.*\.parts|failed-.*")


@dataclass(frozen=True, slots=True)
class Trace:
    """What was finished at a moment.

    Attributes
    ----------
    files
        Time of change by path, of markers that hold and of the files that they list.
    chunks, ids
        Chunks that the cache holds, and supervoxels whose roots were kept.
    objects
        Markers in a bucket.
    """

    files: dict[str, int]
    chunks: set[str]
    ids: set[int]
    objects: set[str]

    def repeated(self, world: World, machine: Machine) -> dict[str, set[str]]:
        """Return what has been made or asked for again since, by kind."""
        found: dict[str, set[str]] = {}
        now = {name: Path(name).stat().st_mtime_ns if Path(name).exists() else None for name in self.files}
        found["made"] = {name for name, moment in self.files.items() if now[name] != moment}
        if world.store is not None:
            found["chunks asked for"] = (self.chunks & world.chunks_asked().keys()) - world.audited
        if world.graph is not None:
            asked = [int(one) for call in world.graph.calls("roots_binary") for one in call.ids]
            found["roots asked for"] = {str(one) for one in self.ids.intersection(asked)}
        if world.gate is not None:
            put = {request.path.split("/", 2)[-1] for request in world.gate.writes()}
            found["objects put"] = self.objects & put
        return {what: names for what, names in found.items() if names}


def take_trace(world: World, machine: Machine) -> Trace:
    """Return what a run on a machine has finished. No process of it may be alive."""
    if world.gate is not None:
        prefix = machine.folder.name.split(".")[0] + "/"
        markers = {key for key in world.keys(prefix) if re.search(r"(plan/manifest|group-\d+)\.json$", key)}
        return Trace({}, set(), set(), markers)
    files = {str(path): path.stat().st_mtime_ns for path in _finished(machine)}
    chunks = world.committed(machine.workspace / "cache")
    ids = _kept_ids(machine) if world.graph is not None else set()
    return Trace(files, chunks, ids, set())


def _finished(machine: Machine) -> Iterator[Path]:
    """Yield the markers of stages whose files are there in full, and these files."""
    folder = machine.run_folder
    if folder is None:
        return
    for marker in [*folder.glob("*/[!.]*.json"), *folder.glob("roots/*/[!.]*.json")]:
        try:
            document = json.loads(marker.read_bytes())
            files = {folder / name: size for name, size in document["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        version = document.get("facts", {}).get("output_version")
        if marker.parent.name == "merge" and not _is_version(folder, version):
            continue
        if all(path.exists() and path.stat().st_size == size for path, size in files.items()):
            yield marker
            yield from files


def _is_version(folder: Path, version: str | None) -> bool:
    """Return whether the result is the one that the marker of merge was written for."""
    return any(f"{path.stat().st_size} {path.stat().st_mtime_ns}" == version for path in folder.glob("result*.parquet"))


def _kept_ids(machine: Machine) -> set[int]:
    """Return the supervoxels of the batches that a group under way has kept whole."""
    found: set[int] = set()
    for path in machine.workspace.glob("runs/*/roots/*/*.parts/[0-9]*.npy"):
        try:
            pairs = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (ValueError, EOFError):
            continue
        found.update(pairs[0].tolist())
    return found


def leftovers(machine: Machine) -> list[str]:
    """Return what is left of files that only a run under way should have: workspace, cache and TMPDIR."""
    places = (machine.workspace, machine.folder / "temporary", machine.folder / "cwd")
    return [str(path.relative_to(machine.folder)) for place in places for path in place.rglob("*")
            if _TEMPORARY.fullmatch(path.name)]
