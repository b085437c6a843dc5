import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import uuid

import pytest

from voxelprobe import buckets, storage
from voxelprobe.errors import InputError, TransportError
from voxelprobe.storage import Folder
from voxelprobe.testing.store_gate import StoreGate
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
    """Return the files of a folder on this machine, without the notes of which version a copy is of."""
    return sorted(str(path.relative_to(folder.local)) for path in folder.local.rglob("*")
                  if path.is_file() and path.suffix != ".version")


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


def test_a_copy_is_used_only_while_it_is_the_object(remote):
    """A local copy is not fetched again, but a cut or changed one is, and one of an object that was replaced."""
    remote.write_bytes("points.npy", b"12345")
    copy = remote.local_copy("points.npy")
    before = copy.stat().st_ino
    assert remote.local_copy("points.npy").stat().st_ino == before
    for harm in (b"123", b"54321"):
        copy.write_bytes(harm)
        assert remote.local_copy("points.npy").read_bytes() == b"12345"
    other = Folder(remote.location, remote.local.parent / "elsewhere")
    assert other.local_copy("points.npy").read_bytes() == b"12345"
    other.write_bytes("points.npy", b"abcde")
    assert remote.local_copy("points.npy").read_bytes() == b"abcde"
    with other.new_file("points.npy") as path:
        path.write_bytes(b"vwxyz")
    assert remote.local_copy("points.npy").read_bytes() == b"vwxyz"
    assert other.local_copy("points.npy").read_bytes() == b"vwxyz"
    assert names(other) == names(remote) == ["points.npy"]


def test_a_note_is_of_one_file_only(remote):
    """A copy that another process put in place before its note isn't taken for what the older note says."""
    remote.write_bytes("x", b"first")
    copy = remote.local_copy("x")
    note = copy.with_name(".x.version").read_text()
    remote.write_bytes("x", b"other")
    assert remote.local_copy("x").read_bytes() == b"other"
    remote.write_bytes("x", b"first")
    copy.with_name(".x.version").write_text(note)
    assert remote.local_copy("x").read_bytes() == b"first"


def test_what_isnt_read_again_doesnt_stay_on_this_machine(remote):
    """A result that goes to a bucket leaves no copy; its version is the one that was written."""
    with remote.new_file("result.parquet", keep=False) as path:
        path.write_bytes(b"rows")
    assert names(remote) == []
    assert remote.read_bytes("result.parquet") == b"rows"
    assert remote.written_version("result.parquet") == remote.version("result.parquet")


def test_the_written_version_is_of_ones_own_writing(folder):
    """What another process wrote meanwhile under the same name has another version than one's own."""
    folder.write_bytes("out", b"mine")
    assert folder.written_version("out") == folder.version("out")
    Folder(folder.location, folder.local).write_bytes("out", b"another's")
    assert folder.written_version("out") != folder.version("out")


@pytest.fixture
def gate(s3, moto_address):
    with StoreGate(moto_address) as gate:
        yield gate


@pytest.fixture
def bucket(s3, gate, tmp_path):
    return Folder(parse_location(gate.url.replace("http", "s3://http", 1) + f"/{s3.bucket}/run"), tmp_path / "scratch")


# Above this, cloud-files would write an object in parts.
LARGE_BYTES = 101_000_000


def test_a_large_object_is_one_put(bucket, gate, tmp_path):
    """Above 100 MB too, a file goes up by one PUT as it is read: memory doesn't grow with it."""
    code = ("import sys, resource; from voxelprobe.storage import Folder\n"
            "from voxelprobe.locations import parse_location; from pathlib import Path\n"
            "folder = Folder(parse_location(sys.argv[1]), Path(sys.argv[2])); folder.write_bytes('small', b'x')\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "with folder.new_file('result.parquet', keep=False) as path:\n"
            f"    with open(path, 'wb') as file: file.truncate({LARGE_BYTES})\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n")
    said = subprocess.run([sys.executable, "-c", code, bucket.location.url, tmp_path], capture_output=True, text=True,
                          check=True)
    assert int(said.stdout) < 20_000, "kilobytes"
    assert [(write.method, write.query, write.size) for write in gate.writes()] == [("PUT", "", 1),
                                                                                   ("PUT", "", LARGE_BYTES)]
    assert bucket.size("result.parquet") == LARGE_BYTES


