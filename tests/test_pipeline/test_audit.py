"""The command's audit: on by default, said in the report, and the end of a run that it contradicts."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.encoders import encode_chunk
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import compress_bytes, write_volume

SHAPE, CHUNK = (64, 48, 32), (16, 16, 16)


@pytest.fixture(autouse=True)
def as_it_comes(cli: Any) -> None:
    """Leave the audit to the command."""
    cli.audit = ""


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    few = np.random.default_rng(1).integers(2**63, 2**64, tuple(n // 4 for n in SHAPE), dtype=np.uint64)
    return few.repeat(4, 0).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(2).integers(0, SHAPE, (3000, 3))


@pytest.fixture
def data(array: Any, voxels: Any, tmp_path: Path, write_points: Any) -> dict[str, Any]:
    write_volume(tmp_path / "seg", array, encoding="compressed_segmentation", chunk_size=CHUNK, compress="gzip")
    return {"volume": tmp_path / "seg", "points": write_points(tmp_path / "p.npy", voxels)}


def audit_of(cli: Any) -> dict[str, Any]:
    return dict(json.loads((cli.run_folder / "report.json").read_text())["audit"])


@pytest.mark.parametrize(("workers", "asked_again"), [(1, ["all", "1000", "0"]), (2, ["1000"])])
def test_it_is_on_by_default(workers: int, asked_again: list[str], cli: Any, data: dict[str, Any], array: Any,
                             voxels: Any) -> None:
    """A run reads some points again and says so; more when asked, with the same table; then there is nothing to do."""
    outcome = cli.run(**data, workers=workers)
    assert outcome.code == 0, outcome.err
    audit = audit_of(cli)
    assert 200 < audit["compared"] <= 1000
    assert (audit["asked"], audit["chunks"], audit["mismatches"]) == ("1000", 4, 0)
    assert f"audit    {audit['compared']} points in 4 chunks read again by compressed_segmentation" in outcome.out
    table = cli.result.read_bytes()
    outcome = cli.run(**data, audit="all", workers=workers)
    assert outcome.code == 0, outcome.err
    assert (audit_of(cli)["compared"], audit_of(cli)["chunks"]) == (3000, 24)
    assert cli.result.read_bytes() == table
    for audit in asked_again:
        outcome = cli.run(**data, audit=audit)
        assert (outcome.code, "nothing to do" in outcome.err) == (0, True), outcome.err
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()


def test_what_it_asks_the_store_for(cli: Any, data: dict[str, Any]) -> None:
    """It costs the `info` and a few whole chunks, once for a run: a table merged again costs nothing."""
    with HttpStore(data["volume"]) as store:
        assert cli.run("PlanChunkGroups", volume=store.url, points=data["points"]).code == 0
        store.clear()
        assert cli.run("AuditPoints", volume=store.url, points=data["points"]).code == 0
        assert sum(request.path == "info" for request in store.requests) == 2
        assert len(store.requests) == 2 + 4
        run = {"volume": store.url, "points": data["points"]}
        assert cli.run(**run).code == 0
        cli.result.unlink()
        store.clear()
        assert cli.run(**run).code == 0
        assert {request.path for request in store.requests} == {"info"}


def replace_cached(cache: Path, payload: bytes, encoding: str = "gzip") -> int:
    """Put another chunk, sound and with matching checksums, in the place of every cached one; return how many."""
    count = 0
    for path in cache.glob("*/*.sqlite"):
        with sqlite3.connect(path) as file:
            for (key,) in file.execute("SELECT key FROM chunks WHERE key NOT LIKE '% facts'").fetchall():
                checked = google_crc32c.value(f"{key} ".encode() + encoding.encode() + payload)
                facts = checked.to_bytes(4, "little") + encoding.encode()
                for name, value in ((key, payload), (f"{key} facts", facts)):
                    file.execute("UPDATE chunks SET value = ? WHERE key = ?", (value, name))
                count += 1
        file.close()
    return count


def test_another_chunk_in_the_cache(cli: Any, data: dict[str, Any], array: Any, voxels: Any, write_points: Any) -> None:
    """A cache with other sound chunks, which nothing else can notice, ends the run; without it the run goes well."""
    chunk = np.full((*CHUNK, 1), 77, np.uint64)
    assert cli.run(**data).code == 0
    shutil.rmtree(cli.run_folder)
    payload = compress_bytes(encode_chunk(chunk, "compressed_segmentation"), "gzip")
    assert replace_cached(cli.workspace / "cache", payload) == 24
    outcome = cli.run(**data)
    assert outcome.code == 30, outcome.err
    assert "Traceback" not in outcome.err
    assert not cli.result.exists()
    (listed,) = [json.loads((cli.run_folder / "audit/mismatches.json").read_text())["mismatches"]]
    first = listed[0]
    x, y, z = voxels[first["row"]].tolist()
    name = "_".join(f"{v // 16 * 16}-{v // 16 * 16 + 16}" for v in (x, y, z))
    assert first["chunk"] == f"4_4_40/{name}"
    assert f"row {first['row']}, chunk 4_4_40/{name} of file://{data['volume']}" in outcome.err
    assert f"would have ok 77, found ok {array[x, y, z]}" in outcome.err.replace("\n", " ")
    again = cli.run(**data)
    assert again.code == 30, "the same command must not pass"
    shutil.rmtree(cli.workspace)
    outcome = cli.run(**data)
    assert outcome.code == 0, outcome.err
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()


def test_an_extent_that_is_none(cli: Any, data: dict[str, Any]) -> None:
    """What is neither a number nor all is refused before anything is read."""
    for audit in ("some", "-1", "1.5"):
        outcome = cli.run(**data, audit=audit)
        assert outcome.code not in (0, None)
        assert "Traceback" not in outcome.err
        assert f"audit '{audit}': expected a number of points, 0 for none, or all" in outcome.err
        assert not list(cli.run_folder.glob("labels/*"))


@pytest.mark.parametrize("agglomerate", [True, False])
def test_supervoxels(agglomerate: bool, cli: Any, tmp_path: Path) -> None:
    """Supervoxels of a graphene volume are audited, with roots beside them or without."""
    segmentation = np.random.default_rng(1).integers(0, 20, (8, 6, 4)).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    watershed = graphene_watershed(segmentation.astype(np.uint64), (16, 16, 16), voxel_offset=(100, 203, 31),
                                   piece_size=(4, 8, 8))
    write_volume(tmp_path / "ws", watershed.labels, chunk_size=(32, 16, 16), voxel_offset=(100, 203, 31),
                 resolution=(8, 8, 40))
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout,
                                          created=1_600_000_000.0, layer2_created=1_599_999_000.0)
    voxels = np.random.default_rng(2).integers((100, 203, 31), (164, 251, 63), (500, 3))
    table = pa.table({f"pre_{axis}": voxels[:, i] for i, axis in enumerate("xyz")})
    pq.write_table(table, tmp_path / "p.parquet")
    with GraphServer(graph, data_dir=tmp_path / "ws") as server:
        run = {"volume": server.cloudpath, "points": tmp_path / "p.parquet", "point_columns": "pre", "audit": "all"}
        outcome = cli.run(**run) if agglomerate else cli.run(**run, no_agglomerate=True)
        assert outcome.code == 0, outcome.err
    audit = audit_of(cli)
    assert (audit["compared"], audit["mismatches"]) == (500, 0)


def test_other_formats(cli: Any, data: dict[str, Any]) -> None:
    """Tables in other formats, given a name of the user's, are read as they were written."""
    for suffix in ("csv", "csv.gz", "feather"):
        output = cli.folder / f"labelled.{suffix}"
        outcome = cli.run(**data, output=output)
        assert outcome.code == 0, outcome.err
        assert audit_of(cli)["compared"] > 200
        assert output.exists()


