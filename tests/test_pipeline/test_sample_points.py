from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.volumes import write_volume

SHAPE, OFFSET, CHUNK = (70, 50, 24), (100, -30, 7), (32, 32, 16)
PARAMETERS = ("volume", "points", "output", "workspace", "cache", "cache-bytes", "mip", "coord-resolution",
              "point-columns", "missing-chunks", "fetch-threads")

NOTING_IMPORTS = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("pandas", "pyarrow.compute"):
            print(name, "was asked for", file=sys.stderr)
sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def array() -> npt.NDArray[np.uint64]:
    # Beyond int64 and float64: a label that went through either comes out as another.
    labels = np.random.default_rng(1).integers(2**63, 2**64, SHAPE, dtype=np.uint64)
    labels[0, 0, 0], labels[1, 0, 0] = 2**64 - 1, 0
    return labels


@pytest.fixture(scope="module")
def volume(array: npt.NDArray[np.uint64], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes") / "seg"
    write_volume(folder, array, chunk_size=CHUNK, voxel_offset=OFFSET)
    return folder


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    """Points inside the volume, some of them twice, in no order."""
    points = np.random.default_rng(2).integers(0, SHAPE, (400, 3)) + OFFSET
    return np.concatenate([points, points[::7]])


def labels_at(array: npt.NDArray[Any], voxels: npt.NDArray[np.int64]) -> list[Any]:
    return array[tuple((voxels - OFFSET).T)].tolist()


@pytest.mark.parametrize("output", ["parquet", "csv", "feather"])
@pytest.mark.parametrize("points", ["parquet", "csv", "csv.gz", "feather", "npy"])
def test_every_format_in_and_out(points: str, output: str, cli: Any, volume: Path, array: Any, voxels: Any,
                                 write_points: Any, read_table: Any, shim: Any) -> None:
    """Whatever the formats, the result is the user's rows as they were, and the array's label under each point.

    pyarrow loads pandas, where that is installed, at the first of its calls that might need it: none of them is made.
    It loads all of its functions at the first one, which plain numbers don't need, audited or not.
    """
    table = pa.table({axis: voxels[:, i] for i, axis in enumerate("xyz")})
    if points != "npy":
        ids = np.arange(len(voxels), dtype=np.uint64)[::-1] + np.uint64(2**64 - 1000)
        table = table.append_column("id", pa.array(ids)).append_column("name", pa.array([f"a,{i}" for i in ids % 7]))
    made = write_points(cli.folder / f"points.{points}", table)
    outcome = cli.run(volume=volume, points=made, output=cli.folder / f"labelled.{output}", audit=1000,
                      env=shim(NOTING_IMPORTS))
    assert outcome.code == 0, outcome.err
    assert "pandas was asked for" not in outcome.err
    assert (points, output) != ("npy", "parquet") or "pyarrow.compute was asked for" not in outcome.err
    result = read_table(cli.folder / f"labelled.{output}")
    assert result.column_names == [*table.column_names, "label", "status"]
    assert result.select(table.column_names).to_pydict() == table.to_pydict()
    assert result["label"].to_pylist() == labels_at(array, voxels)
    assert set(result["status"].to_pylist()) == {"ok"}


def test_every_status_in_one_table(cli: Any, array: Any, write_points: Any, read_table: Any) -> None:
    """Each point has the status that says why it has its label or none, and a stored 0 is a label."""
    write_volume(cli.folder / "holes", array, chunk_size=CHUNK, voxel_offset=OFFSET, skip_chunks={(1, 0, 0)},
                 empty_chunks={(2, 1, 1)})
    x0, y0, z0 = OFFSET
    x1, y1, z1 = (o + s for o, s in zip(OFFSET, SHAPE, strict=True))
    far, nan, inf = 1e300, float("nan"), float("inf")
    cases: list[tuple[float | None, float | None, float | None, str]] = [
        (x0, y0, z0, "ok"), (x0 + 1, y0, z0, "ok"), (x0 + 0.99, y0 + 0.5, z0, "ok"), (x1 - 1, y1 - 1, z0, "ok"),
        (x1, y0, z0, "out_of_bounds"), (x0, y1, z0, "out_of_bounds"), (x0, y0, z1, "out_of_bounds"),
        (x0 - 1, y0, z0, "out_of_bounds"), (x0, y0 - 0.001, z0, "out_of_bounds"), (x0, y0, -1, "out_of_bounds"),
        (far, y0, z0, "out_of_bounds"), (x0, -far, z0, "out_of_bounds"), (x0, y0, 2.0**63, "out_of_bounds"),
        (x0 + 32, y0, z0, "missing_chunk"), (x0 + 63, y0 + 31, z0 + 15, "missing_chunk"),
        (x1 - 1, y1 - 1, z1 - 1, "missing_chunk"),
        (None, y0, z0, "invalid_coordinate"), (x0, nan, z0, "invalid_coordinate"), (x0, y0, inf, "invalid_coordinate"),
        (-inf, y0, z0, "invalid_coordinate"), (None, None, None, "invalid_coordinate"),
        (far, nan, z0, "invalid_coordinate"),
    ]
    table = pa.table({axis: pa.array([case[i] for case in cases], pa.float64()) for i, axis in enumerate("xyz")})
    outcome = cli.run(volume=cli.folder / "holes", points=write_points(cli.folder / "p.parquet", table))
    assert outcome.code == 0, outcome.err
    result = read_table(cli.result)
    assert result["status"].to_pylist() == [case[3] for case in cases]
    read = np.array([case[:3] for case in cases if case[3] == "ok"])
    assert result["label"].drop_null().to_pylist() == labels_at(array, np.floor(read).astype(np.int64))
    assert result["label"][:2].to_pylist() == [2**64 - 1, 0]
    assert result["label"].is_null().to_pylist() == [case[3] != "ok" for case in cases]
    assert str(result.select(["x", "y", "z"]).to_pydict()) == str(table.to_pydict())  # NaN isn't equal to itself
    assert "4 ok, 9 out_of_bounds, 3 missing_chunk, 6 invalid_coordinate" in outcome.out


def test_points_on_chunk_edges(cli: Any, volume: Path, array: Any, write_points: Any, read_table: Any) -> None:
    """The first and last voxel of every chunk, clipped ones included, have the array's labels."""
    edges = [sorted({*range(0, s, c), *range(c - 1, s, c), s - 1}) for s, c in zip(SHAPE, CHUNK, strict=True)]
    voxels = np.array(list(product(*edges))) + OFFSET
    outcome = cli.run(volume=volume, points=write_points(cli.folder / "p.npy", voxels))
    assert outcome.code == 0, outcome.err
    assert read_table(cli.result)["label"].to_pylist() == labels_at(array, voxels)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "npy"])
