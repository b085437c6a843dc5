"""The server double, proven faithful by CloudVolume and CAVEclient: what they read from it is the graph's truth.

The clients run in processes of their own, with a home folder of their own: both look for tokens in the user's.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe.testing.graph_model import ChunkedGraph, Watershed, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.segmentation import neurite_segmentation
from voxelprobe.testing.volumes import write_volume

SHAPE, OFFSET, TOKEN = (70, 60, 33), (13, 7, 101), "0123456789abcdef"
CREATED, SPLIT, MERGE = 1_600_000_000.0, 1_650_000_000.125, 1_700_000_000.5
# CloudVolume rounds up to whole seconds, so it can't ask between an edit and the next second.
WHOLE_SECONDS = [CREATED, SPLIT - 0.125, SPLIT + 0.875, MERGE - 0.5, MERGE + 0.5]
ANY_TIME = [CREATED, SPLIT - 0.001, SPLIT, MERGE - 0.001, MERGE, MERGE + 1e6]
UNKNOWN = [(1 << 56) + (1023 << 46) + number for number in range(126_000)]

CLOUD_VOLUME = """
import json, sys
from cloudvolume import CloudVolume
asked, answers = json.load(sys.stdin), {}
points = [tuple(point) for point in asked["points"]]
for cloudpath in asked["cloudpaths"]:
    volume = CloudVolume(cloudpath, progress=False, lru_bytes=int(1e8))
    def read(**options):
        values = volume.scattered_points(points, **options)
        return [int(values[point]) for point in points]
    supervoxels = read(agglomerate=False)
    answers[cloudpath] = {
        "supervoxels": supervoxels,
        "roots": [read(agglomerate=True, timestamp=at) for at in asked["times"]],
        "layer2": [read(agglomerate=True, timestamp=at, stop_layer=2) for at in asked["times"]],
        "chunk_of_id": [volume.meta.decode_chunk_position(label).tolist() if label else None for label in supervoxels],
        "chunk_of_point": [volume.meta.point_to_chunk_position(point, mip=0).tolist() for point in points],
        "many": [int(root) for root in volume.get_roots(supervoxels + asked["unknown"], timestamp=asked["times"][0])],
    }
json.dump(answers, sys.stdout)
"""

CAVE_CLIENT = """
import datetime, json, sys
from caveclient.auth import AuthClient
from caveclient.chunkedgraph import ChunkedGraphClient
asked, answers = json.load(sys.stdin), {}
times = [datetime.datetime.fromtimestamp(at, datetime.UTC) for at in asked["times"]]
ints = lambda values: [int(value) for value in values]
for url in asked["urls"]:
    graph = ChunkedGraphClient(server_address=url, table_name="probe", auth_client=AuthClient(server_address=url))
    ids = asked["ids"]
    roots = [ints(graph.get_roots(ids, timestamp=at)) for at in times]
    old, new = graph.get_delta_roots(times[0], times[-1])
    answers[url] = {
        "roots": roots,
        "layer2": [ints(graph.get_roots(ids, timestamp=at, stop_layer=2)) for at in times],
        "one": [int(graph.get_root_id(ids[0], timestamp=at)) for at in times],
        "latest": [graph.is_latest_roots(roots[0], timestamp=at).tolist() for at in times],
        "made": [time.timestamp() for time in graph.get_root_timestamps(roots[-1][:-1])],
        "delta": [ints(old), ints(new)],
        "oldest": graph.get_oldest_timestamp().timestamp(),
        "cloudpath": graph.cloudvolume_path,
        "version": str(graph.server_version),
        "n_layers": graph.segmentation_info["graph"]["n_layers"],
    }
json.dump(answers, sys.stdout)
"""

STRANGER = """
import sys
from caveclient.auth import AuthClient
from caveclient.chunkedgraph import ChunkedGraphClient
ChunkedGraphClient(server_address=sys.argv[1], table_name="probe", auth_client=AuthClient(token=sys.argv[2] or None),
                   api_version=1).get_roots([1])
