"""The points table of a run: brought to this machine, and known by its content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from voxelprobe.errors import InputError
from voxelprobe.locations import Location
from voxelprobe.points.tables import INPUT_SUFFIXES
from voxelprobe.storage import Folder
from voxelprobe.transport.cloud import open_cloud_files, translate_error

# A larger file is known by its size, its time of change and samples: reading 20 GB before every
# start would cost more than planning.
WHOLE_BYTES = 64 << 20
_SAMPLES = 64
_SAMPLE_BYTES = 64 << 10


def localise_points(location: Location, downloads: Path) -> Path:
    """Return a local path to the points table at `location`, downloading it below `downloads` if it is remote.

    Raises
    ------
    InputError
        If there is no such file.
    """
    if location.path is not None:
        if not location.path.exists():
            raise InputError(f"points table {location.path}: no such file or folder")
        return location.path
    name = location.name
    place = downloads / hashlib.blake2b(location.url.encode(), digest_size=8).hexdigest()
    beside = Folder(location.parent, place)
    with beside.lock("download.lock", "the download of the same points"):
        if name.lower().endswith(INPUT_SUFFIXES) and not _is_folder(location):
            return beside.local_copy(name)
        folder = Folder(location, place / name)
        parts = _list_parquet(location)
        for old in (place / name).rglob("*.parquet"):
            if str(old.relative_to(place / name)) not in parts:
                old.unlink()
        for part in parts:
            folder.local_copy(part)
    return place / name


def fingerprint_points(path: Path) -> str:
    """Return a digest of a table's content: of all its bytes, or for a large file of its size, time and samples."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        stat = file.stat()
        name = str(file.relative_to(path)) if path.is_dir() else ""
        facts = [name, stat.st_size] + ([stat.st_mtime_ns] if stat.st_size > WHOLE_BYTES else [])
        digest.update(json.dumps(facts).encode())
        with open(file, "rb") as content:
            if stat.st_size <= WHOLE_BYTES:
                digest.update(content.read())
                continue
            for sample in range(_SAMPLES):
                content.seek((stat.st_size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(content.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _is_folder(location: Location) -> bool:
    if not location.url.startswith(("s3://", "gs://", "mem://")):
        return False
    # Asked first: a listing costs more, and cloud-files' in memory names the folder's neighbours too.
    if Folder(location.parent, Path()).size(location.name) is not None:
        return False
    return bool(_list_parquet(location))


def _list_parquet(location: Location) -> list[str]:
    try:
        names = list(open_cloud_files(location.url).list())
    except Exception as error:
        raise translate_error(error, location.url) from error
    return sorted(name for name in names if name.endswith(".parquet"))
