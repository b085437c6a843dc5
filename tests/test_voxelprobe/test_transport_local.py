"""Local files as cloud-files lays them, and the retries around any source."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cloudfiles import CloudFiles

from voxelprobe import AuthorizationError, CorruptDataError, InputError, TransportError, sample_points
from voxelprobe.testing.volumes import SUFFIXES
from voxelprobe.transport.local import LocalSource
from voxelprobe.transport.protocol import RetryableError, StoredObject
from voxelprobe.transport.sources import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, RetryingSource, open_source
from voxelprobe.volume.url import parse_cloudpath, parse_location

BODY = bytes(range(256)) * 10


@pytest.mark.parametrize("compress", [None, "gzip", "br", "zstd", "xz", "bzip2"])
def test_reads_what_cloud_files_wrote(tmp_path: Path, compress: Any) -> None:
    """What cloud-files put with each compression comes back under its plain name, with the encoding's name."""
    CloudFiles(f"file://{tmp_path}", progress=False).put("a/b c", BODY, compress=compress)
    source = open_source(parse_location(tmp_path), threads=1)
    assert source.fetch_stripped("a/b c") == BODY
    answer = source.fetch("a/b c")
    assert answer is not None
    assert (answer.encoding, answer.content == BODY) == (compress, compress is None)


def test_the_bare_name_comes_first(tmp_path: Path) -> None:
    """Beside `NAME.gz`, `NAME` is the object, before and after a suffixed one was read."""
    (tmp_path / "x").write_bytes(b"plain")
    (tmp_path / "x.gz").write_bytes(b"packed")
    (tmp_path / "y.gz").write_bytes(b"packed")
    source = LocalSource(tmp_path)
    assert source.fetch("x") == StoredObject(b"plain", None)
    assert source.fetch("y") == StoredObject(b"packed", "gzip")
    assert source.fetch("x") == StoredObject(b"plain", None)


def test_none_for_no_file(tmp_path: Path) -> None:
    """No file, no folder, and a file where a folder should be, mean that there is no such object."""
    (tmp_path / "file").touch()
    source = LocalSource(tmp_path)
    assert [source.fetch(name) for name in ("none", "none/x", "file/x")] == [None] * 3
    assert source.fetch("file") == StoredObject(b"", None)


@pytest.mark.parametrize(("start", "end", "expected"), [
    (0, 5, BODY[:5]), (7, 7, b""), (2555, 2600, BODY[2555:]), (2560, 2570, b""), (9999, 10000, b""),
    (5, None, BODY[5:]), (None, 3, BODY[:3]), (2550, 2**62, BODY[2550:]), (2**62, 2**62 + 9, b""),
    (-20, None, BODY[-20:]), (-1, None, BODY[-1:]), (-2560, None, BODY), (-(2**62), None, BODY),
])
def test_ranges(tmp_path: Path, start: Any, end: Any, expected: bytes) -> None:
    """A range gives bytes [start, end), fewer where the file ends, and none past it; -n the last n; and the size."""
    (tmp_path / "x").write_bytes(BODY)
    (tmp_path / "empty").touch()
    source = LocalSource(tmp_path)
    assert source.fetch("x", start, end) == StoredObject(expected, None, len(BODY))
    assert source.fetch("empty", start, end) == StoredObject(b"", None, 0)


