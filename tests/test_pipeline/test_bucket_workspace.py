"""Runs whose workspace is a bucket: what is written and in which order, and other machines that go on from there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.s3_server import s3_server
from voxelprobe.testing.store_gate import Request, StoreGate, Verdict
from voxelprobe.testing.volumes import chunk_name, write_volume

SHAPE, CHUNK, SHARDS = (64, 32, 32), (8, 8, 8), 4
SHARDING = {"preshift_bits": 0, "minishard_bits": 1, "shard_bits": 2}


class Case(NamedTuple):
    """A store behind a gate with a volume in it, points over the volume, and the table of a run that nothing harmed."""

    gate: StoreGate
    client: Any
    bucket: str
    volume: Path
    points: Path
    table: bytes
    writes: tuple[Request, ...]

    @property
    def url(self) -> str:
        """The bucket's cloudpath, through the gate."""
        return self.gate.url.replace("http://", "s3://http://", 1) + f"/{self.bucket}"

    @property
    def run(self) -> dict[str, Any]:
        """What the command is given, but for the workspace."""
        return {"volume": f"{self.url}/seg", "points": self.points}

    def keys(self, prefix: str) -> set[str]:
        """Return the names of the objects that begin like this, asked for past the gate."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}

    def content(self, key: str) -> bytes:
        """Return an object's content."""
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def key(self, workspace: str, ending: str) -> str:
        """Return the name of the one object of a workspace that ends like this."""
        (key,) = (key for key in self.keys(f"{workspace}/") if key.endswith(ending))
        return key

    def result(self, workspace: str) -> bytes:
        """Return the table of the one run of a workspace."""
        return self.content(self.key(workspace, "/result.parquet"))


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    return np.random.default_rng(1).integers(2**63, 2**64, SHAPE, dtype=np.uint64)


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(2).integers(-1, SHAPE, (2000, 3))