"""


@dataclass(frozen=True)
class World:
    """A watershed on disk, its graph after a split and a merge, and a server of each version."""

    watershed: Watershed
    graph: ChunkedGraph
    servers: dict[int, GraphServer]
    points: np.ndarray[Any, Any]
    home: Path

    @property
    def supervoxels(self) -> np.ndarray[Any, Any]:
        """Return the supervoxel under each point."""
        return self.watershed.labels[tuple((self.points - OFFSET).T)]

    def run(self, program: str, *arguments: str, asked: object = None, check: bool = True) -> Any:
        """Return what a program prints, as JSON, or its errors' text if it may fail."""
        own = {"HOME": str(self.home), "CLOUD_VOLUME_DIR": str(self.home / ".cloudvolume"), "BROWSER": "true",
               "CLOUD_FILES_DIR": str(self.home / ".cloudfiles"), "PATH": os.environ["PATH"], "NO_PROXY": "*"}
        ended = subprocess.run([sys.executable, "-W", "ignore", "-c", program, *arguments], env=own, cwd=self.home,
                               input=json.dumps(asked), capture_output=True, text=True, check=False)
        assert (ended.returncode == 0) == check, ended.stderr
        return json.loads(ended.stdout) if check else ended.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("home")
    segmentation = neurite_segmentation(SHAPE, seed=3, diameter=9)
    watershed = graphene_watershed(segmentation, (16, 16, 8), voxel_offset=OFFSET, piece_size=(8, 16, 8))
    write_volume(home / "watershed", watershed.labels, encoding="compressed_segmentation", chunk_size=(20, 20, 10),
                 voxel_offset=OFFSET, resolution=(8, 8, 40), compress="gzip")
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    # The two largest objects: many points lie in them.
    roots, counts = np.unique(graph.roots_at(watershed.ids, CREATED), return_counts=True)
    large, second = (int(root) for root in roots[np.argsort(-counts)[:2]])
    off, _ = graph.split(large, graph.members(large)[::2], at=SPLIT)
    graph.merge([off, second], at=MERGE)
    points = np.random.default_rng(8).permutation(np.argwhere(np.ones(SHAPE)))[:250] + OFFSET
    secrets = home / ".cloudvolume" / "secrets"
    secrets.mkdir(parents=True)
    with (GraphServer(graph, data_dir=home / "watershed", version=2, token=TOKEN) as two,
          GraphServer(graph, data_dir=home / "watershed", version=3, token=TOKEN) as three):
        for server in (two, three):
            host = server.url.removeprefix("http://")
            (secrets / f"{host}-cave-secret.json").write_text(json.dumps({"token": TOKEN}))
        yield World(watershed, graph, {2: two, 3: three}, points, home)


@pytest.fixture(scope="module")
def cloud_volume(world: World) -> dict[str, Any]:
    paths = [world.servers[2].cloudpath, world.servers[3].cloudpath,
             f"graphene://{world.servers[3].url}/segmentation/api/v1/probe",
             f"graphene://{world.servers[3].url}/segmentation/1.0/probe"]
    return world.run(CLOUD_VOLUME, asked={"cloudpaths": paths, "points": world.points.tolist(), "times": WHOLE_SECONDS,
                                          "unknown": UNKNOWN})


@pytest.fixture(scope="module")
def cave_client(world: World) -> dict[str, Any]:
    ids = [*world.watershed.ids[::7].tolist(), 0]
    return world.run(CAVE_CLIENT, asked={"urls": [server.url for server in world.servers.values()], "ids": ids,
                                         "times": ANY_TIME})


