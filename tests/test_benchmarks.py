"""The benchmarks themselves: the store they measure with, and that they run and notice wrong labels."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.answers import MismatchError, check_table, count_least
from benchmarks.cases import CASES, Goal
from benchmarks.measure import run_measured
from benchmarks.store import ROOT, Served, serve
from benchmarks.tables import read_voxels, write_in_chunks, write_random
from benchmarks.volumes import Source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "inside").mkdir()
    (folder / "inside" / "plain").write_bytes(b"0123456789")
    (folder / "inside" / "packed.gz").write_bytes(gzip.compress(b"unpacked"))
    os.link(folder / "inside" / "packed.gz", folder / "inside" / "other.gz")
    (folder / "inside" / "empty").write_bytes(b"")
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "inside" / "leak").symlink_to(folder.parent / "secret")
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[Served]:
    with serve(folder) as store:
        yield store


def ask(store: Served, path: str, method: str = "GET", **fields: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(store.url.removeprefix("http://"))
    try:
        connection.request(method, path, headers=fields)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(("span", "status", "body"), [
    ("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"), ("bytes=8-99", 206, b"89"),
    ("bytes=-99", 206, b"0123456789"), ("bytes=10-", 416, b""), ("bytes=-0", 416, b""),
    ("bytes=4-2", 200, b"0123456789"), ("lines=1-2", 200, b"0123456789"),
])
def test_a_range_is_answered_as_http_says(store: Served, span: str, status: int, body: bytes) -> None:
    """One range comes with 206 and its place, one behind the end with 416, and what is none is ignored."""
    found, fields, content = ask(store, "/inside/plain", Range=span)
    assert (found, content) == (status, body)
    assert int(fields["Content-Length"]) == len(body)
    if status != 200:
        assert fields["Content-Range"].endswith("/10")


def test_a_packed_file_is_served_as_the_object_that_it_holds(store: Served) -> None:
    """NAME.gz is NAME with Content-Encoding; a hard link is the same object, its ETag included."""
    status, fields, content = ask(store, "/inside/packed")
    assert (status, fields["Content-Encoding"], gzip.decompress(content)) == (200, "gzip", b"unpacked")
    assert ask(store, "/inside/other")[1]["ETag"] == fields["ETag"]
    assert ask(store, "/inside/packed", **{"If-None-Match": fields["ETag"]})[0] == 304


def test_head_tells_the_length_and_sends_nothing(store: Served) -> None:
    """HEAD is GET without the body."""
    assert ask(store, "/inside/plain", "HEAD")[1]["Content-Length"] == "10"
    assert ask(store, "/inside/plain", "HEAD")[2] == b""
    assert ask(store, "/inside/empty")[0] == 200


@pytest.mark.parametrize("path", ["/../secret", "/%2e%2e/secret", "/inside/..%2f..%2fsecret", "/inside/leak", "/inside",
                                  "/inside/absent", "/", "//secret", "/inside/plain%00"])
def test_what_is_no_file_of_the_folder_is_not_found(store: Served, path: str) -> None:
    """Nothing outside of the folder is served, nor a folder, whatever the name."""
    assert ask(store, path)[0] == 404


def test_counters_count_objects_and_not_the_asking(store: Served) -> None:
    """Requests, bytes of bodies and absent objects are counted since the last reset; control requests are not."""
    ask(store, "/inside/plain")
    store.reset()
    ask(store, "/inside/plain", Range="bytes=0-3")
    ask(store, "/inside/absent")
    counters = store.counters()
    assert (counters["requests"], counters["bytes"], counters["not_found"]) == (2, 4, 1)
    assert counters["max_in_flight"] == 1


def test_pipelined_requests_are_answered_in_order(store: Served) -> None:
    """Many requests at once on one connection wait together, and their answers come in their order."""
    store.set_latency(5)
    names = ["plain", "absent", "packed", "empty"] * 10
    with socket.create_connection(("127.0.0.1", int(store.url.rsplit(":", 1)[1]))) as plug:
        sent = "".join(f"GET /inside/{name} HTTP/1.1\r\nHost: here\r\n\r\n" for name in names).encode()
        # Cut anywhere: a request may come in pieces.
        plug.sendall(sent[:777])
        plug.sendall(sent[777:])
        with plug.makefile("rb") as answers:
            statuses = []
            for _ in names:
                statuses.append(int(answers.readline().split()[1]))
                length = 0
                while (line := answers.readline()) != b"\r\n":
                    if line.startswith(b"Content-Length:"):
                        length = int(line.split()[1])
                answers.read(length)
    assert statuses == [404 if name == "absent" else 200 for name in names]
    assert store.counters()["max_in_flight"] > 1


def test_the_store_ends_when_its_stdin_closes(folder: Path) -> None:
    """A store does not outlive whoever holds its stdin."""
    command = [sys.executable, "-m", "benchmarks.store", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("volumes"), quick=True)


@pytest.mark.parametrize("name", ["dense", "sharded", "sharded-sparse", "raw", "crackle", "compresso"])
def test_volumes_hold_what_their_source_says(source: Source, name: str) -> None:
    """CloudVolume reads from every kind of volume, far from the corner too, the ids that the oracle gives."""
    from cloudvolume import CloudVolume

    found = CloudVolume(source.make(name).as_uri(), progress=False, use_https=False)
    end = np.array(found.volume_size)
    corner = end - (40, 20, 10)
    cutout = np.asarray(found[tuple(map(slice, corner, end))])[..., 0]
    voxels = np.argwhere(np.ones(cutout.shape, bool))
    assert np.array_equal(cutout.ravel(), source.labels_at(voxels + corner))
    assert cutout.max() > 2**63


def test_tables_are_the_same_each_time_and_lie_where_they_say(source: Source, tmp_path: Path) -> None:
    """A seed makes one table, inside of the volume; one with points in chunks has just as many in each."""
    volume = source.volumes["sparse"]
    first, again = (write_random(tmp_path / f"{name}.parquet", volume.size, 5000, 3) for name in "ab")
    assert np.array_equal(read_voxels(first), read_voxels(again))
    assert (read_voxels(first) < volume.size).all()
    few = write_in_chunks(tmp_path / "few.parquet", volume, 30, 4)
    assert (len(read_voxels(few)), count_least(source, "sparse", few).chunks) == (120, 30)
    assert np.unique(read_voxels(few) // volume.chunk, axis=0, return_counts=True)[1].tolist() == [4] * 30


@pytest.mark.parametrize("damage", ["label", "order", "null", "missing", "status", "dtype"])
def test_a_wrong_table_is_noticed(source: Source, tmp_path: Path, damage: str) -> None:
    """A label off by one, rows in another order or missing, nulls, and labels of another type are all mismatches."""
    points = write_random(tmp_path / "points.parquet", source.volumes["dense"].size, 1000)
    table = pq.read_table(points)
    labels = source.labels_at(read_voxels(points))
    good = table.append_column("label", pa.array(labels))
    pq.write_table(good, tmp_path / "good.parquet")
    assert check_table(tmp_path / "good.parquet", points, source) == 1000
    labels[7] += np.uint64(1)
    bad = {
        "label": table.append_column("label", pa.array(labels)),
        "order": good.take(np.roll(np.arange(1000), 1)),
        "null": table.append_column("label", pa.array(labels, mask=np.arange(1000) == 7)),
        "missing": good.slice(0, 999),
        "status": good.append_column("status", pa.array(["ok"] * 999 + ["missing_chunk"])),
        "dtype": table.append_column("label", pa.array(labels.view(np.int64))),
    }[damage]
    pq.write_table(bad, tmp_path / "bad.parquet")
    with pytest.raises(MismatchError):
        check_table(tmp_path / "bad.parquet", points, source)


def test_the_peak_of_every_process_is_its_own(tmp_path: Path) -> None:
    """Memory is measured of each process of a tree, and what the measuring process had does not count."""
    ballast = np.ones(80 << 20, np.uint8)
    child = "b = bytearray(b'x') * (60 << 20); import time; time.sleep(0.3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done')"
    cost = run_measured([sys.executable, "-c", parent], cwd=tmp_path, environment=os.environ)
    assert (cost.status, cost.output) == (0, "done\n")
    assert len(cost.peaks) == 2
    assert cost.peaks[0] > 60 << 20 > cost.peaks[1]
    assert cost.peak < len(ballast) + (20 << 20)
    assert cost.wall >= 0.3


def test_a_goal_is_met_from_its_bound_on() -> None:
    """Ratios and rates are to be at least, times, memory and requests at most, what a goal says."""
    assert Goal("tensorstore", 1.5).is_met(1.5)
    assert not Goal("tensorstore", 1.5).is_met(1.49)
    assert Goal("wall", 3.0).is_met(2.9)
    assert not Goal("peak", 100.0).is_met(101.0)


def test_the_benchmarks_run(tmp_path: Path) -> None:
    """`python -m benchmarks.run --quick` ends with 0, compared every label, and leaves its numbers."""
    pytest.importorskip("tensorstore")
    names = ["dense", "warm", "sharded-sparse", "start-up"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--quick", "--latency-ms", "1", "--cases", ",".join(names),
         "--peers", "tensorstore", "--scratch", str(tmp_path / "scratch"), "--json", str(tmp_path / "numbers.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "numbers.json").read_text())
    cases = {case["name"]: case for case in document["cases"]}
    assert list(cases) == names
    for case in cases.values():
        for measured in case["participants"].values():
            assert measured["failure"] == ""
            assert measured["compared"] == measured["points"] * len(measured["costs"]) > 0
            assert measured["costs"][0]["wall"] < time.monotonic() - started
    assert cases["dense"]["ratios"]["tensorstore"] > 0
    # The warm run asked for no chunk: the points were others, the chunks were there.
    assert cases["warm"]["participants"]["voxelprobe"]["costs"][0]["server"]["requests"] <= 1
    cost = cases["dense"]["participants"]["voxelprobe"]["costs"][0]
    assert cost["server"]["bytes"] >= cases["dense"]["least"]["bytes"]
    assert cost["stages"]["decode"] > 0
    assert cost["workspace"]["cache"] > 0
    assert not list((tmp_path / "scratch" / "quick").glob("runs-*"))


def test_goals_are_of_cases_that_have_the_numbers() -> None:
    """A goal about a peer is of a case that asks the peer."""
    for case in CASES:
        for goal in case.goals:
            assert goal.number != "tensorstore" or case.tensorstore
            assert goal.number != "cloudvolume" or case.cloudvolume
            assert goal.number != "cold" or case.warm