def test_an_empty_table_gives_an_empty_result(suffix: str, cli: Any, volume: Path, write_points: Any) -> None:
    """No rows in, no rows out, with the columns and types that rows would have had."""
    points = write_points(cli.folder / f"p.{suffix}", np.zeros((0, 3), np.int64))
    outcome = cli.run(volume=volume, points=points)
    assert outcome.code == 0, outcome.err
    result = pq.read_table(cli.result)
    assert result.num_rows == 0
    assert result.schema.names == ["x", "y", "z", "label", "status"]
    assert result.schema.field("label").type == pa.uint64()
    assert pa.types.is_dictionary(result.schema.field("status").type)
    assert cli.run(volume=volume, points=points).code == 0


def test_one_point(cli: Any, volume: Path, array: Any, write_points: Any, read_table: Any) -> None:
    """A table of one row is a run like any other, and one outside is an answer too."""
    inside, outside = np.array([[110, -3, 20]]), np.array([[0, 0, 0]])
    for name, point, expected in (("inside", inside, labels_at(array, inside)), ("outside", outside, [None])):
        output = cli.folder / f"{name}.parquet"
        outcome = cli.run(volume=volume, points=write_points(cli.folder / f"{name}.csv", point), output=output)
        assert outcome.code == 0, outcome.err
        assert read_table(output)["label"].to_pylist() == expected


