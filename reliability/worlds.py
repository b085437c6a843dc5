"""Small worlds for a run: a volume behind a server, points over it, and the table that has to come of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reliability.commands import Machine
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.s3_server import s3_server
from voxelprobe.testing.store_gate import StoreGate
from voxelprobe.testing.volumes import chunk_name, iterate_chunks, write_volume

SHAPE, CHUNK = (80, 64, 48), (16, 16, 16)
CREATED = 1_600_000_000.0
POINTS = 6000
BUCKET = "laboratory"


@dataclass
class World:
    """A volume and points over it.

    Attributes
    ----------
    parameters
        What the command is given.
    truth
        The columns that the table must have, by name.
    store, graph, gate
        The servers, as far as there are any: of chunks, of roots, and what stands before a bucket.
    table, audited
        The bytes of the table of a run that nothing harmed, and the chunks that it asked for a second time, for its
        audit; set by `sample`.
    """

    name: str
    parameters: dict[str, Any]
    truth: dict[str, list[int | None]]
    store: HttpStore | None = None
    graph: GraphServer | None = None
    gate: StoreGate | None = None
    client: Any = None
    chunk_names: dict[int, str] = field(default_factory=dict)
    table: bytes = b""
    audited: set[str] = field(default_factory=set)

    def clear(self) -> None:
        """Have the servers count anew, and fail no more."""
        for server in (self.store, self.graph):
            if server is not None:
                server.heal()
                server.clear()
        if self.store is not None:
            self.store.fault_for = None
        if self.gate is not None:
            self.gate.clear()

    def of_machine(self, machine: Machine) -> dict[str, Any]:
        """Return the command's parameters on a machine: a bucket's workspace has the machine's family name."""
        if self.gate is None:
            return self.parameters
        return self.parameters | {"workspace": f"{self.bucket_url}/{machine.folder.name.split('.')[0]}"}

    @property
    def bucket_url(self) -> str:
        """Return the bucket's cloudpath, through the gate."""
        assert self.gate is not None
        return self.gate.url.replace("http://", "s3://http://", 1) + f"/{BUCKET}"

    def result(self, machine: Machine) -> bytes | None:
        """Return the bytes of the one result, or None if there is none or more than one."""
        if self.gate is not None:
            prefix = machine.folder.name.split(".")[0] + "/"
            keys = [key for key in self.keys(prefix) if key.endswith(".parquet") and "/result" in key]
            return self.client.get_object(Bucket=BUCKET, Key=keys[0])["Body"].read() if len(keys) == 1 else None
        found = list(machine.workspace.glob("runs/*/result*.parquet"))
        return found[0].read_bytes() if len(found) == 1 else None

    def keys(self, prefix: str) -> list[str]:
        """Return the names of the bucket's objects that begin like this."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def sample(self, machine: Machine) -> None:
        """Run the command with nothing in its way, and hold its table against the truth.

        Raises
        ------
        AssertionError
            If that fails.
        """
        ended = machine.run(self.of_machine(machine))
        assert ended.code == 0, ended.said
        content = self.result(machine)
        assert content is not None, ended.said
        assert self.is_exact(content)
        self.table = content
        if self.store is not None:
            self.audited = {name for name, count in self.chunks_asked().items() if count > 1}
        self.clear()

    def is_exact(self, content: bytes) -> bool:
        """Return whether a table has the truth in every row."""
        table = pq.read_table(pa.BufferReader(content))
        return all(table[name].to_pylist() == values for name, values in self.truth.items())

    def chunks_asked(self) -> Counter[str]:
        """Return how often the store was asked for each chunk."""
        assert self.store is not None
        names = set(self.chunk_names.values())
        return Counter(request.path for request in self.store.requests if request.path in names)

    def committed(self, cache: Path) -> set[str]:
        """Return the names of the chunks that the cache's files hold, other than what a power cut has damaged."""
        found: set[str] = set()
        for path in cache.rglob("*.sqlite"):
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as database:
                if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'chunks'").fetchone():
                    found |= {self.chunk_names[int(key)] for (key,) in database.execute("SELECT key FROM chunks")
                              if str(key).isdecimal()}
        return found


