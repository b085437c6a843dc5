"""Graph servers with a door: which file opens it, what is said when none does, and that no one sees the token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK, CREATED = (48, 32, 32), (16, 16, 16), 1_600_000_000.0
TOKEN = "f00dcafe0123456789abcdef5ec2e7"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChunkedGraph, Path]:
    few = np.random.default_rng(1).integers(1, 10, [n // 4 for n in SHAPE])
    watershed = graphene_watershed(few.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64), CHUNK)
    folder = tmp_path_factory.mktemp("graphene") / "ws"
    write_volume(folder, watershed.labels, chunk_size=CHUNK, resolution=(8, 8, 40))
    made = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    return made, folder


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> Path:
    voxels = np.random.default_rng(2).integers(0, SHAPE, (1000, 3))
    return Path(write_points(tmp_path_factory.mktemp("points") / "p.parquet", voxels))


def write_token(folder: Path, name: str, token: str = TOKEN) -> Path:
    """Return the file in which a token was put."""
    path = folder / "secrets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"token": token}))
    return path


def check_unseen(cli: Any, *texts: str) -> None:
    """The token is in none of the texts and in no file that the command left."""
    token = TOKEN.encode()
    assert not any(TOKEN in text for text in texts)
    files = [path for path in cli.folder.rglob("*") if path.is_file() and "secrets" not in path.parts]
    assert len(files) > 3
    assert [path for path in files if token in path.read_bytes() or TOKEN in str(path)] == []


PLACES = {
    "the host's file": ("own", "{host}-cave-secret.json"),
    "the file of every server": ("own", "cave-secret.json"),
    "the old name": ("own", "chunkedgraph-secret.json"),
    "in the home folder": ("home/.cloudvolume", "cave-secret.json"),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_token_is_found_and_not_seen(place: str, graph: Any, points: Path, cli: Any) -> None:
    """A token in CloudVolume's files opens the door, goes with every request, and shows nowhere, at any log level."""
    folder, name = PLACES[place]
    with GraphServer(graph[0], data_dir=graph[1], token=TOKEN) as server:
        write_token(cli.folder / folder, name.format(host=server.url.removeprefix("http://")))
        env = {"CLOUD_VOLUME_DIR": str(cli.folder / "own")} if folder == "own" else {}
        cli.workspace.mkdir(exist_ok=True)
        outcome = cli.run(volume=server.cloudpath, points=points, timestamp=CREATED, env=env, log_level="DEBUG",
                          workers=2 if place == "the host's file" else 1)
        assert outcome.code == 0, outcome.err
        assert {request.authorized for request in server.requests} == {True}
    result = cli.run_folder / "result-20200913T122640.000Z.parquet"
    assert pq.read_table(result)["status"].unique().to_pylist() == ["ok"]
    # Task ids are in Luigi's own lines.
    assert "ResolveRoots_" in outcome.err
    check_unseen(cli, outcome.out, outcome.err, str(pq.read_schema(result).metadata))


def test_no_token_where_none_is_wanted(graph: Any, points: Path, cli: Any) -> None:
    """A server that asks for no token is asked without one."""
    with GraphServer(graph[0], data_dir=graph[1]) as server:
        assert cli.run(volume=server.cloudpath, points=points, timestamp=CREATED).code == 0
        assert {request.authorized for request in server.requests} == {False}


# What the server wants and says, the token that is there, and what of that the message repeats.
DOORS: dict[str, tuple[dict[str, Any], str | None, list[str]]] = {
    "no token": ({"token": TOKEN}, None, ["answered 302", "to log in; no token was sent, since none of these has one"]),
    "a bad token": ({"token": "another"}, TOKEN, ["answered 401 invalid_token; the token was that of"]),
    "no permission": ({"token": TOKEN, "refusal": "missing_permission"}, TOKEN, ["answered 403 missing_permission"]),
    "terms not accepted": ({"token": TOKEN, "refusal": "missing_tos"}, TOKEN, ["answered 403 missing_tos"]),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_closed_door(door: str, graph: Any, points: Path, cli: Any) -> None:
    """A server that wants another token is asked once, and the message names the files that are looked for."""
    options, token, expected = DOORS[door]
    with GraphServer(graph[0], data_dir=graph[1], **options) as server:
        host = server.url.removeprefix("http://")
        if token is not None:
            expected = [*expected, str(write_token(cli.home / ".cloudvolume", "cave-secret.json", token))]
        outcome = cli.run(volume=server.cloudpath, points=points, timestamp=CREATED)
        assert outcome.code not in (0, None)
        assert "Traceback" not in outcome.err
        for text in [*expected, f"{cli.home}/.cloudvolume/secrets/{host}-cave-secret.json",
                     f"{cli.home}/.cloudvolume/secrets/cave-secret.json",
                     f"{cli.home}/.cloudvolume/secrets/chunkedgraph-secret.json"]:
            assert text in outcome.err, outcome.err
        assert [request.path for request in server.requests] == ["segmentation/table/probe/info"]
    assert TOKEN not in outcome.out + outcome.err


def test_a_token_that_ends_during_a_run(graph: Any, points: Path, cli: Any) -> None:
    """Refused half way, the run ends without showing the token; with one that is let in it goes on."""
    command = {"points": points, "timestamp": CREATED, "graphene_batch_size": 100, "log_level": "DEBUG"}
    with GraphServer(graph[0], data_dir=graph[1], token=TOKEN) as server:
        path = write_token(cli.home / ".cloudvolume", "cave-secret.json")
        server.fail("*roots_binary", Fault("status", status=401), times=None, skip=1)
        outcome = cli.run(volume=server.cloudpath, **command)
        assert outcome.code not in (0, None)
        assert f"answered 401; the token was that of {path}" in outcome.err
        check_unseen(cli, outcome.out, outcome.err)
        server.heal()
        server.clear()
        assert cli.run(volume=server.cloudpath, **command).code == 0
        assert server.ids_asked < len(graph[0].supervoxels)


@pytest.mark.parametrize(("table", "said"), [
    ("other", "answered 400 invalid_table_id no table other; is 'other' the table's name?"),
    ("probe?token=" + TOKEN, "a token belongs in a file"),
])
def test_a_wrong_address(table: str, said: str, graph: Any, points: Path, cli: Any) -> None:
    """A table that isn't there is asked for once; an address with a token in it is refused without repeating it."""
    with GraphServer(graph[0], data_dir=graph[1]) as server:
        outcome = cli.run(volume=f"graphene://{server.url}/segmentation/table/{table}", points=points)
        assert outcome.code not in (0, None)
        assert said in outcome.err, outcome.err
        assert "Traceback" not in outcome.err
        assert TOKEN not in outcome.err + outcome.out
        assert len(server.requests) == ("?" not in table)
