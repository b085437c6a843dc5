"""Stores that fail: what is tried again, what is reported, and what the next run asks for."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.http_store import HttpStore, Request
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK = (64, 48, 32), (16, 16, 16)
# The chunk that goes wrong.
DAMAGED = "4_4_40/16-32_16-32_0-16"


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    few = np.random.default_rng(1).integers(2**63, 2**64, tuple(n // 4 for n in SHAPE), dtype=np.uint64)
    return few.repeat(4, 0).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(2).integers(0, SHAPE, (3000, 3))


@pytest.fixture(scope="module")
def points(voxels: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> Path:
    return Path(write_points(tmp_path_factory.mktemp("points") / "p.npy", voxels))


@pytest.fixture
def store(array: Any, tmp_path: Path) -> Iterator[HttpStore]:
    write_volume(tmp_path / "seg", array, chunk_size=CHUNK, compress="gzip")
    with HttpStore(tmp_path / "seg") as served:
        yield served


def check_right(cli: Any, outcome: Any, array: Any, voxels: Any) -> None:
    """The command ended well and every label is the array's."""
    assert outcome.code == 0, outcome.err
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()


FAULTS = {
    "503 a few times": (Fault("status", status=503), 3),
    "500 once": (Fault("status", status=500), 1),
    "connection reset": (Fault("reset"), 2),
    "short body": (Fault("short_body"), 1),
    "truncated body": (Fault("truncated"), 1),
    "flipped byte in a gzip body": (Fault("flipped"), 1),
    "slow body": (Fault("stall_body", seconds=0.3), 1),
}


@pytest.mark.parametrize(("path", "name"), [
    *((DAMAGED, name) for name in FAULTS),
    ("info", "503 a few times"), ("info", "connection reset"), ("info", "short body"),
])
def test_passing_faults_are_got_over(name: str, path: str, cli: Any, store: HttpStore, points: Path, array: Any,
                                     voxels: Any) -> None:
    """A fault that another try mends is tried again, and costs nothing but that."""
    fault, times = FAULTS[name]
    store.fail(path, fault, times=times)
    check_right(cli, cli.run(volume=store.url, points=points), array, voxels)
    asked = [request.path for request in store.requests]
    assert asked.count(path) == times + (fault.kind != "stall_body")
    assert len(asked) == 1 + 4 * 3 * 2 + times - (fault.kind == "stall_body")


def test_a_store_that_says_how_long_to_wait(cli: Any, store: HttpStore, points: Path, array: Any, voxels: Any) -> None:
    """After 429 with Retry-After the same object is not asked for before that."""
    times: list[float] = []

    def fault_for(request: Request) -> Fault | None:
        if request.path == DAMAGED:
            times.append(time.monotonic())
        return Fault("status", status=429, retry_after=2) if request.path == DAMAGED and len(times) == 1 else None

    store.fault_for = fault_for
    check_right(cli, cli.run(volume=store.url, points=points), array, voxels)
    assert len(times) == 2
    assert times[1] - times[0] >= 2


@pytest.mark.parametrize("path", ["info", DAMAGED])
@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_tried_again(status: int, path: str, cli: Any, store: HttpStore, points: Path) -> None:
    """A store that refuses is asked once, and the message names the address and the file for the credentials."""
    store.fail(path, Fault("status", status=status), times=None)
    outcome = cli.run(volume=store.url, points=points)
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err
    assert f"{store.url}/{path}: the server answered {status}" in outcome.err
    assert f"{cli.home}/.cloudvolume/secrets" in outcome.err
    assert "http-secret.json" in outcome.err
    assert [request.path for request in store.requests].count(path) == 1


def test_credentials_are_used(cli: Any, points: Path, array: Any, voxels: Any, tmp_path: Path) -> None:
    """With the file that the message names, the store lets the run in."""
    write_volume(tmp_path / "seg", array, chunk_size=CHUNK)
    with HttpStore(tmp_path / "seg", require_basic_auth=("ada", "secret")) as store:
        refused = cli.run(volume=store.url, points=points)
        assert refused.code != 0
        assert "http-secret.json" in refused.err
        secrets = cli.home / ".cloudvolume/secrets"
        secrets.mkdir(parents=True)
        (secrets / "http-secret.json").write_text('{"user": "ada", "password": "secret"}')
        check_right(cli, cli.run(volume=store.url, points=points), array, voxels)