def test_cloud_volume_reads_the_graphs_roots(world: World, cloud_volume: dict[str, Any]) -> None:
    """CloudVolume's supervoxels and roots are the truth before and after a split and a merge, by every form of URL."""
    assert len(cloud_volume) == 4
    for answer in cloud_volume.values():
        assert answer["supervoxels"] == world.supervoxels.tolist()
        for at, roots, nodes in zip(WHOLE_SECONDS, answer["roots"], answer["layer2"], strict=True):
            assert roots == world.graph.roots_at(world.supervoxels, at).tolist()
            assert nodes == world.graph.roots_at(world.supervoxels, at, stop_layer=2).tolist()


def test_cloud_volume_sends_many_ids_gzipped(world: World, cloud_volume: dict[str, Any]) -> None:
    """Above 1 MB CloudVolume sends and takes gzip: ids that the graph doesn't know have root 0."""
    for answer in cloud_volume.values():
        assert answer["many"] == [*answer["roots"][0], *[0] * len(UNKNOWN)]
    for server in world.servers.values():
        assert {call.encoding for call in server.calls("roots_binary") if len(call.ids) > 125_000} == {"gzip"}


def test_the_edits_are_seen_in_the_points(world: World, cloud_volume: dict[str, Any]) -> None:
    """The comparison means something: the edits change the roots of points, and some points are background."""
    roots = np.array(cloud_volume[world.servers[3].cloudpath]["roots"], np.uint64)
    changed = [(before != after).any() for before, after in itertools.pairwise(roots)]
    assert changed == [False, True, False, True]
    assert (roots == 0).any(1).all()


def test_cloud_volume_finds_ids_in_their_chunks(cloud_volume: dict[str, Any]) -> None:
    """CloudVolume's own arithmetic decodes each supervoxel to the chunk of its point."""
    for answer in cloud_volume.values():
        for of_id, of_point in zip(answer["chunk_of_id"], answer["chunk_of_point"], strict=True):
            assert of_id in (None, of_point)


def test_cave_client_reads_the_graphs_roots(world: World, cave_client: dict[str, Any]) -> None:
    """CAVEclient's roots are the truth to the millisecond, on both versions."""
    ids = [*world.watershed.ids[::7].tolist(), 0]
    for answer in cave_client.values():
        for at, roots, nodes, one in zip(ANY_TIME, answer["roots"], answer["layer2"], answer["one"], strict=True):
            assert roots == world.graph.roots_at(ids, at).tolist()
            assert nodes == world.graph.roots_at(ids, at, stop_layer=2).tolist()
            assert one == roots[0]
        assert len({tuple(roots) for roots in answer["roots"]}) == 3


def test_cave_client_asks_about_roots(world: World, cave_client: dict[str, Any]) -> None:
    """CAVEclient understands what the server says of roots, intervals and itself."""
    for version, server in world.servers.items():
        answer = cave_client[server.url]
        for at, latest in zip(ANY_TIME, answer["latest"], strict=True):
            assert latest == world.graph.latest(answer["roots"][0], at).tolist()
        assert False in answer["latest"][-1]
        assert answer["delta"] == [ids.tolist() for ids in world.graph.delta(CREATED, ANY_TIME[-1])]
        made = world.graph.root_timestamps(answer["roots"][-1][:-1])
        assert answer["made"] == made.tolist()
        assert answer["oldest"] == SPLIT - 0.5
        assert answer["n_layers"] == world.watershed.layout.n_layers
        assert answer["version"].startswith(str(version))
        assert answer["cloudpath"] == f"graphene://{server.url}/segmentation/api/v1/probe"


@pytest.mark.parametrize(("token", "error"), [("", "AuthException"), ("bad", "invalid_token")])
def test_cave_client_is_sent_away(world: World, token: str, error: str) -> None:
    """Without a token CAVEclient ends at the login page, with a bad one at 401: both as from the real one."""
    with GraphServer(world.graph, data_dir=world.home / "watershed", token=TOKEN) as server:
        assert error in world.run(STRANGER, server.url, token, check=False)