def _array() -> Any:
    few = np.random.default_rng(1).integers(2**63, 2**64, tuple(n // 4 for n in SHAPE), dtype=np.uint64)
    return few.repeat(4, 0).repeat(4, 1).repeat(4, 2)


def _voxels(low: int, points: int, seed: int = 2) -> Any:
    return np.random.default_rng(seed).integers(low, SHAPE, (points, 3))


def write_points(path: Path, voxels: Any) -> Path:
    """Return `path`, written as a CSV of `x,y,z`."""
    lines = ["x,y,z", *(",".join(map(str, row)) for row in voxels.tolist())]
    path.write_text("\n".join(lines) + "\n")
    return path


def truth_of(array: Any, voxels: Any, names: Mapping[str, Any]) -> dict[str, list[int | None]]:
    """Return the columns of a table: null outside of the array, else what `names` have there."""
    inside = ((voxels >= 0) & (voxels < array.shape)).all(axis=1)
    at = np.where(inside[:, None], voxels, 0)
    return {name: [int(value) if there else None for value, there in zip(values[tuple(at.T)], inside, strict=True)]
            for name, values in names.items()}


def _names_of_chunks(info: dict[str, Any], chunk: tuple[int, int, int] = CHUNK) -> dict[int, str]:
    """Return the chunks' names by number: x runs first."""
    scale, grid = info["scales"][0], [-(-n // c) for n, c in zip(SHAPE, chunk, strict=True)]
    return {x + grid[0] * (y + grid[1] * z): chunk_name(scale, (x, y, z))
            for (x, y, z), _ in iterate_chunks(SHAPE, chunk)}


@contextlib.contextmanager
def plain_world(folder: Path, *, points: int = POINTS, latency_seconds: float = 0.0, compress: Any = "gzip",
                chunk: tuple[int, int, int] = CHUNK) -> Iterator[World]:
    """Give a volume behind a web server: of 60 chunks, or of another number where their size is given."""
    array, voxels = _array(), _voxels(-1, points)
    folder.mkdir(parents=True, exist_ok=True)
    info = write_volume(folder / "seg", array, chunk_size=chunk, compress=compress)
    table = write_points(folder / "points.csv", voxels)
    with HttpStore(folder / "seg", latency_seconds=latency_seconds) as store:
        yield World("plain", {"volume": store.url, "points": table, "fetch_threads": 4},
                    truth_of(array, voxels, {"label": array}), store, chunk_names=_names_of_chunks(info, chunk))


@contextlib.contextmanager
def graphene_world(folder: Path, *, points: int = POINTS, latency_seconds: float = 0.0, batch: int = 150) -> \
        Iterator[World]:
    """Give a watershed behind a web server, and the server of its graph."""
    few = np.random.default_rng(1).integers(0, 40, [n // 4 for n in SHAPE])
    watershed = graphene_watershed(few.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64), CHUNK)
    voxels = _voxels(-1, points)
    folder.mkdir(parents=True, exist_ok=True)
    info = write_volume(folder / "ws", watershed.labels, chunk_size=CHUNK, resolution=(8, 8, 40), compress="gzip")
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    roots = graph.roots_at(watershed.labels.ravel(), CREATED).reshape(SHAPE)
    table = write_points(folder / "points.csv", voxels)
    with HttpStore(folder / "ws", latency_seconds=latency_seconds) as store, \
            GraphServer(graph, data_dir=store.url, watershed_info=info, latency_seconds=latency_seconds) as server:
        parameters = {"volume": server.cloudpath, "points": table, "fetch_threads": 4, "timestamp": CREATED,
                      "graphene_batch_size": batch}
        truth = truth_of(watershed.labels, voxels, {"supervoxel_id": watershed.labels, "root_id": roots})
        yield World("graphene", parameters, truth, store, server, chunk_names=_names_of_chunks(info))


def with_other_points(world: World, path: Path) -> World:
    """Return a plain world with other points over the same volume."""
    array, voxels = _array(), _voxels(-1, POINTS, seed=3)
    return dataclasses.replace(world, parameters=world.parameters | {"points": write_points(path, voxels)},
                               truth=truth_of(array, voxels, {"label": array}), table=b"")


def split_a_root(graph: ChunkedGraph, at: float) -> None:
    """Take every other supervoxel from the root with most of them."""
    root = max((int(one) for one in graph.roots), key=lambda one: len(graph.members(one)))
    graph.split(root, graph.members(root)[::2], at=at)


@contextlib.contextmanager
def bucket_world(folder: Path, *, points: int = POINTS, sharded: bool = True,
                 chunk: tuple[int, int, int] = CHUNK) -> Iterator[World]:
    """Give a volume in a bucket of moto's S3, behind a gate that records; a machine's workspace is a bucket too.

    This process's environment has the credentials meanwhile.
    """
    import boto3

    array, voxels = _array(), _voxels(-1, points)
    folder.mkdir(parents=True, exist_ok=True)
    sharding = {"preshift_bits": 0, "minishard_bits": 1, "shard_bits": 2} if sharded else None
    info = write_volume(folder / "seg", array, chunk_size=chunk, sharding=sharding)
    table = write_points(folder / "points.csv", voxels)
    before = dict(os.environ)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        os.environ.pop(name, None)
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1")
    try:
        with s3_server() as address, StoreGate(address) as gate:
            client = boto3.client("s3", endpoint_url=f"http://{address}")
            client.create_bucket(Bucket=BUCKET)
            for path in (folder / "seg").rglob("*"):
                if path.is_file():
                    client.put_object(Bucket=BUCKET, Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
            world = World("bucket", {}, truth_of(array, voxels, {"label": array}), gate=gate, client=client,
                          chunk_names=_names_of_chunks(info, chunk))
            world.parameters = {"volume": f"{world.bucket_url}/seg", "points": table, "fetch_threads": 4}
            yield world
    finally:
        os.environ.clear()
        os.environ.update(before)
