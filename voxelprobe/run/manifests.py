"""The marker that a stage leaves last: what it made, from what, and how large that is."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from voxelprobe.errors import TransportError
from voxelprobe.storage import Folder

# A plan's, which every stage of every group reads: what this process has seen whole in a bucket it doesn't look through
# each time. What vanishes after that is missed by who needs it.
_MANY_FILES = 2
_confirmed: dict[str, bytes] = {}
# Of a folder that has none of the files, or may be written to but not read, or can't be synced on its file system.
_NO_SUCH_THING = frozenset({errno.ENOENT, errno.EACCES, errno.EINVAL, errno.ENOTSUP})

logger = logging.getLogger(__name__)


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
    states = folder.states(list(files))
    if missing := sorted(file for file, state in states.items() if state is None):
        raise TransportError(f"{folder.child_url(name)}: {', '.join(missing)} vanished before the marker was written")
    found = {file: state for file, state in states.items() if state is not None}
    document: dict[str, Any] = {"key": key, "files": {file: state.size for file, state in found.items()}}
    if folder.location.path is None:
        # Those that the facts are about, should another machine have replaced one since.
        document["versions"] = {file: folder.written_version(file) or state.version for file, state in found.items()}
    else:
        # Or the marker might outlive the new names in a power cut, and stand beside older files of the same size.
        settle_names(folder, found)
    document["facts"] = facts
    folder.write_bytes(name, json.dumps(seal(document), indent=1).encode() + b"\n")


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a marker's document with a digest of all that it says, in place of one that it has."""
    said = {name: value for name, value in document.items() if name != "seal"}
    text = json.dumps(json.loads(json.dumps(said)), sort_keys=True)
    return said | {"seal": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def settle_names(folder: Folder, names: Iterable[str]) -> None:
    """Bring the names of files to the disk: a power cut takes them back no more. What a bucket has answered for is so.

    The files' own folders; those above them were made long before.
    """
    if folder.location.path is None:
        return
    for parent in {folder.path(name).parent for name in names}:
        try:
            handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            if error.errno not in _NO_SUCH_THING:
                raise TransportError(f"{parent}: can't be brought to the disk: {error.strerror or error}") from error


def read_manifest(folder: Folder, name: str, key: str) -> Manifest | None:
    """Return a stage's marker, or None unless it is whole, made from `key`, and its files are there in full.

    On a bucket the files have to be the very ones that the marker was written for, too. A marker that was changed by
    hand or by a damaged disk, in whatever it says, is none: its stage is done again.
    """
    content = folder.read_bytes(name)
    if content is None:
        return None
    try:
        document = json.loads(content)
        if document != seal(document):
            logger.warning("%s was changed after it was written; what it is of is made again", folder.child_url(name))
            return None
        manifest = Manifest(document["key"], dict(document["files"]), dict(document["facts"]))
        versions = dict(document.get("versions", {}))
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return None
    if manifest.key != key:
        return None
    place = folder.child_url(name)
    if _confirmed.get(place) == content:
        return manifest
    states = folder.states(list(manifest.files))
    for file, size in manifest.files.items():
        state = states[file]
        if state is None or state.size != size or versions.get(file, state.version) != state.version:
            return None
    if folder.location.path is None and len(manifest.files) > _MANY_FILES:
        _confirmed[place] = content
    return manifest
