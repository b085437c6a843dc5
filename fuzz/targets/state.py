"""What runs leave on the disk and read again: the cache's rows and files, and the stages' markers."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fuzz.target import Target, attempt, flip, is_refused, mutate_json
from voxelprobe.cache.region_file import DamagedRegionError, RegionFile, parse_row
from voxelprobe.run.manifests import read_manifest, seal, write_manifest
from voxelprobe.storage import Folder
from voxelprobe.transport.protocol import StoredObject
from voxelprobe.volume.url import parse_location


@cache
def _folder() -> Path:
    """Return a folder for a file an execution; `fuzz.run` deletes it, who ends its children without their asking."""
    folder = Path(tempfile.mkdtemp(prefix="voxelprobe-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what is said of each damage."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# Rows of the cache

_CRC_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ 0x82F63B78 if _byte & 1 else _byte >> 1
    _CRC_TABLE.append(_byte)


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _split_row(data: bytes) -> tuple[int, bytes, bytes]:
    """Return a chunk's number, its facts and its content."""
    size = data[1] % 32 if len(data) > 1 else 0
    return (data[0] if data else 0) * 1001, data[2 : 2 + size], data[2 + size :]


def _check_row(data: bytes) -> bool:
    chunk, facts, content = _split_row(data)
    try:
        stored = parse_row(chunk, facts, content)
    except (DamagedRegionError, UnicodeDecodeError):
        stored = None
    encoding = facts[4:]
    expected = (
        len(facts) >= 4 and _crc32c(str(chunk).encode() + b" " + encoding + content).to_bytes(4, "little") == facts[:4]
    )
    try:
        encoding.decode()
    except UnicodeDecodeError:
        expected = False
    assert (stored is not None) is expected
    assert stored is None or stored == StoredObject(content, encoding.decode() or None)
    return expected


def _row_seeds() -> list[bytes]:
    return [
        _mend_row(bytes([chunk, 4 + len(name)]) + b"0000" + name + content, None)
        for chunk, name, content in ((0, b"", b""), (7, b"gzip", b"some bytes"), (255, b"gzip, br", bytes(70)))
    ]


def _mend_row(data: bytes, rng: random.Random | None) -> bytes:
    chunk, facts, content = _split_row(data)
    if len(facts) < 4 or (rng is not None and rng.random() < 0.5):
        return data
    checksum = _crc32c(str(chunk).encode() + b" " + facts[4:] + content).to_bytes(4, "little")
    return data[:2] + checksum + data[6:]


# Its files

_ROWS = {
    8: StoredObject(b"payload-8" * 3, "gzip"),
    9: StoredObject(b"payload-9" * 200, None),
    10: StoredObject(b"", None),
    300: StoredObject(bytes(range(250)), "br"),
}
_ASKED = [*_ROWS, 0, 1, 11, 14, 24, 30]


@cache
def _region_bytes() -> bytes:
    path = _folder() / "r0.sqlite"
    RegionFile(path).write(_ROWS)
    return path.read_bytes()


def _apply(data: bytes) -> bytes:
    """Return the file with the input's changes: of three bytes each, where (two) and what is xored there; or cut."""
    content = bytearray(_region_bytes())
    for at in range(0, len(data) - 2, 3):
        place = int.from_bytes(data[at : at + 2], "little")
        if data[at + 2] == 0:
            del content[place:]
        elif place < len(content):
            content[place] ^= data[at + 2]
    return bytes(content)


def _check_file(data: bytes) -> bool:
    path = _folder() / "r1.sqlite"
    path.write_bytes(_apply(data))
    file = RegionFile(path)
    try:
        with quiet():
            known = file.known(_ASKED)
            found = file.read(_ASKED)
    except DamagedRegionError:
        return False
    assert known <= set(_ASKED)
    assert found.items() <= _ROWS.items(), found
    return len(found) == len(_ROWS)


def _aim(data: bytes, rng: random.Random) -> bytes:
    """Return changes at bytes that aren't zeros, most of the time, and in the header, the schema or the indices."""
    content = _region_bytes()
    changes = bytearray(data[: 3 * rng.randint(0, 3)])
    for _ in range(rng.randint(1, 3)):
        begin, end = rng.choice(((0, 100), (100, 4096), (4096, 8192), (8192, len(content))))
        place = rng.randrange(begin, min(end, len(content)))
        while not content[place] and rng.random() < 0.8:
            place = rng.randrange(begin, min(end, len(content)))
        changes += place.to_bytes(2, "little") + bytes([rng.choice((1 << rng.randrange(8), rng.randrange(256)))])
    return bytes(changes)


# Markers

_NAMES = {"plan/a.parquet": b"abc", "plan/b.parquet": b"", "c": b"12345"}


@cache
def _runs_folder() -> Folder:
    folder = Folder(parse_location(_folder() / "run"))
    for name, content in _NAMES.items():
        folder.write_bytes(name, content)
    return folder


def _manifest_seeds() -> list[bytes]:
    folder, seeds = _runs_folder(), []
    for names, facts in (
        (list(_NAMES), {"points": 3, "corrupt": {}}),
        ([], {}),
        (["c"], {"seconds": 0.5, "words": ["\u00e4"]}),
    ):
        write_manifest(folder, "m.json", "key1", names, facts)
        seeds.append(folder.read_bytes("m.json") or b"")
    return seeds


def _check_manifest(data: bytes) -> bool:
    folder = _runs_folder()
    (folder.path("m.json")).write_bytes(data)
    with quiet():
        found = attempt(read_manifest, folder, "m.json", "key1")
    assert not is_refused(found), found
    if found is None:
        return False
    document = json.loads(data)
    assert document["key"] == found.key == "key1"
    assert dict(document["files"]) == found.files
    assert dict(document["facts"]) == found.facts or b"NaN" in data  # which equals nothing
    for name, size in found.files.items():
        assert (folder.path(name)).stat().st_size == size
    return True


def _reseal(data: bytes, rng: random.Random) -> bytes:
    """Return a changed marker, most of the time with a seal that is right."""
    data = mutate_json(data, rng)
    try:
        document = json.loads(data)
        if rng.random() < 0.8:
            document = seal(document)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return data
    return json.dumps(document).encode()


TARGETS = {
    "cache_rows": Target(_row_seeds, _check_row, _mend_row, most_bytes=120),
    "cache_file": Target(
        lambda: [b"", *(flip(bytes(9), random.Random(i)) for i in range(5))], _check_file, _aim, most_bytes=30
    ),
    "manifests": Target(_manifest_seeds, _check_manifest, _reseal, most_bytes=2000),
}
