"""The cache attacked while runs are at work, several at once, and the run's own files damaged with their sizes kept."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK = (64, 48, 32), (8, 8, 8)
ARRAY = np.random.default_rng(1).integers(10**19, 11 * 10**18, SHAPE, dtype=np.uint64)
LOCKED_SECONDS = 10.0


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state") / "seg"
    write_volume(folder, ARRAY, chunk_size=CHUNK)
    return folder


def make_points(write_points: Any, folder: Path, seed: int) -> tuple[Path, list[int]]:
    """Return a table of points and their labels."""
    voxels = np.random.default_rng(seed).integers(0, SHAPE, (3000, 3))
    return write_points(folder / f"points-{seed}.npy", voxels), ARRAY[tuple(voxels.T)].tolist()


@contextlib.contextmanager
def attacking(work: Callable[[], None], pause: float) -> Iterator[list[int]]:
    """Do `work` again and again in a thread; gives how often, as the length of a list."""
    done, times = threading.Event(), []

    def go_on() -> None:
        while not done.wait(pause):
            work()
            times.append(1)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield times
    finally:
        done.set()
        thread.join()


def test_a_lock_of_another_process_is_waited_for(cli: Any, other_cli: Any, volume: Path, write_points: Any) -> None:
    """While a stranger holds SQLite's lock on the cache for 10 s, two workers wait; the table is right."""
    cache = cli.folder / "cache"
    points, _ = make_points(write_points, cli.folder, 1)
    assert other_cli.run(volume=volume, points=points, cache=cache).code == 0
    files = list(cache.glob("*/r*.sqlite"))
    # Other chunks are wanted too, so the files are written again; and those that are there are read.
    for path in files:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            keys = [key for (key,) in database.execute("SELECT key FROM chunks WHERE key NOT LIKE '% facts'")][::2]
            database.executemany("DELETE FROM chunks WHERE key IN (?, ? || ' facts')", [(key, key) for key in keys])
    strangers = [sqlite3.connect(path, isolation_level=None) for path in files]
    for stranger in strangers:
        stranger.execute("BEGIN EXCLUSIVE")
    more, labels = make_points(write_points, cli.folder, 2)
    started = time.monotonic()
    process = cli.start(volume=volume, points=more, cache=cache, workers=2)
    time.sleep(LOCKED_SECONDS)
    assert process.poll() is None
    for stranger in strangers:
        stranger.close()
    outcome = cli.wait(process)
    assert outcome.code == 0, outcome.err
    assert time.monotonic() - started > LOCKED_SECONDS
    assert pq.read_table(cli.result)["label"].to_pylist() == labels


@pytest.mark.parametrize("what", ["a file", "the folder", "bytes of a file", "a folder in a file's place"])
def test_a_cache_that_is_attacked_all_the_time(what: str, cli: Any, volume: Path, write_points: Any) -> None:
    """Files deleted, damaged or replaced while two workers use them cost fetches: the table is right.

    Where the attack is quicker than the mending, a run may end with an error; it has a message, and the same command
    finishes.
    """
    cache = cli.folder / "cache"
    points, labels = make_points(write_points, cli.folder, 3)
    rng = random.Random(1)

    def attack() -> None:
        files = list(cache.glob("*/r*.sqlite"))
        with contextlib.suppress(OSError, ValueError, IndexError):
            path = rng.choice(files)
            if what == "the folder":
                shutil.rmtree(cache)
            elif what == "bytes of a file":
                with path.open("r+b") as file:
                    for _ in range(3):
                        file.seek(rng.randrange(path.stat().st_size))
                        file.write(rng.randbytes(2))
            else:
                path.unlink()
                if what != "a file":
                    path.mkdir()

    with attacking(attack, 0.02) as times:
        outcome = cli.run(volume=volume, points=points, cache=cache, workers=2)
    assert times
    assert "Traceback" not in outcome.err, outcome.err
    if outcome.code != 0:
        assert "chunk cache" in outcome.err
        outcome = cli.run(volume=volume, points=points, cache=cache, workers=2)
    assert outcome.code == 0, outcome.err
    assert pq.read_table(cli.result)["label"].to_pylist() == labels


def test_runs_share_a_cache_that_is_too_small(cli: Any, other_cli: Any, volume: Path, write_points: Any) -> None:
    """Two runs at once, two workers each, evicting at every other write: no row lost, and nobody waits for ever."""
    runs = []
    for line, seed in ((cli, 4), (other_cli, 5)):
        points, labels = make_points(write_points, line.folder, seed)
        runs.append((line, labels, line.start(volume=volume, points=points, cache=cli.folder / "cache", workers=2,
                                              cache_bytes=200_000)))
    for line, labels, process in runs:
        outcome = line.wait(process)
        assert outcome.code == 0, outcome.err
        assert pq.read_table(line.result)["label"].to_pylist() == labels


@pytest.mark.parametrize(("place", "name"), [
    ("footer", "plan/points-000.parquet"), ("pages", "labels/group-000.parquet"),
])
def test_bits_that_flipped_in_the_runs_files(
    place: str, name: str, cli: Any, volume: Path, write_points: Any
) -> None:
    """Files of the run's folder with a bit flipped, their sizes kept, are named; without them the run is mended."""
    points, labels = make_points(write_points, cli.folder, 6)
    run = {"volume": volume, "points": points}
    assert cli.run(**run).code == 0
    table = cli.result.read_bytes()
    path = cli.run_folder / name
    content = bytearray(path.read_bytes())
    content[-100 if place == "footer" else len(content) // 3] ^= 4
    path.write_bytes(content)
    cli.result.unlink()
    if name.startswith("plan/"):
        (cli.run_folder / "labels/group-000.parquet").unlink()  # so that it is read
    outcome = cli.run(**run)
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err
    assert f"{path}: expected the columns" in outcome.err
    assert "Delete the file and run the same command" in outcome.err
    path.unlink()
    outcome = cli.run(**run)
    assert outcome.code == 0, outcome.err
    assert cli.result.read_bytes() == table
    assert pq.read_table(cli.result)["label"].to_pylist() == labels


@pytest.mark.parametrize("name", ["plan/manifest.json", "fetch/group-000.json", "labels/group-000.json"])
def test_a_marker_that_was_edited(name: str, cli: Any, volume: Path, write_points: Any) -> None:
    """A marker with other facts, its files untouched, is found and said; its stage is done again, to the same table."""
    points, _ = make_points(write_points, cli.folder, 7)
    assert cli.run(volume=volume, points=points).code == 0
    table = cli.result.read_bytes()
    path = cli.run_folder / name
    document = json.loads(path.read_text())
    for fact, value in document["facts"].items():
        document["facts"][fact] = value + 1 if type(value) is int else value
    path.write_text(json.dumps(document))
    cli.result.unlink()
    if name.startswith("fetch/"):
        (cli.run_folder / "labels/group-000.json").unlink()
    outcome = cli.run(volume=volume, points=points)
    assert outcome.code == 0, outcome.err
    assert f"{name} was changed after it was written" in outcome.err
    assert cli.result.read_bytes() == table