@pytest.mark.parametrize("kind", ["zarr3", "n5"])
def test_other_kinds_of_volumes(kind: str, cli: Any, data: dict[str, Any], array: Any, voxels: Any) -> None:
    """Shards of zarr v3 and blocks of n5, of blosc both, are audited as they come; a difference ends the run."""
    folder = cli.folder / "seg"
    if kind == "zarr3":
        import zarr
        from zarr.codecs import BloscCodec

        zarr.create_array(folder, shape=SHAPE[::-1], dtype="uint64", chunks=CHUNK[::-1], shards=(32, 48, 32),
                          compressors=[BloscCodec(cname="zstd")])[...] = array.T
    else:
        import tensorstore

        metadata = {"dimensions": SHAPE, "blockSize": CHUNK, "dataType": "uint64",
                    "compression": {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}}
        spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{folder}/"}, "metadata": metadata}
        tensorstore.open(spec, create=True).result().write(array).result()
    run = {"volume": f"{kind}://file://{folder}", "points": data["points"]}
    outcome = cli.run(**run)
    assert outcome.code == 0, outcome.err
    audit = audit_of(cli)
    assert 200 < audit["compared"] <= 1000
    assert (audit["asked"], audit["chunks"], audit["mismatches"], audit["not_audited"]) == ("1000", 4, 0, "")
    assert "points in 4 chunks read again by numpy.frombuffer and numcodecs.blosc" in outcome.out
    assert pq.read_table(cli.result)["label"].to_pylist() == array[tuple(voxels.T)].tolist()
    shutil.rmtree(cli.run_folder)
    payload = encode_stored(kind, np.full(CHUNK, 77, np.uint64))
    assert replace_cached(cli.workspace / "cache", payload, "") == 24
    outcome = cli.run(**run)
    assert outcome.code == 30, outcome.err
    assert "would have ok 77, found ok" in outcome.err.replace("\n", " ")
    assert not cli.result.exists()


def encode_stored(kind: str, chunk: Any) -> bytes:
    """Return what a store would have of a chunk of blosc, which tells its compressor itself."""
    import numcodecs

    if kind == "zarr3":
        return bytes(numcodecs.Blosc().encode(chunk.T.astype("<u8").tobytes()))
    return struct.pack(">2H3I", 0, 3, *CHUNK) + bytes(numcodecs.Blosc().encode(chunk.astype(">u8").tobytes("F")))