def test_a_store_that_stays_down(cli: Any, store: HttpStore, points: Path, array: Any, voxels: Any) -> None:
    """After all tries the run ends with the address and the reason; once the store is back, the rest is fetched."""
    store.fail(DAMAGED, Fault("reset"), times=None)
    outcome = cli.run(volume=store.url, points=points)
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err
    assert f"{store.url}/{DAMAGED}" in outcome.err
    assert "(tried 6 times)" in outcome.err
    store.heal()
    store.clear()
    check_right(cli, cli.run(volume=store.url, points=points), array, voxels)
    assert [request.path for request in store.requests].count(DAMAGED) == 1
    assert len(store.requests) < 12  # its group's other chunks at most


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzip"])
def test_a_server_without_ranges(gzipped: bool, cli: Any, points: Path, array: Any, voxels: Any,
                                 tmp_path: Path) -> None:
    """A simple server that answers every range with the whole shard costs bytes, not rightness."""
    kind = "gzip" if gzipped else "raw"
    sharding = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 1, "data_encoding": kind,
                "minishard_index_encoding": kind}
    write_volume(tmp_path / "seg", array, chunk_size=CHUNK, sharding=sharding)
    with HttpStore(tmp_path / "seg", ranges=False) as store:
        check_right(cli, cli.run(volume=store.url, points=points), array, voxels)


CORRUPT = {
    "raw": lambda good: good[:-100],
    "compressed_segmentation": lambda good: good[: len(good) // 2],
    "crackle": lambda good: b"crkl" + bytes(200),
    "compresso": lambda good: good[: len(good) // 2],
}


@pytest.mark.parametrize("encoding", CORRUPT)
def test_a_corrupt_chunk(encoding: str, cli: Any, points: Path, array: Any, voxels: Any, tmp_path: Path) -> None:
    """A corrupt chunk is named and costs its own points only; once mended, a re-run asks for it alone, and heals."""
    write_volume(tmp_path / "seg", array, encoding=encoding, chunk_size=CHUNK, compress="gzip")  # type: ignore[arg-type]
    file = tmp_path / "seg" / (DAMAGED + ".gz")
    good = file.read_bytes()
    inside = (voxels // 16 == (1, 1, 0)).all(axis=1)
    expected = array[tuple(voxels.T)].astype(object)
    expected[inside] = None
    with HttpStore(tmp_path / "seg") as store:
        file.write_bytes(gzip.compress(CORRUPT[encoding](gzip.decompress(good)), mtime=0))
        outcome = cli.run(volume=store.url, points=points)
        assert outcome.code not in (0, None)
        assert "Traceback" not in outcome.err
        assert f"chunk 16-32_16-32_0-16 of {store.url}/4_4_40: " in outcome.err
        assert f"1 corrupt chunk left {inside.sum()} points without a label" in outcome.err
        table = pq.read_table(cli.result)
        assert table["label"].to_pylist() == expected.tolist()
        assert table["status"].to_pylist() == ["corrupt_chunk" if bad else "ok" for bad in inside]
        file.write_bytes(good)
        store.clear()
        check_right(cli, cli.run(volume=store.url, points=points), array, voxels)
        assert {request.path for request in store.requests} == {"info", DAMAGED}


def test_damage_that_a_checksum_shows(cli: Any, points: Path, array: Any, voxels: Any, store: HttpStore) -> None:
    """A gzip body that is damaged for good is a corrupt chunk, like one that contradicts its encoding."""
    store.fail(DAMAGED, Fault("flipped"), times=None)
    outcome = cli.run(volume=store.url, points=points)
    assert outcome.code not in (0, None)
    assert "chunk 16-32_16-32_0-16" in outcome.err
    statuses = pq.read_table(cli.result)["status"].value_counts().to_pylist()
    inside = int((voxels // 16 == (1, 1, 0)).all(axis=1).sum())
    counts = {entry["values"]: entry["counts"] for entry in statuses}
    assert counts == {"ok": len(voxels) - inside, "corrupt_chunk": inside}
    store.heal()
    store.clear()
    check_right(cli, cli.run(volume=store.url, points=points), array, voxels)
    assert {request.path for request in store.requests} == {"info", DAMAGED}
