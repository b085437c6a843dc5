"""The short form of `python -m reliability.faults`: servers that fall silent, lie about lengths, or die and return."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability import worlds
from reliability.commands import Machine
from reliability.faults import STALL, Case, of_graph, of_store, run_case
from reliability.serve import mortal_store
from reliability.worlds import World
from voxelprobe.buckets import Bucket
from voxelprobe.errors import InputError, TransportError
from voxelprobe.locations import parse_location
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.transport import silence

SECONDS = 45.0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("stalls")
    # Neither gzip nor a length that fits tells of a flipped bit here: the store's checksum alone does.
    with worlds.plain_world(folder / "world", compress=None) as world:
        assert world.store is not None
        world.store.checksums = True
        machine = Machine(folder / "whole")
        world.sample(machine)
        yield world


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    line = Machine(tmp_path / "machine")
    yield line
    line.close()


@pytest.fixture
def _short_timeout() -> Iterator[None]:
    silence.set_read_timeout(1)
    yield
    silence.set_read_timeout(silence.READ_TIMEOUT_SECONDS)


@pytest.mark.parametrize(("name", "rate"), [
    ("stalled, silent", 0.1), ("Content-Length too small", 0.3), ("corrupted, right length", 0.3),
])
def test_a_store_that_fails_in_a_share_of_its_answers(name: str, rate: float, plain: World, machine: Machine) -> None:
    """The command, repeated where it ends with an error, ends with the exact table; it never hangs."""
    plain.clear()
    shares = of_store(plain, name, rate, random.Random(name))
    case = run_case(plain, Case("store", name, rate), machine, shares)
    plain.clear()
    assert case.problems == [], case.said
    assert (case.exact, case.met > 5) == (True, True)
    assert case.longest < SECONDS


def test_a_graph_server_that_falls_silent(tmp_path: Path, machine: Machine) -> None:
    """Calls for roots that are never answered are given up after ten times --read-timeout and made again."""
    with worlds.graphene_world(tmp_path / "world", points=500, batch=100) as world:
        whole = Machine(tmp_path / "whole")
        world.sample(whole)
        shares = of_graph(world, "stalled, silent", 0.3, random.Random(5))
        case = run_case(world, Case("graph", "stalled, silent", 0.3), machine, shares)
        world.clear()
    assert case.problems == [], case.said
    assert case.met > 0


def test_a_store_that_dies_and_returns(tmp_path: Path, machine: Machine) -> None:
    """A store that is killed in the middle of a run costs an error with its address at most; then the run goes on."""
    with worlds.plain_world(tmp_path / "world") as world, \
            mortal_store(tmp_path / "world/seg", latency_seconds=0.2) as store:
        world.parameters |= {"volume": store.url, "fetch_threads": 2, "workers": 4}
        command = machine.start(world.parameters)
        deadline = time.monotonic() + SECONDS
        while not list(machine.workspace.glob("runs/*/plan/manifest.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        store.kill()
        ended = command.wait()
        assert ended.code not in (0, None)
        assert "Traceback" not in ended.said
        assert f"{store.url}/" in ended.said
        assert "tried 6 times" in ended.said
        store.start()
        ended = machine.run(world.parameters)
        assert ended.code == 0, ended.said
        content = world.result(machine)
        assert content is not None
        assert world.is_exact(content)


def test_a_store_that_falls_silent_for_good(plain: World, machine: Machine) -> None:
    """Silent for three groups in turn, a store is not asked for the others: timeouts don't add up to days."""
    plain.clear()
    assert plain.store is not None
    plain.store.fault_for = lambda request: STALL if request.path != "info" else None
    ended = machine.run(plain.parameters | {"read_timeout": 1, "workers": 3, "audit": 0})
    asked = plain.chunks_asked()
    plain.clear()
    assert ended.code not in (0, None)
    assert "Traceback" not in ended.said
    assert re.search(r"not tried: stores or servers have failed \d+ times in a row, for \d+ s", ended.said), ended.said
    assert ended.seconds < SECONDS
    assert 0 < len(asked) < len(plain.chunk_names)
    assert machine.run(plain.parameters).code == 0
    assert plain.result(machine) == plain.table


@pytest.mark.usefixtures("_short_timeout")
@pytest.mark.parametrize("store", ["web server", "GCS"])
def test_a_points_table_in_a_silent_store(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that never answers what it is asked about a points table is given up."""
    with HttpStore(tmp_path, fault_for=lambda request: STALL) as silent:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", silent.url)
        place = parse_location(silent.url if store == "web server" else "gs://laboratory/tables")
        started = time.monotonic()
        with pytest.raises(TransportError, match=r"points\.csv"):
            Bucket(place).state("points.csv")
        assert time.monotonic() - started < SECONDS


def test_a_timeout_of_nothing(plain: World, machine: Machine) -> None:
    """A timeout of no second is refused in one line."""
    ended = machine.run(plain.parameters | {"read_timeout": 0})
    assert ended.code not in (0, None)
    assert "read-timeout 0: expected a second or more" in ended.said
    assert "Traceback" not in ended.said
    with pytest.raises(InputError):
        silence.set_read_timeout(0)


