"""What was deleted, damaged or changed since the last run is noticed, and only that is done again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK = (64, 48, 32), (16, 16, 16)
# Files may grow to this size, then the disk is full.
SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (NUMBER, NUMBER))
"""


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    return np.random.default_rng(1).integers(10**19, 11 * 10**18, SHAPE, dtype=np.uint64)


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(2).integers(10, SHAPE, (3000, 3))


@pytest.fixture(scope="module")
def data(array: Any, voxels: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recovery")
    write_volume(folder / "seg", array, chunk_size=CHUNK)
    return {"volume": folder / "seg", "points": write_points(folder / "p.csv", voxels)}


@pytest.fixture(scope="module")
def finished(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, new_cli: Any) -> Iterator[Any]:
    """A run that is done, for tests to copy."""
    with closing(new_cli(tmp_path_factory.mktemp("recovery") / "finished")) as line:
        assert line.run(**data).code == 0
        yield line


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scribble(path: Path) -> None:
    path.write_bytes(b"not what it was" * 1000)


DAMAGES: dict[str, tuple[str, Any]] = {
    "the plan's marker is gone": ("plan/manifest.json", Path.unlink),
    "the plan's marker is cut": ("plan/manifest.json", truncate),
    "a part of the plan is gone": ("plan/points-000.parquet", Path.unlink),
    "a part of the plan is cut": ("plan/chunks-001.parquet", truncate),
    "labels are gone": ("labels/group-000.parquet", Path.unlink),
    "labels are cut": ("labels/group-000.parquet", truncate),
    "labels have become something else": ("labels/group-000.parquet", scribble),
    "the marker of labels is cut": ("labels/group-000.json", truncate),
    "the report is gone": ("report.json", Path.unlink),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_damage_in_the_runs_folder(name: str, damage: Any, cli: Any, finished: Any, data: dict[str, Path]) -> None:
    """When the table is to be made again, whatever is gone or damaged in the run's folder is made again too."""
    shutil.copytree(finished.workspace, cli.workspace)
    table = cli.result.read_bytes()
    damage(cli.run_folder / name)
    cli.result.unlink()
    outcome = cli.run(**data)
    assert outcome.code == 0, outcome.err
    assert cli.result.read_bytes() == table


@pytest.mark.parametrize("damage", [Path.unlink, truncate], ids=["gone", "cut"])
def test_a_damaged_table_is_merged_again(damage: Any, cli: Any, data: dict[str, Path]) -> None:
    """A table that is gone or cut is made again from the labels that are there; nothing is fetched or decoded."""
    with HttpStore(data["volume"]) as store:
        run = {"volume": store.url, "points": data["points"]}
        assert cli.run(**run).code == 0
        table = cli.result.read_bytes()
        damage(cli.result)
        store.clear()
        outcome = cli.run(**run)
        assert outcome.code == 0, outcome.err
        assert {request.path for request in store.requests} == {"info"}
    assert "decoded" not in outcome.err
    assert cli.result.read_bytes() == table


@pytest.mark.parametrize("damage", [Path.unlink, truncate, scribble], ids=["gone", "cut", "something else"])
def test_damaged_cache_files(damage: Any, cli: Any, data: dict[str, Path], array: Any, voxels: Any,
                             write_points: Any) -> None:
    """Chunks whose cache file is gone or damaged are fetched again; a damaged cache never gives a label."""
    assert cli.run(**data).code == 0
    for path in cli.workspace.glob("cache/*/*.sqlite"):
        damage(path)
    output = cli.folder / "other.parquet"
    points = write_points(cli.folder / "other.npy", voxels[::-1])
    outcome = cli.run(volume=data["volume"], points=points, output=output)
    assert outcome.code == 0, outcome.err
    assert pq.read_table(output)["label"].to_pylist() == array[tuple(voxels[::-1].T)].tolist()


def test_changed_points_are_another_run(cli: Any, array: Any, voxels: Any, data: dict[str, Path],
                                        write_points: Any) -> None:
    """The points file's content decides: changed in place it is sampled anew, and the old result stays."""
    points = write_points(cli.folder / "p.csv", voxels)
    assert cli.run(volume=data["volume"], points=points).code == 0
    write_points(points, voxels[::-1])
    assert cli.run(volume=data["volume"], points=points).code == 0
    first, second = sorted(cli.workspace.glob("runs/*/result.parquet"), key=lambda path: path.stat().st_mtime_ns)
    assert pq.read_table(first)["label"].to_pylist() == array[tuple(voxels.T)].tolist()
    assert pq.read_table(second)["label"].to_pylist() == array[tuple(voxels[::-1].T)].tolist()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_output_that_another_run_replaced(suffix: str, cli: Any, array: Any, voxels: Any, data: dict[str, Path],
                                             write_points: Any) -> None:
    """An output that holds another run's table, be it of the same size, is not taken for one's own."""
    output = cli.folder / f"labelled.{suffix}"
    first, second = (write_points(cli.folder / f"{name}.npy", points)
                     for name, points in (("first", voxels), ("second", voxels[::-1])))
    contents = []
    for points in (first, second, first):
        outcome = cli.run(volume=data["volume"], points=points, output=output)
        assert outcome.code == 0, outcome.err
        contents.append(output.read_bytes())
    assert contents[0] != contents[1]
    assert contents[2] == contents[0]


def test_a_changed_info_is_another_run(cli: Any, array: Any, voxels: Any, tmp_path: Path, write_points: Any) -> None:
    """A volume that was remade in another form at the same place is read anew, cache and all."""
    points = write_points(cli.folder / "p.npy", voxels)
    for encoding, labels in (("raw", array), ("compressed_segmentation", array[::-1])):
        write_volume(tmp_path / "seg", labels, encoding=encoding, chunk_size=CHUNK)  # type: ignore[arg-type]
        output = cli.folder / f"{encoding}.parquet"
        assert cli.run(volume=tmp_path / "seg", points=points, output=output).code == 0
        assert pq.read_table(output)["label"].to_pylist() == labels[tuple(voxels.T)].tolist()


def test_the_same_volume_by_other_names(cli: Any, data: dict[str, Path]) -> None:
    """A path, a relative path and a cloudpath of one volume are one run."""
    folder = data["volume"]
    assert cli.run(**data).code == 0
    for name in (os.path.relpath(folder, cli.folder / "cwd"), f"file://{folder}/", f"precomputed://file://{folder}"):
        outcome = cli.run(volume=name, points=data["points"])
        assert (outcome.code, "nothing to do" in outcome.err) == (0, True), outcome.err


def test_a_run_of_another_key_in_the_folder(cli: Any, data: dict[str, Path]) -> None:
    """A run's folder that says it is of another run is left alone, with a message."""
    assert cli.run(**data).code == 0
    note = cli.run_folder / "run.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"key": "0" * 32}))
    outcome = cli.run(**data)
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err
    assert f"{note}: expected run key" in outcome.err.replace("file://", "")


@pytest.mark.parametrize("limit", [2_000, 26_000, 40_000])
def test_a_full_disk(limit: int, cli: Any, data: dict[str, Path], array: Any, voxels: Any, shim: Any) -> None:
    """A disk that fills up ends the run with a message on a file, nothing half-written; with room again it finishes."""
    outcome = cli.run(**data, env=shim(SMALL_DISK.replace("NUMBER", str(limit))))
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err, outcome.err
    assert f"{cli.workspace}" in outcome.err
    assert not list(cli.workspace.rglob("result.parquet"))
    outcome = cli.run(**data)
    assert outcome.code == 0, outcome.err
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()
    assert not list(cli.run_folder.rglob(".tmp-*"))


# In a mount namespace of its own, which ends with the command: a disk without a free byte.
FULL_DISK = """mount -t tmpfs -o size=100k tmpfs "$1" && cp -r "$2" "$1/workspace" && shift 2
cat /dev/zero > "$FILL" 2> /dev/null; exec "$@"
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_without_a_free_byte(workers: int, cli: Any, data: dict[str, Path]) -> None:
    """Resumed on a disk that is full from the start, the run says so and ends by itself."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounts need privileges that this user lacks")
    assert cli.run("PlanChunkGroups", **data).code == 0
    (cli.run_folder / "plan/manifest.json").unlink()
    disk = cli.folder / "disk"
    disk.mkdir()
    words = cli.command("SamplePoints", data | {"workers": workers, "workspace": disk / "workspace"})
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FULL_DISK, "sh", disk, cli.workspace, *words], capture_output=True,
        text=True, timeout=90, check=False, cwd=cli.folder / "cwd",
        env=os.environ | {"FILL": str(disk / "fill"), "HOME": str(cli.home)},
    )
    assert done.returncode > 0, "it crashed"
    assert "Traceback" not in done.stderr, done.stderr
    assert str(disk) in done.stderr, done.stderr


def test_a_workspace_that_is_a_file(cli: Any, data: dict[str, Path]) -> None:
    """A workspace that can't be one is named."""
    (cli.folder / "file").write_text("")
    outcome = cli.run(**data | {"workspace": cli.folder / "file"})
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err, outcome.err
    assert f"{cli.folder}/file" in outcome.err
