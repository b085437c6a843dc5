"""Places that others may write to: a folder or a link that somebody laid there first is not used."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from voxelprobe import InputError, TransportError
from voxelprobe.cache.disk import DiskCache
from voxelprobe.local_files import open_lock, private_folder
from voxelprobe.locations import parse_location
from voxelprobe.run.spec import machine_folder
from voxelprobe.storage import Folder
from voxelprobe.transport.protocol import StoredObject

OTHER_USER = 12345


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder for temporary files, and in it the place that runs over buckets use."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"voxelprobe-{os.getuid()}"


def test_the_machine_folder_is_of_one_user_alone(temporary: Path) -> None:
    """What a run over a bucket keeps on a machine lies where no other user reads or writes, whatever the umask."""
    before = os.umask(0)
    try:
        place = machine_folder(parse_location("s3://bucket/ws"))
    finally:
        os.umask(before)
    assert place.parent == temporary
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert machine_folder(parse_location("s3://bucket/ws")) == place


def test_somebody_elses_folder_in_its_place(temporary: Path) -> None:
    """A folder that another user made there first is refused, with its name and what to do."""
    temporary.mkdir(mode=0o700)
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(temporary, OTHER_USER, OTHER_USER)
    with pytest.raises(InputError, match=rf"^{temporary}: .* found one of user {OTHER_USER}; remove it, or set TMPDIR"):
        machine_folder(parse_location("gs://bucket/ws"))


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o720, 0o702])
def test_a_folder_that_others_may_write_to(mode: int, temporary: Path) -> None:
    """A folder of ours that others may write into is refused too: who knows what they left there."""
    temporary.mkdir()
    temporary.chmod(mode)
    with pytest.raises(InputError, match=rf"found one that others may write to \(mode {mode & 0o7777:o}\)"):
        machine_folder(parse_location("gs://bucket/ws"))


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o705])
def test_a_folder_that_others_may_read(mode: int, temporary: Path) -> None:
    """A folder of ours that others could only read is used, and closed to them."""
    temporary.mkdir()
    temporary.chmod(mode)
    machine_folder(parse_location("gs://bucket/ws"))
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700


def test_a_link_in_its_place(temporary: Path, tmp_path: Path) -> None:
    """A link, be it to a folder of ours, or to nothing, is refused and nothing is made behind it."""
    (tmp_path / "mine").mkdir(mode=0o700)
    for target in (tmp_path / "mine", tmp_path / "absent"):
        temporary.symlink_to(target)
        with pytest.raises(InputError, match="found a link"):
            machine_folder(parse_location("gs://bucket/ws"))
        temporary.unlink()
    temporary.write_text("")
    with pytest.raises(InputError, match="found no folder"):
        machine_folder(parse_location("gs://bucket/ws"))
    assert not (tmp_path / "absent").exists()


def test_a_temporary_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Where there is no room for the folder, or no way to it, the message names it."""
    with pytest.raises(TransportError, match=r"none/voxelprobe-0: can't be made: No such file"):
        private_folder(tmp_path / "none" / "voxelprobe-0")


def test_a_lock_that_is_a_link(tmp_path: Path) -> None:
    """A link in the place of a lock file is not followed: neither made nor touched is what it names."""
    victim = tmp_path / "victim"
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws/a.lock").symlink_to(victim)
    folder = Folder(parse_location(str(tmp_path / "ws")))
    with pytest.raises(TransportError, match=r"ws/a\.lock: can't be written"), folder.lock("a.lock", "a test"):
        pytest.fail("it was taken")
    with pytest.raises(OSError, match="symbolic"):
        open_lock(tmp_path / "ws/a.lock")
    assert not victim.exists()


def test_a_cache_lock_that_is_a_link(tmp_path: Path) -> None:
    """The same holds for the locks of the chunk cache."""
    cache = DiskCache(tmp_path / "cache", budget_bytes=1 << 30).of_scale("file:///v", "f")
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "r00000000.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(TransportError, match="chunk cache"):
        cache.write(0, {1: StoredObject(b"x", None)})
    assert not (tmp_path / "victim").exists()


def test_locks_are_not_inherited(tmp_path: Path) -> None:
    """A program that a run starts doesn't get its locks, and would not hold them longer than it."""
    with open_lock(tmp_path / "a.lock") as lock:
        assert not os.get_inheritable(lock.fileno())
    assert not (tmp_path / "a.lock").read_bytes()
