"""Machines that run out of something: a message that names what is full, and the same command goes on when it isn't."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.s3_server import s3_server
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK = (96, 64, 64), (16, 16, 16)
MANY = 2_000_000
GIB = 1 << 30
MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> dict[str, Path]:
    """A volume of 96 chunks, 3 MB, and 20,000 points."""
    folder = tmp_path_factory.mktemp("limits")
    rng = np.random.default_rng(1)
    write_volume(folder / "seg", rng.integers(1, 2**63, SHAPE, dtype=np.uint64), chunk_size=CHUNK)
    return {"volume": folder / "seg", "points": write_points(folder / "p.npy", rng.integers(0, SHAPE, (20_000, 3)))}


@pytest.fixture(scope="module")
def table(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, new_cli: Any) -> bytes:
    """The bytes of the table that a run without limits leaves."""
    with contextlib.closing(new_cli(tmp_path_factory.mktemp("whole") / "cli")) as line:
        outcome = line.run(**data, workers=2)
        assert outcome.code == 0, outcome.err
        return bytes(line.result.read_bytes())


class Disk:
    """A file system of its own in memory, of a size that can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mount("tmpfs", "size=64m")

    def remount(self, options: str) -> None:
        """Change its size or whether it may be written to."""
        self._mount(f"remount,{options}")

    def _mount(self, kind: str, size: str = "") -> None:
        how = ["-o", kind] if not size else ["-t", kind, "-o", size, kind]
        done = subprocess.run(["mount", *how, self.folder], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounts need privileges that this user lacks: {done.stderr}")

    def close(self) -> None:
        """Take it away."""
        subprocess.run(["umount", "-l", self.folder], capture_output=True, check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Any]:
    made: list[Disk] = []

    def make(folder: Path) -> Disk:
        made.append(Disk(folder))
        return made[-1]

    yield make
    for one in made:
        one.close()


def check_said(outcome: Any, *expected: str) -> None:
    assert outcome.code not in (0, None), outcome.err
    assert outcome.code > 0, "it crashed"
    assert "Traceback" not in outcome.err, outcome.err
    for text in expected:
        assert text in outcome.err, f"{text!r} isn't in:\n{outcome.err}"


@pytest.mark.parametrize(("place", "size"), [
    ("workspace", "16k"), ("workspace", "400k"), ("workspace", "3m"), ("cache", "400k"),
])
def test_a_full_disk(place: str, size: str, cli: Any, disk: Any, data: dict[str, Path], table: bytes) -> None:
    """Whenever the disk with the workspace or the cache is full, the run says which file; with room it goes on."""
    full = disk(cli.folder / "disk")
    parameters = {place: full.folder / "here", "workers": 2} | data
    full.remount(f"size={size}")
    outcome = cli.run(**parameters)
    check_said(outcome, str(full.folder), "full" if "disk is full" in outcome.err else "No space left on device")
    full.remount("size=64m")
    outcome = cli.run(**parameters)
    assert outcome.code == 0, outcome.err
    workspace = full.folder / "here" if place == "workspace" else cli.workspace
    (result,) = workspace.glob("runs/*/result.parquet")
    assert result.read_bytes() == table
    assert not list(workspace.rglob(".tmp-*"))


@pytest.mark.parametrize("place", ["workspace", "cache", "output"])
def test_a_disk_that_may_only_be_read(place: str, cli: Any, disk: Any, data: dict[str, Path], table: bytes) -> None:
    """A read-only workspace, cache or output folder is named; written to again, the same command finishes."""
    only = disk(cli.folder / "disk")
    name = "here/result.parquet" if place == "output" else "here"
    parameters = {place: only.folder / name} | data
    only.remount("ro")
    check_said(cli.run(**parameters), str(only.folder), "Read-only file system")
    only.remount("rw")
    outcome = cli.run(**parameters)
    assert outcome.code == 0, outcome.err
    found = list(only.folder.rglob("result.parquet")) or [cli.result]
    assert [path.read_bytes() for path in found] == [table]


def test_a_workspace_that_became_read_only(cli: Any, disk: Any, data: dict[str, Path], table: bytes) -> None:
    """A disk that is mounted for reading between two stages, as after an error, ends the run with its name."""
    only = disk(cli.folder / "disk")
    parameters = {"workspace": only.folder / "ws"} | data
    assert cli.run("PlanChunkGroups", **parameters).code == 0
    only.remount("ro")
    check_said(cli.run(**parameters), str(only.folder), "ead-only")
    only.remount("rw")
    assert cli.run(**parameters).code == 0
    (result,) = only.folder.rglob("result.parquet")
    assert result.read_bytes() == table


def test_an_output_folder_that_is_missing(cli: Any, data: dict[str, Path], table: bytes) -> None:
    """The folder of the output is made; where a file stands in its way, that is said."""
    output = cli.folder / "new/folder/labels.parquet"
    outcome = cli.run(**data, output=output)
    assert outcome.code == 0, outcome.err
    assert output.read_bytes() == table
    (cli.folder / "file").write_text("")
    check_said(cli.run(**data, output=cli.folder / "file/labels.parquet"), f"{cli.folder}/file", "labels.parquet")


def test_a_full_folder_for_temporary_files(cli: Any, disk: Any, data: dict[str, Path], table: bytes) -> None:
    """A run over a local workspace needs no room for temporary files: none at all is enough."""
    full = disk(cli.folder / "temporary")
    full.remount("size=4k")
    with contextlib.suppress(OSError), (full.folder / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    outcome = cli.run(**data, workers=2)
    assert outcome.code == 0, outcome.err
    assert cli.result.read_bytes() == table


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(moto: str, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The cloudpath of a bucket with the volume in it."""
    import boto3

    for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{moto}", region_name="us-east-1")
    client.create_bucket(Bucket="lab")
    for path in data["volume"].rglob("*"):
        if path.is_file():
            key = f"seg/{path.relative_to(data['volume'])}"
            client.put_object(Bucket="lab", Key=key, Body=path.read_bytes())
    return f"s3://http://{moto}/lab"


def test_a_bucket_workspace_without_room_for_what_is_under_way(
    cli: Any, disk: Any, data: dict[str, Path], bucket: str, table: bytes
) -> None:
    """Over a bucket the temporary folder holds what is under way: full, it is named; with room the run goes on."""
    full = disk(cli.folder / "temporary")
    full.remount("size=100k")
    output = cli.folder / "labels.parquet"
    parameters = data | {"workspace": f"{bucket}/ws", "output": output}
    check_said(cli.run(**parameters), f"{full.folder}/voxelprobe-{os.getuid()}/")
    full.remount("size=64m")
    outcome = cli.run(**parameters)
    assert outcome.code == 0, outcome.err
    assert output.read_bytes() == table


def limited(words: list[str], cli: Any, *shell: str, env: dict[str, str] | None = None) -> Any:
    """Return how a command ended under limits that a shell set before it became the command."""
    with contextlib.closing(Limited(cli, words, shell)) as line:
        return line.run(env or {})


class Limited:
    """A command below a shell."""

    def __init__(self, cli: Any, words: list[str], shell: tuple[str, ...]) -> None:
        self._cli = cli
        self._words = ["sh", "-c", " && ".join([*shell, 'exec "$@"']), "sh", *map(str, words)]
        self._process: subprocess.Popen[str] | None = None

    def run(self, env: dict[str, str]) -> Any:
        """Return how it ended."""
        self._process = subprocess.Popen(
            self._words, cwd=self._cli.folder / "cwd", text=True, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"HOME": str(self._cli.home)} | env,
        )
        return self._cli.wait(self._process)

    def close(self) -> None:
        """Leave nothing running."""
        if self._process is not None:
            self._cli.kill(self._process)


@pytest.mark.parametrize("store", ["local", "http", "s3"])
def test_256_file_descriptors(store: str, cli: Any, data: dict[str, Path], request: pytest.FixtureRequest,
                              write_points: Any, read_table: Any, table: bytes) -> None:
    """With 256 descriptors a process, four workers of 64 requests each do their work: it simply fits."""
    with HttpStore(data["volume"], latency_seconds=0.2) as server:
        if store == "http":
            place: Any = server.url
        else:
            place = data["volume"] if store == "local" else f"{request.getfixturevalue('bucket')}/seg"
        words = cli.command("SamplePoints", data | {"volume": place, "workers": 4, "fetch_threads": 64})
        outcome = limited(words, cli, "ulimit -n 256")
        assert outcome.code == 0, outcome.err
        assert store != "http" or server.peak_in_flight > 24, "no two workers were at it at once"
    assert read_table(cli.result).drop_columns([]).equals(read_table_of(table, cli, read_table))


def read_table_of(content: bytes, cli: Any, read_table: Any) -> Any:
    path = cli.folder / "expected.parquet"
    path.write_bytes(content)
    return read_table(path)


def test_too_few_file_descriptors(cli: Any, data: dict[str, Path]) -> None:
    """With hardly any descriptors the run ends with a message that says so; with more it goes on."""
    with HttpStore(data["volume"]) as server:
        words = cli.command("SamplePoints", data | {"volume": server.url, "fetch_threads": 64})
        outcome = limited(words, cli, "ulimit -n 24")
        check_said(outcome)
        assert "files are open" in outcome.err or "oo many open files" in outcome.err, outcome.err
        assert cli.run(**data | {"volume": server.url}).code == 0


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Give a control group whose processes have so much memory together, without swap."""
    group = MEMORY / f"voxelprobe-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError as error:
        pytest.skip(f"memory is limited by control groups of version 1, which this user can't make: {error}")
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, write_points: Any, data: dict[str, Path]) -> dict[str, Path]:
    points = np.random.default_rng(3).integers(0, SHAPE, (MANY, 3))
    return data | {"points": write_points(tmp_path_factory.mktemp("many") / "many.npy", points)}


def test_memory_of_1_gib(cli: Any, other_cli: Any, many: dict[str, Path]) -> None:
    """In 1 GiB, page cache and all, two workers label two million points: the same table as without a limit."""
    with memory_group(GIB) as group:
        words = cli.command("SamplePoints", many | {"workers": 2})
        outcome = limited(words, cli, f"echo $$ > {group}/tasks")
        assert outcome.code == 0, outcome.err
        most = int((group / "memory.max_usage_in_bytes").read_text())
        assert 100 << 20 < most <= GIB, "they were not in the group"
    assert other_cli.run(**many, workers=2).code == 0
    assert cli.result.read_bytes() == other_cli.result.read_bytes()


def test_memory_that_does_not_do(cli: Any, other_cli: Any, many: dict[str, Path]) -> None:
    """A process that the kernel ends for want of memory leaves nothing wrong: the same command goes on with more."""
    assert cli.run("PlanChunkGroups", **many).code == 0
    with memory_group(60 << 20) as group:
        words = cli.command("SamplePoints", many | {"workers": 2})
        outcome = limited(words, cli, f"echo $$ > {group}/tasks")
    if outcome.code != -signal.SIGKILL:  # the shell's own successor, or one of its workers
        check_said(outcome, "its process was killed (out of memory?)")
    assert cli.run(**many, workers=2).code == 0
    assert other_cli.run(**many, workers=2).code == 0
    assert cli.result.read_bytes() == other_cli.result.read_bytes()
