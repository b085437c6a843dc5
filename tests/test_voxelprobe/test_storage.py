import contextlib
import multiprocessing
import os
import signal
import uuid

import pytest

from voxelprobe.errors import InputError, TransportError
from voxelprobe.storage import Folder
from voxelprobe.volume.url import parse_location

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def local(tmp_path):
    return Folder(parse_location(tmp_path / "run"))


@pytest.fixture
def remote(tmp_path):
    return Folder(parse_location(f"mem://{uuid.uuid4().hex}/run"), tmp_path / "scratch")


@pytest.fixture(params=["local", "remote"])
def folder(request):
    return request.getfixturevalue(request.param)


def names(folder):
    return sorted(str(path.relative_to(folder.local)) for path in folder.local.rglob("*") if path.is_file())


def fail_halfway(folder, error):
    """Begin to write a file, and raise."""
    with folder.new_file("out") as path:
        path.write_bytes(b"half")
        raise error


def test_a_written_file_is_read_back(folder):
    """Content, size and a local copy of a file are those that were written; a second writing replaces the first."""
    for content in (b"first", b"", bytes(range(256)) * 300):
        folder.write_bytes("stage/file.parquet", content)
        assert folder.read_bytes("stage/file.parquet") == content
        assert folder.size("stage/file.parquet") == len(content)
        assert folder.local_copy("stage/file.parquet").read_bytes() == content
    assert names(folder) == ["stage/file.parquet"]


def test_what_isnt_there_is_none_or_named(folder):
    """No file: no content, no size; and who needs a local copy is told where it was looked for."""
    assert folder.read_bytes("none") is None
    assert folder.size("none") is None
    assert folder.version("none") is None
    assert folder.size("a\0name") is None or folder.location.path is None
    with pytest.raises(InputError, match=r"no file.* at .*none"):
        folder.local_copy("none")
    folder.write_bytes("file", b"x")
    assert folder.read_bytes("file/below") is None or folder.location.path is None


def test_a_replaced_file_has_another_version(local):
    """A file of the same size is told from the one that it replaced."""
    local.write_bytes("out", b"one")
    before = local.version("out")
    assert before is not None
    assert local.version("out") == before
    local.write_bytes("out", b"two")
    os.utime(local.path("out"), (1, 1))
    assert local.version("out") != before


def test_a_file_appears_only_when_its_block_is_done(folder):
    """While it is being written only the old content is seen, and the temporary name keeps the suffix."""
    folder.write_bytes("a/out.csv.gz", b"old")
    with folder.new_file("a/out.csv.gz") as path:
        path.write_bytes(b"new")
        assert folder.read_bytes("a/out.csv.gz") == b"old"
        assert path.name.startswith(".tmp-")
        assert path.name.endswith("-out.csv.gz")
    assert folder.read_bytes("a/out.csv.gz") == b"new"


@pytest.mark.parametrize("error", [ValueError("bad"), InputError("bad"), KeyboardInterrupt()])
def test_a_failing_block_leaves_nothing(folder, error):
    """Its error is the caller's to see, as it was; no file and no temporary file stay."""
    with pytest.raises(type(error)) as caught:
        fail_halfway(folder, error)
    assert caught.value is error
    assert names(folder) == []
    assert folder.read_bytes("out") is None


def test_a_failing_disk_is_a_transport_error_that_names_the_file(local):
    """What the operating system refuses is translated, with its reason, and leaves nothing."""
    with pytest.raises(TransportError, match=r"file://.*run/out: can't be written: No space left"):
        fail_halfway(local, OSError(28, "No space left on device"))
    local.write_bytes("file", b"x")
    with pytest.raises(TransportError, match="file/out: can't be written"):
        local.write_bytes("file/out", b"y")
    (local.path("folder") / "inner").mkdir(parents=True)
    with pytest.raises(TransportError, match="folder: can't be written"):
        local.write_bytes("folder", b"y")
    with pytest.raises(TransportError, match="folder"):
        local.read_bytes("folder")
    assert names(local) == ["file"]


def test_a_transport_error_of_the_block_is_not_wrapped(local):
    """An error that already says what failed keeps its words."""
    with pytest.raises(TransportError, match=r"^the store is away$"), local.new_file("out"):
        raise TransportError("the store is away")


def test_a_kill_leaves_only_what_sweep_removes(local):
    """Killed inside the block, a process leaves a temporary file and no output; sweeping its name removes just that."""
    def child():
        with local.new_file("plan/out.parquet") as path:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    local.write_bytes("plan/other.parquet", b"whole")
    process = FORK.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert local.read_bytes("plan/out.parquet") is None
    left = [name for name in names(local) if "other" not in name]
    assert len(left) == 1
    assert left[0].startswith("plan/.tmp-")
    local.sweep("plan/other.parquet")
    assert set(left) < set(names(local))
    local.sweep("plan/*")
    assert names(local) == ["plan/other.parquet"]
    local.sweep("nowhere/*")


def test_racing_writers_leave_one_whole_file(local):
    """Of several processes that write one name, the last to publish wins; none fails, nothing is mixed."""
    def child(number):
        for _ in range(30):
            local.write_bytes("out", b"%d" % number * 50_000)

    processes = [FORK.Process(target=child, args=(number,)) for number in range(3)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        content = local.read_bytes("out")
        assert content is None or (len(content) == 50_000 and len(set(content)) == 1)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert names(local) == ["out"]


def test_a_download_is_kept_while_its_size_is_right(remote):
    """A local copy is not fetched again, but a cut one is; when the object is gone so is its copy's worth."""
    remote.write_bytes("points.npy", b"12345")
    copy = remote.local_copy("points.npy")
    copy.write_bytes(b"123")
    assert remote.local_copy("points.npy").read_bytes() == b"12345"
    other = Folder(remote.location, remote.local.parent / "elsewhere")
    assert other.local_copy("points.npy").read_bytes() == b"12345"
    assert names(other) == ["points.npy"]


def test_a_bucket_needs_a_place_on_this_machine(tmp_path):
    """A folder on a bucket without a scratch folder is a fault in the program."""
    with pytest.raises(ValueError, match="scratch folder"):
        Folder(parse_location("mem://x/y"))
    assert Folder(parse_location(tmp_path)).local == tmp_path


def test_urls_are_as_the_user_names_them(local, remote):
    """A local file is called by its path, a remote one by its URL."""
    assert local.child_url("a/b") == str(local.path("a/b"))
    assert remote.child_url("a/b") == f"{remote.location.url}/a/b"


def test_an_abandoned_block_publishes_nothing(local):
    """A block left by closing its generator is a failed one."""
    with contextlib.suppress(GeneratorExit):
        fail_halfway(local, GeneratorExit())
    assert names(local) == []