@pytest.fixture(scope="module")
def store(array: Any, voxels: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any,
          new_cli: Any) -> Iterator[Case]:
    import boto3

    folder = tmp_path_factory.mktemp("bucket")
    with pytest.MonkeyPatch.context() as patch, s3_server() as address, StoreGate(address) as gate:
        for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        for name, value in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                            "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{address}")
        client.create_bucket(Bucket="laboratory")
        write_volume(folder / "seg", array, chunk_size=CHUNK, sharding=SHARDING)
        for path in (folder / "seg").rglob("*"):
            if path.is_file():
                client.put_object(Bucket="laboratory", Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
        points = write_points(folder / "points.csv", voxels)
        case = Case(gate, client, "laboratory", folder / "seg", points, b"", ())
        with closing(new_cli(folder / "whole")) as line:
            outcome = line.run(**case.run, workspace=f"{case.url}/whole", workers=2)
            assert outcome.code == 0, outcome.err
        yield case._replace(table=case.result("whole"), writes=tuple(gate.writes()))


@pytest.fixture
def case(store: Case) -> Iterator[Case]:
    store.gate.clear()
    yield store
    store.gate.clear()


@pytest.fixture
def machine(new_cli: Any, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Machines that share nothing but the bucket: home, temporary folder, working directory and cache are their own."""
    lines: list[Any] = []

    def start() -> Any:
        if lines:
            shutil.rmtree(lines[-1].folder)
        lines.append(new_cli(tmp_path / f"machine-{len(lines)}"))
        return lines[-1]

    yield start
    for line in lines:
        line.close()


def key_of(request: Request) -> str:
    return request.path.removeprefix("/laboratory/")


def short(key: str) -> str:
    """Return an object's name without the workspace and the run's folder."""
    return re.sub(r"^[^/]+/runs/[^/]+/", "", key)


def test_every_output_is_one_put_and_markers_come_last(case: Case, array: Any, voxels: Any) -> None:
    """A whole run is one PUT an object, no empty one, none twice, nothing deleted; what a marker lists comes before."""
    writes = case.writes
    assert {(write.method, write.query) for write in writes} == {("PUT", "")}
    assert all(write.size > 0 and "x-amz-copy-source" not in write.fields for write in writes)
    assert {write.fields["cache-control"] for write in writes} == {"no-cache"}
    order = [short(key_of(write)) for write in writes]
    assert Counter(order) == Counter({short(key): 1 for key in case.keys("whole/")})
    markers = [name for name in order if name.endswith(".json") and name not in ("run.json", "report.json")]
    groups = sum(name.startswith("fetch/") for name in markers)
    assert groups == SHARDS
    for marker in markers:
        listed = json.loads(case.content(case.key("whole", marker)))["files"]
        assert set(listed) <= set(order[: order.index(marker)])
        assert listed or not marker.startswith(("plan", "labels"))
    for group in range(groups):
        stages = ["plan/manifest.json", f"fetch/group-{group:03d}.json", f"labels/group-{group:03d}.parquet",
                  f"labels/group-{group:03d}.json", "result.parquet"]
        assert sorted(stages, key=order.index) == stages
    assert [name.split("/")[0] for name in order[-3:]] == ["result.parquet", "report.json", "merge"]
    table = pq.read_table(pa.BufferReader(case.table))
    inside = (voxels >= 0).all(axis=1)
    assert table["label"].to_pylist() == [int(array[tuple(at)]) if there else None
                                          for at, there in zip(voxels, inside, strict=True)]


def test_a_finished_run_on_another_machine(case: Case, machine: Any) -> None:
    """A machine that has nothing of the first one's asks four questions, says that there is nothing to do, and is."""
    outcome = machine().run(**case.run, workspace=f"{case.url}/whole")
    assert (outcome.code, "nothing to do" in outcome.err) == (0, True), outcome.err
    assert case.gate.writes() == []
    assert len(case.gate.requests) == 4, case.gate.requests


# With more of them at hand, a machine dies at every PUT of a run: VOXELPROBE_EVERY_PUT=1.
BOUNDARIES = [
    ("after", "run.json"), ("before", "plan/manifest.json"), ("after", "fetch/group-000.json"),
    ("before", "labels/group-001.json"), ("after", "labels/group-002.json"), ("after", "result.parquet"),
]
if os.environ.get("VOXELPROBE_EVERY_PUT"):
    ENDINGS = ("fetch/group-{}.json", "labels/group-{}.parquet", "labels/group-{}.json")
    KINDS = ("chunks", "points")
    NAMES = ["run.json", *(f"plan/{kind}-{group:03d}.parquet" for group in range(SHARDS) for kind in KINDS),
             "plan/groups.parquet", "plan/unplaced.parquet", "plan/manifest.json",
             *(ending.format(f"{group:03d}") for group in range(SHARDS) for ending in ENDINGS),
             "result.parquet", "report.json", "merge/"]
    BOUNDARIES = [(moment, name) for name in NAMES for moment in ("before", "after")]


def test_killed_when_an_object_appears(case: Case, machine: Any) -> None:
    """Killed with -9 when a PUT arrives or was answered, another machine goes on, and so forth; the last one finishes.

    Every machine's disk is gone before the next begins. What has its marker isn't written, read or asked for again.
    """
    workspace = "killed"
    for moment, name in [*BOUNDARIES, ("never", "")]:
        line = machine()
        done = {short(key) for key in case.keys(f"{workspace}/") if key.endswith(".json")}
        case.gate.clear()
        killed: list[str] = []

        def end_at(request: Request, name: str = name, line: Any = line, killed: Any = killed) -> Verdict:
            if request.method == "PUT" and name and short(key_of(request)).startswith(name):
                killed.append(key_of(request))
                os.killpg(line._started[-1].pid, signal.SIGKILL)
                return "reset"
            return "pass"

        case.gate.judge = end_at if moment == "before" else None
        case.gate.see = (lambda request, end_at=end_at: end_at(request)) if moment == "after" else None
        outcome = line.run(**case.run, workspace=f"{case.url}/{workspace}")
        assert outcome.code == (-signal.SIGKILL if name else 0), f"{moment} {name}: {outcome.err}"
        assert len(killed) == bool(name)
        written = {short(key_of(request)) for request in case.gate.writes()}
        assert not written & (done - {"report.json"})
        for group in range(SHARDS):
            if f"labels/group-{group:03d}.json" in done:
                assert f"labels/group-{group:03d}.parquet" not in written
                assert not [request for request in case.gate.requests if f"/{group}.shard" in request.path]
                assert f"group {group}: decoded" not in outcome.err
    assert case.result(workspace) == case.table


def test_two_machines_at_once(case: Case, new_cli: Any, tmp_path: Path) -> None:
    """Two machines that begin the same run at the same moment both end well, with the table of one machine alone."""
    lines = [new_cli(tmp_path / name) for name in "ab"]
    try:
        processes = [line.start(**case.run, workspace=f"{case.url}/both") for line in lines]
        for line, process in zip(lines, processes, strict=True):
            outcome = line.wait(process)
            assert outcome.code == 0, outcome.err
    finally:
        for line in lines:
            line.close()
    assert case.result("both") == case.table
    assert {short(key).partition("/merge/")[0] for key in case.keys("both/")} >= \
        {short(key) for key in case.keys("whole/") if "/merge/" not in key}


def test_stale_copies_on_a_machine_are_not_used(case: Case, machine: Any) -> None:
    """What has become of an object in the bucket decides, not the copy of it that a machine still has."""
    line, workspace = machine(), "stale"
    assert line.run(**case.run, workspace=f"{case.url}/{workspace}").code == 0
    parts = ("labels/group-001.parquet", "plan/points-002.parquet")
    contents = {part: case.content(case.key(workspace, part)) for part in parts}
    # Other bytes of the same size, which no marker describes; and the table has to be made again.
    for part, content in contents.items():
        case.client.put_object(Bucket=case.bucket, Key=case.key(workspace, part), Body=content[::-1])
    case.client.delete_object(Bucket=case.bucket, Key=case.key(workspace, "/result.parquet"))
    case.gate.clear()
    outcome = line.run(**case.run, workspace=f"{case.url}/{workspace}")
    assert outcome.code == 0, outcome.err
    assert case.result(workspace) == case.table
    assert {part: case.content(case.key(workspace, part)) for part in parts} == contents
    # Of the other groups nothing is downloaded again: their copies are the bucket's objects.
    fetched = [short(key_of(request)) for request in case.gate.requests if request.method == "GET"]
    assert not [name for name in fetched if name.startswith("labels/") and name.endswith(".parquet")]


def test_a_chunk_mended_by_another_machine(case: Case, new_cli: Any, tmp_path: Path, array: Any, voxels: Any) -> None:
    """Labels with a corrupt chunk that another machine has mended are not taken from the first one's disk again."""
    info = write_volume(tmp_path / "seg", array, chunk_size=(16, 16, 16))
    damaged = chunk_name(info["scales"][0], (1, 1, 1))
    for path in (tmp_path / "seg").rglob("*"):
        if path.is_file():
            name = path.relative_to(tmp_path / "seg").as_posix()
            body = path.read_bytes()
            body = body[:-1] if name == damaged else body
            case.client.put_object(Bucket=case.bucket, Key=f"mended/{name}", Body=body)
    run = {"volume": f"{case.url}/mended", "points": case.points, "workspace": f"{case.url}/mending"}
    first, second = (new_cli(tmp_path / name) for name in "ab")
    with closing(first), closing(second):
        outcome = first.run(**run)
        assert outcome.code != 0
        assert f"{damaged.split('/')[-1]}" in outcome.err
        case.client.put_object(Bucket=case.bucket, Key=f"mended/{damaged}",
                               Body=(tmp_path / "seg" / damaged).read_bytes())
        outcome = second.run(**run)
        assert outcome.code == 0, outcome.err
        case.client.delete_object(Bucket=case.bucket, Key=case.key("mending", "/result.parquet"))
        outcome = first.run(**run)
        assert outcome.code == 0, outcome.err
        assert "decoded" not in outcome.err
    table = pq.read_table(pa.BufferReader(case.result("mending")))
    inside = (voxels >= 0).all(axis=1)
    assert [label for label in table["label"].to_pylist() if label is not None] == \
        array[tuple(voxels[inside].T)].tolist()
    assert set(table["status"].to_pylist()) == {"ok", "out_of_bounds"}


def test_a_refused_write_is_said_at_once(case: Case, machine: Any) -> None:
    """A PUT that the store refuses isn't repeated, and is named with where credentials are; allowed, the run ends."""
    line = machine()
    refused = "labels/group-000.parquet"
    case.gate.judge = lambda request: "refuse" if request.method == "PUT" and refused in request.path else "pass"
    outcome = line.run(**case.run, workspace=f"{case.url}/refused")
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err, outcome.err
    assert re.search(rf"s3://\S+/{refused}: .*403.*aws-secret\.json", outcome.err), outcome.err
    # On a slow machine Luigi tries the group once more, while others are at work.
    assert sum(refused in request.path for request in case.gate.writes()) <= 2
    case.gate.clear()
    outcome = machine().run(**case.run, workspace=f"{case.url}/refused")
    assert outcome.code == 0, outcome.err
    assert case.result("refused") == case.table


def test_a_store_that_falters_while_it_is_written_to(case: Case, machine: Any) -> None:
    """A PUT that is throttled, or cut off in its middle, is sent again, whole, and the run ends well."""
    verdicts: dict[str, Verdict] = {"labels/group-001.parquet": "throttle", "labels/group-002.parquet": "reset",
                                    "plan/manifest.json": "reset"}
    faltering = Counter[str]()

    def falter(request: Request) -> Verdict:
        name = short(key_of(request))
        if request.method != "PUT" or name not in verdicts:
            return "pass"
        faltering[name] += 1
        return verdicts[name] if faltering[name] <= 2 else "pass"

    case.gate.judge = falter
    outcome = machine().run(**case.run, workspace=f"{case.url}/falters")
    assert outcome.code == 0, outcome.err
    assert faltering == dict.fromkeys(verdicts, 3)
    assert case.result("falters") == case.table


def test_a_store_that_never_takes_a_write(case: Case, machine: Any) -> None:
    """A PUT that is throttled for good ends the run after a few tries, with the object named."""
    refused = "plan/manifest.json"
    case.gate.judge = lambda request: "throttle" if request.method == "PUT" and refused in request.path else "pass"
    outcome = machine().run(**case.run, workspace=f"{case.url}/never")
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err, outcome.err
    assert re.search(rf"s3://\S+/{refused}: .*SlowDown.*\(tried 6 times\)", outcome.err), outcome.err
    assert sum(refused in request.path for request in case.gate.writes()) == 6


def test_a_store_that_is_silent_for_good(case: Case, machine: Any) -> None:
    """A write that is never answered is given up after a few read timeouts, with the object named."""
    case.gate.judge = lambda request: "stall" if request.method == "PUT" else "pass"
    started = time.monotonic()
    outcome = machine().run(**case.run, workspace=f"{case.url}/silent", read_timeout=1)
    assert outcome.code not in (0, None)
    assert "Traceback" not in outcome.err, outcome.err
    assert re.search(r"s3://\S+/run\.json: ReadTimeoutError: .* \(tried 6 times\)", outcome.err), outcome.err
    assert time.monotonic() - started < 45


def test_points_that_are_replaced_under_a_run(case: Case, machine: Any) -> None:
    """A table of points that changes between plan and merge gets no labels of other points beside its rows."""
    line = machine()
    points = line.folder / "points.csv"
    lines = case.points.read_bytes().splitlines(keepends=True)
    points.write_bytes(b"".join(lines))

    def replace(request: Request) -> None:
        if request.method == "PUT" and "/plan/manifest.json" in request.path:
            points.write_bytes(b"".join([lines[0], *lines[:0:-1]]))

    case.gate.see = replace
    outcome = line.run(**case.run | {"points": points}, workspace=f"{case.url}/replaced")
    assert outcome.code not in (0, None)
    assert f"{points}: was changed while the run was reading it; run again" in outcome.err
    assert not [key for key in case.keys("replaced/") if key.endswith("result.parquet")]


def test_everything_in_buckets(case: Case, machine: Any, voxels: Any) -> None:
    """Points and output in the bucket too: points that changed there at the same size are another run's."""
    run = case.run | {"workspace": f"{case.url}/all", "output": f"{case.url}/tables/out.csv"}
    first = case.points.read_bytes()
    lines = first.splitlines(keepends=True)
    second = b"".join([lines[0], *lines[:0:-1]])
    assert len(second) == len(first)
    line = machine()
    for content, order in ((first, slice(None)), (second, slice(None, None, -1))):
        case.client.put_object(Bucket=case.bucket, Key="tables/in.csv", Body=content)
        outcome = line.run(**run | {"points": f"{case.url}/tables/in.csv"})
        assert outcome.code == 0, outcome.err
        rows = case.content("tables/out.csv").decode().splitlines()[1:]
        assert [[int(part) for part in row.split(",")[:3]] for row in rows] == voxels[order].tolist()
    assert not list(line.folder.rglob("out.csv*")), "results are not kept on this machine"