def test_what_is_too_large_for_a_put_appears_at_once_too(bucket, gate, s3, monkeypatch):
    """Above the store's limit a file goes up in parts, and there is no object until the last request is answered."""
    monkeypatch.setattr(buckets, "SINGLE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(buckets, "_PART_BYTES", 5 << 20)
    monkeypatch.setattr(storage, "_WHOLE_BYTES", 1 << 20)
    content = os.urandom(12 << 20)
    before = []

    def look(request):
        before.append((request.method, "uploadId" in request.query, s3.names()))
        return "pass"

    gate.judge = look
    with bucket.new_file("result.parquet", keep=False) as path:
        path.write_bytes(content)
    writes = [one for one in before if one[0] != "HEAD"]
    assert writes == [("POST", False, []), *[("PUT", True, [])] * 3, ("POST", True, [])]
    assert bucket.written_version("result.parquet") == bucket.version("result.parquet")
    gate.clear()
    assert bucket.local_copy("result.parquet").read_bytes() == content
    assert len([request for request in gate.requests if "range" in request.fields]) == 3


def test_only_one_machine_writes_first(bucket, tmp_path):
    """Of machines that each would be the first to write a name, one is, and the others are told."""
    other = Folder(bucket.location, tmp_path / "other")
    assert bucket.write_first("now.json", b"1")
    assert not other.write_first("now.json", b"2")
    assert other.read_bytes("now.json") == b"1"


def test_many_files_are_looked_at_by_one_listing(bucket, gate):
    """Sizes and versions of a folder's many files come by one request, and are those that each has alone."""
    names = [f"plan/points-{number:03d}.parquet" for number in range(12)]
    for number, name in enumerate(names):
        bucket.write_bytes(name, bytes(number))
    bucket.write_bytes("plan/below/points-000.parquet", b"x")
    gate.clear()
    states = bucket.states([*names, "plan/none"])
    assert len(gate.requests) == 1
    assert states == {name: bucket.state(name) for name in [*names, "plan/none"]}
    assert states["plan/none"] is None
    assert states[names[3]].size == 3


def test_a_folder_on_gcs(gcs, tmp_path):
    """On Google's store too an object appears whole, above 100 MB as well, without helpers, and has versions."""
    folder = Folder(parse_location(f"{gcs.url}/run"), tmp_path / "scratch")
    assert folder.state("plan/none") is None
    names = [f"plan/{number}" for number in range(9)]
    for name in names:
        folder.write_bytes(name, name.encode())
    assert folder.states(names) == {name: folder.state(name) for name in names}
    assert {name: folder.version(name) for name in names} == {name: folder.written_version(name) for name in names}
    assert folder.local_copy(names[3]).read_bytes() == names[3].encode()
    other = Folder(folder.location, tmp_path / "other")
    other.write_bytes(names[3], b"plan/x")
    assert folder.local_copy(names[3]).read_bytes() == b"plan/x"
    assert folder.written_version(names[3]) != folder.version(names[3])
    assert (folder.write_first("now.json", b"1"), other.write_first("now.json", b"2")) == (True, False)
    assert other.read_bytes("now.json") == b"1"
    with folder.new_file("result.parquet", keep=False) as path:
        with open(path, "wb") as file:
            file.truncate(LARGE_BYTES)
        assert folder.state("result.parquet") is None
    assert folder.size("result.parquet") == LARGE_BYTES
    there = {blob.name for blob in gcs.bucket.list_blobs()}
    assert there == {f"run/{name}" for name in [*names, "now.json", "result.parquet"]}


def test_forked_processes_share_no_connection(bucket):
    """Processes that are forked after the bucket was used each get the answers to their own questions."""
    contents = {f"x{number}": b"%d" % number * 2000 for number in range(3)}
    for name, content in contents.items():
        bucket.write_bytes(name, content)

    def ask(name):
        for _ in range(25):
            found = bucket.state(name)
            bucket.write_bytes(name, contents[name])
            if found is None or found.version != bucket.written_version(name):
                os._exit(1)
        os._exit(0)

    for name in contents:
        assert bucket.state(name) is not None
    children = [FORK.Process(target=ask, args=(name,)) for name in contents]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]


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