@pytest.mark.parametrize("form", ["lists", "structs", "columns", "short columns", "mixed"])
def test_several_points_a_row(form: str, cli: Any, volume: Path, array: Any, voxels: Any, write_points: Any,
                              read_table: Any) -> None:
    """Each prefix has a label and a status of its own, whichever way its coordinates are stored."""
    pre, post = voxels, voxels[::-1].copy()
    post[3] = OFFSET[0] - 1, 0, 0
    columns: dict[str, Any] = {"id": np.arange(len(voxels))}
    for prefix, points in (("pre_pt", pre), ("post_pt", post)):
        kind = "lists" if (form, prefix) == ("mixed", "pre_pt") else "short columns" if form == "mixed" else form
        if kind == "lists":
            columns[f"{prefix}_position"] = pa.array(points.tolist(), pa.list_(pa.int64()))
        elif kind == "structs":
            columns[f"{prefix}_position"] = pa.array([dict(zip("xyz", p, strict=True)) for p in points.tolist()])
        else:
            stem = prefix if kind == "short columns" else f"{prefix}_position"
            columns |= {f"{stem}_{axis}": points[:, i] for i, axis in enumerate("xyz")}
    points = write_points(cli.folder / "p.parquet", pa.table(columns))
    outcome = cli.run(volume=volume, points=points, point_columns="pre_pt,post_pt")
    assert outcome.code == 0, outcome.err
    result = read_table(cli.result)
    assert result.column_names == [*columns, "pre_pt_label", "pre_pt_status", "post_pt_label", "post_pt_status"]
    assert result["pre_pt_label"].to_pylist() == labels_at(array, pre)
    outside, labels = post[3].copy(), result["post_pt_label"].to_pylist()
    assert (labels.pop(3), result["post_pt_status"][3].as_py()) == (None, "out_of_bounds"), outside
    assert labels == labels_at(array, np.delete(post, 3, axis=0))
    assert result["pre_pt_status"].value_counts().to_pylist() == [{"values": "ok", "counts": len(voxels)}]


def test_the_schema_says_where_the_values_came_from(cli: Any, volume: Path, voxels: Any, write_points: Any) -> None:
    """The metadata names volume, mip, fingerprints and run key beside the user's own; nothing of the clock."""
    table = pa.table({axis: voxels[:, i] for i, axis in enumerate("xyz")}).replace_schema_metadata({"lab": "ours"})
    assert cli.run(volume=volume, points=write_points(cli.folder / "p.parquet", table)).code == 0
    metadata = pq.read_schema(cli.result).metadata
    assert metadata[b"lab"] == b"ours"
    provenance = json.loads(metadata[b"voxelprobe"])
    assert provenance["run_key"] == json.loads((cli.run_folder / "run.json").read_text())["key"]
    assert provenance["run_key"][:12] in cli.run_folder.name
    assert provenance["volume"] == f"file://{volume}"
    assert (provenance["mip"], provenance["resolution_nm"], provenance["encoding"]) == (0, [4, 4, 40], "raw")
    assert all(provenance[name] for name in ("info_fingerprint", "points_fingerprint", "algorithm_version"))
    clock = re.compile(r"time|date|second|20\d\d-\d\d|host|pid", re.IGNORECASE)
    text = json.dumps({name: value for name, value in provenance.items() if name != "volume"})
    assert not clock.search(re.sub(r"[0-9a-f]{32}", "", text))


def test_how_the_work_is_shared_out_changes_no_byte(cli: Any, other_cli: Any, volume: Path, voxels: Any,
                                                    write_points: Any) -> None:
    """One worker or two, one thread or many, another workspace, another day: the same table, byte by byte."""
    points = write_points(cli.folder / "p.parquet", voxels)
    tables = []
    for line, more in ((cli, {"fetch_threads": 1}), (other_cli, {"workers": 2, "fetch_threads": 9}),
                       (other_cli, {"workers": 2, "fetch_threads": 3, "cache": cli.folder / "another cache",
                                    "workspace": cli.folder / "another", "cache_bytes": 1000})):
        outcome = line.run(volume=volume, points=points, **more)
        assert outcome.code == 0, outcome.err
        folder = Path(more.get("workspace", line.workspace)) / "runs"
        tables.append(next(folder.glob("*/result.parquet")).read_bytes())
    assert tables[0] == tables[1] == tables[2]


def test_help_describes_every_parameter(cli: Any) -> None:
    """`--help` ends well and says of each parameter what it means."""
    outcome = cli.run(help=True)
    assert outcome.code == 0
    for name in PARAMETERS:
        found = re.search(rf"^  --{name} [A-Z_]+\s+(\S.{{20,}})$", outcome.out, re.MULTILINE)
        assert found, f"--{name} isn't described"
