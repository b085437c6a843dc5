"""Points that could not be read stand in failed.parquet, are tried again by the same command, and then no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK, OFFSET = (64, 48, 32), (16, 16, 16), (10, 20, -5)
DAMAGED, BEGIN = "4_4_40/26-42_36-52_-5-11", (26, 36, -5)


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    return np.random.default_rng(1).integers(2**63, 2**64, SHAPE, dtype=np.uint64)


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(2).integers(0, SHAPE, (2, 1500, 3)) + OFFSET


@pytest.fixture(scope="module")
def points(voxels: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> Path:
    """Two points a row, in voxels of 2 x 2 x 20 nm: one of whole numbers, one of fractions."""
    first, second = voxels * 2
    columns = {f"pre_{axis}": first[:, i] for i, axis in enumerate("xyz")}
    columns |= {f"post_{axis}": second[:, i] + 0.25 for i, axis in enumerate("xyz")}
    return Path(write_points(tmp_path_factory.mktemp("points") / "p.parquet", pa.table(columns)))


@pytest.fixture
def store(array: Any, tmp_path: Path) -> Iterator[HttpStore]:
    write_volume(tmp_path / "seg", array, chunk_size=CHUNK, compress="gzip", voxel_offset=OFFSET)
    with HttpStore(tmp_path / "seg") as served:
        yield served


def expected_in(voxels: Any, begin: Any) -> set[tuple[Any, ...]]:
    """Return row, prefix, coordinates and voxel of the points in a chunk."""
    found = set()
    for prefix, all_of, more in (("pre", voxels[0], 0), ("post", voxels[1], 0.25)):
        for row in np.flatnonzero(((all_of >= begin) & (all_of < np.array(begin) + CHUNK)).all(axis=1)).tolist():
            voxel = all_of[row].tolist()
            found.add((row, prefix, *(2 * v + more for v in voxel), *voxel))
    return found


def letters(cli: Any) -> Any:
    return pq.ParquetFile(cli.run_folder / "failed.parquet").read()


def rows_of(table: pa.Table) -> set[tuple[Any, ...]]:
    names = ["row", "prefix", "x", "y", "z", "voxel_x", "voxel_y", "voxel_z"]
    rows = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    assert len(rows) == len(set(rows))
    return set(rows)


def check_right(cli: Any, array: Any, voxels: Any) -> None:
    table = pq.ParquetFile(cli.result).read()
    for prefix, all_of in zip(("pre", "post"), voxels, strict=True):
        assert table[f"{prefix}_label"].to_pylist() == array[tuple((all_of - OFFSET).T)].tolist()


@pytest.mark.parametrize("audit", ["0", "all"])
def test_a_corrupt_chunk(audit: str, cli: Any, other_cli: Any, store: HttpStore, points: Path, array: Any, voxels: Any,
                         tmp_path: Path) -> None:
    """The points of a corrupt chunk are listed; it alone is asked for again; mended, it leaves no trace."""
    run = {"volume": store.url, "points": points, "point_columns": "pre,post", "coord_resolution": "2,2,20",
           "audit": audit}
    file = tmp_path / "seg" / f"{DAMAGED}.gz"
    sound = file.read_bytes()
    assert other_cli.run(**run).code == 0
    file.write_bytes(sound[:-20])
    for attempt in range(2):
        store.clear()
        outcome = cli.run(**run)
        assert outcome.code == 30, outcome.err
        listed = letters(cli)
        assert rows_of(listed) == expected_in(voxels, BEGIN)
        assert set(listed["status"].to_pylist()) == {"corrupt_chunk"}
        assert set(listed["chunk"].to_pylist()) == {f"chunk {DAMAGED.split('/')[1]} of {store.url}/4_4_40"}
        assert all("gzip" in message for message in listed["message"].to_pylist())
        assert f"failed   {listed.num_rows} points, listed in {cli.run_folder}/failed.parquet" in outcome.out
        assert attempt == 0 or {request.path for request in store.requests} == {"info", DAMAGED}
    file.write_bytes(sound)
    store.clear()
    outcome = cli.run(**run)
    assert outcome.code == 0, outcome.err
    asked = [request.path for request in store.requests if request.path != "info"]
    # Once for the label; of the audit's reading, since that was done when it was damaged, once more.
    assert asked == [DAMAGED] * (1 + (audit == "all"))
    assert letters(cli).num_rows == 0
    assert "failed" not in outcome.out
    check_right(cli, array, voxels)
    assert cli.result.read_bytes() == other_cli.result.read_bytes()
    assert "nothing to do" in cli.run(**run).err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_chunk_that_is_refused(workers: int, cli: Any, store: HttpStore, points: Path, array: Any,
                                 voxels: Any) -> None:
    """The points of a group whose chunks can't be had are listed at the end; the next run does that group alone."""
    run = {"volume": store.url, "points": points, "point_columns": "pre,post", "coord_resolution": "2,2,20",
           "workers": workers}
    store.fail(DAMAGED, Fault("status", status=403), times=None)
    outcome = cli.run(**run)
    assert outcome.code == 30, outcome.err
    assert "Traceback" not in outcome.err
    listed = letters(cli)
    chunks = {text.split()[1] for text in listed["chunk"].to_pylist()}
    assert DAMAGED.split("/")[1] in chunks
    assert rows_of(listed) == set().union(*(expected_in(voxels, [int(part.rsplit("-", 1)[0])
                                                                 for part in chunk.split("_")]) for chunk in chunks))
    assert set(listed["status"].to_pylist()) == {"not_fetched"}
    assert all("403" in message for message in set(listed["message"].to_pylist()))
    assert f"{listed.num_rows:,} points could not be read, listed in {cli.run_folder}/failed.parquet" in outcome.err
    assert not cli.result.exists()
    store.heal()
    store.clear()
    outcome = cli.run(**run)
    assert outcome.code == 0, outcome.err
    asked = {request.path.split("/")[1] for request in store.requests if request.path != "info"}
    assert asked <= chunks
    assert letters(cli).num_rows == 0
    check_right(cli, array, voxels)


def test_no_list_without_failures(cli: Any, store: HttpStore, points: Path) -> None:
    """A run that reads everything leaves no list."""
    outcome = cli.run(volume=store.url, points=points, point_columns="pre,post", coord_resolution="2,2,20")
    assert outcome.code == 0, outcome.err
    assert not list(cli.run_folder.rglob("failed*"))