def test_a_folder_is_not_an_object(tmp_path: Path) -> None:
    """A folder where a file should be is an error that names it, at once."""
    (tmp_path / "x").mkdir()
    with pytest.raises(TransportError, match=f"{tmp_path}/x: expected a file, found a folder"):
        open_source(parse_location(tmp_path), threads=1).fetch("x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    """A file that may not be read is refused by its name, not taken for absent."""
    (tmp_path / "x").touch(mode=0)
    with pytest.raises(AuthorizationError, match=f"{tmp_path}/x: no permission"):
        LocalSource(tmp_path).fetch("x")


@pytest.mark.parametrize("compress", SUFFIXES)
@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_volumes_of_compressed_files(
    tmp_path: Path, known: Callable[..., Any], encoding: str, compress: Any
) -> None:
    """Labels come out of `NAME.gz`, `.br`, `.zstd`, `.xz` and `.bz2` under any spelling of the folder."""
    oracle = known()
    oracle.write(tmp_path / "seg", encoding=encoding, compress=compress)
    for cloudpath in (f"{tmp_path}/seg", f"precomputed://file://{tmp_path}/seg/", f"file://{tmp_path}/x/../seg"):
        oracle.check(cloudpath)


def test_compression_may_differ_from_chunk_to_chunk(tmp_path: Path, known: Callable[..., Any]) -> None:
    """A folder that was written with several settings over the years is read whole."""
    from voxelprobe.testing.volumes import compress_bytes

    oracle = known()
    oracle.write(tmp_path, encoding="compressed_segmentation")
    for number, path in enumerate(sorted((tmp_path / "4_4_40").iterdir())):
        compress, suffix = [(None, ""), *SUFFIXES.items()][number % 6]
        content = compress_bytes(path.read_bytes(), compress)  # type: ignore[arg-type]
        path.unlink()
        path.with_name(path.name + suffix).write_bytes(content)
    oracle.check(tmp_path)


@pytest.mark.parametrize("key", ["../secret", "/etc", "a/../../secret", "file:x"])
def test_a_key_cannot_lead_out_of_the_volume(tmp_path: Path, known: Callable[..., Any], key: str) -> None:
    """An `info` whose scale's key points elsewhere is refused."""
    oracle = known()
    oracle.write(tmp_path / "seg")
    info = (tmp_path / "seg/info").read_text().replace('"4_4_40"', f'"{key}"')
    (tmp_path / "seg/info").write_text(info)
    with pytest.raises(InputError, match="leads out of the volume"):
        sample_points(f"{tmp_path}/seg", oracle.offset)


class Failing:
    """A source that raises what it is given, then answers."""

    url = "test://x"

    def __init__(self, *errors: Exception | StoredObject) -> None:
        self.outcomes = list(errors)

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return or raise the next outcome."""
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """Do nothing."""


def test_waits_grow_and_obey_the_server() -> None:
    """Waits double from the first, jittered down to half; `Retry-After` is a floor, within the longest wait."""
    asked = [None, None, None, 3.0, 10_000.0]
    waits: list[float] = []
    failing = Failing(*(RetryableError("busy", seconds) for seconds in asked), StoredObject(b"x", None))
    source = RetryingSource(failing, sleep=waits.append)
    assert source.fetch("a") == StoredObject(b"x", None)
    for attempt, wait in enumerate(waits[:3]):
        assert FIRST_WAIT_SECONDS * 2**attempt / 2 <= wait <= FIRST_WAIT_SECONDS * 2**attempt
    assert waits[3:] == [3.0, LONGEST_WAIT_SECONDS]
    assert (source.traffic.requests, source.traffic.retries, source.traffic.bytes) == (6, 5, 1)


def test_the_last_failure_is_raised_with_its_count() -> None:
    """After all attempts the error says what the last one found and how many there were; no wait follows it."""
    waits: list[float] = []
    failing = Failing(*(RetryableError(f"busy {number}") for number in range(3)))
    with pytest.raises(TransportError, match=r"busy 2 \(tried 3 times\)"):
        RetryingSource(failing, attempts=3, sleep=waits.append).fetch("a")
    assert len(waits) == 2


@pytest.mark.parametrize("error", [AuthorizationError("no"), TransportError("no"), CorruptDataError("no")])
def test_final_failures_are_not_repeated(error: Exception) -> None:
    """What another try can't mend is raised as it is, after one request."""
    source = RetryingSource(Failing(error, StoredObject(b"", None)), sleep=lambda seconds: None)
    with pytest.raises(type(error), match=r"^no$"):
        source.fetch("a")
    assert source.traffic.requests == 1


def test_damaged_compression_is_fetched_once_more() -> None:
    """A body that contradicts its gzip is asked for again; one that does so twice is corrupt."""
    import gzip

    good = StoredObject(gzip.compress(BODY), "gzip")
    bad = StoredObject(good.content[:-6] + b"\0\0" + good.content[-4:], "gzip")  # of its CRC
    assert RetryingSource(Failing(bad, good)).fetch_stripped("a") == BODY
    with pytest.raises(CorruptDataError):
        RetryingSource(Failing(bad, bad, good)).fetch_stripped("a")


def test_cloudpaths_of_other_kinds_are_explained() -> None:
    """A cloudpath that is none, or of another kind of volume, is said to be that."""
    with pytest.raises(InputError, match="expected a cloudpath"):
        parse_cloudpath("precomputed://")
    with pytest.raises(Exception, match="boss volumes can't be read"):
        parse_cloudpath("boss://s3://b/x")
