"""The marker that a stage leaves last: what it made, from what, and how large that is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from voxelprobe.errors import TransportError
from voxelprobe.storage import Folder


@dataclass(frozen=True, slots=True)
class Manifest:
    """A stage's marker.

    Attributes
    ----------
    key
        What the stage was made from: the run key, or a digest of the manifests upstream.
    files
        Size in bytes by name, relative to the run's folder.
    facts
        What else the stage has to say: counts, seconds, damaged chunks.
    """

    key: str
    files: Mapping[str, int]
    facts: Mapping[str, Any]


def write_manifest(folder: Folder, name: str, key: str, files: Iterable[str], facts: Mapping[str, Any]) -> None:
    """Write a stage's marker; every file that it lists has to be there."""
    sizes = {file: folder.size(file) for file in files}
    if missing := sorted(file for file, size in sizes.items() if size is None):
        raise TransportError(f"{folder.child_url(name)}: {', '.join(missing)} vanished before the marker was written")
    document = {"key": key, "files": sizes, "facts": facts}
    folder.write_bytes(name, json.dumps(document, indent=1).encode() + b"\n")


def read_manifest(folder: Folder, name: str, key: str) -> Manifest | None:
    """Return a stage's marker, or None unless it is whole, made from `key`, and its files are there in full."""
    content = folder.read_bytes(name)
    if content is None:
        return None
    try:
        document = json.loads(content)
        manifest = Manifest(document["key"], dict(document["files"]), dict(document["facts"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if manifest.key != key or any(size is None or folder.size(file) != size for file, size in manifest.files.items()):
        return None
    return manifest
