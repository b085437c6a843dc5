"""What bad input gets: a message that names the object, what was expected and what was found; nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import write_volume

CHECKOUT = Path(__file__).parents[2]
SHAPE, OFFSET = (96, 48, 20), (1000, 400, 0)
HIDE_CRACKLE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "crackle":
            raise ModuleNotFoundError("No module named 'crackle'", name="crackle")
sys.meta_path.insert(0, Hide())
"""


def check_refused(outcome: Any, *expected: str) -> None:
    """A command that failed says all of `expected`, once, and shows no traceback."""
    assert outcome.code not in (0, None), outcome.err
    assert "Traceback" not in outcome.err + outcome.out, outcome.err
    for text in expected:
        assert text in outcome.err, f"{text!r} isn't in:\n{outcome.err}"
    assert outcome.err.count(expected[0]) == 1, outcome.err


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "seg"
    array = np.random.default_rng(1).integers(1, 100, SHAPE, dtype=np.uint32)
    write_volume(folder, array, encoding="crackle", chunk_size=(32, 32, 16), voxel_offset=OFFSET, mips=1)
    return folder


@pytest.fixture(scope="module")
def voxels() -> npt.NDArray[np.int64]:
    return np.random.default_rng(2).integers(0, SHAPE, (100, 3)) + OFFSET


@pytest.fixture(scope="module")
def points(voxels: Any, tmp_path_factory: pytest.TempPathFactory, write_points: Any) -> Path:
    folder = tmp_path_factory.mktemp("points")
    table = pa.table({"x": voxels[:, 0], "y": voxels[:, 1], "z": voxels[:, 2], "tags": [["a"]] * len(voxels)})
    return Path(write_points(folder / "points.parquet", table))


SETTINGS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("no points file", {"points": "/no/such.parquet"}, ("points table /no/such.parquet: no such file or folder",)),
    ("points of no known format", {"points": __file__}, (".parquet, .csv", "found .py")),
    ("no volume", {"volume": "/no/such/volume"}, ("no volume at file:///no/such/volume: expected a file named info",)),
    ("no such scheme", {"volume": "ftq://a/b"}, ("ftq://a/b",)),
    ("no such mip", {"mip": 2}, ("has no mip 2; its scales are 0: 4,4,40 nm; 1: 8,8,40 nm",)),
    ("no such resolution", {"mip": "9,9,9"}, ("has no mip 9,9,9; its scales are 0: 4,4,40 nm",)),
    ("mip that is none", {"mip": "fine"}, ("mip 'fine': expected a scale's index or its resolution",)),
    ("another kind of volume", {"volume": "boss://gs://bucket/image"}, ("boss volumes can't be read",)),
    ("wrong columns", {"point_columns": "X,Y,Z"},
     ("found no column 'X', 'Y', 'Z' (did you mean 'x'?)", "its columns are x int64, y int64, z int64")),
    ("wrong prefix", {"point_columns": "pre_pt"}, ("expected a list or struct column pre_pt_position or pre_pt",)),
    ("unit that is none", {"coord_resolution": "4,4"}, ("coord-resolution '4,4': expected nm, or",)),
    ("unit of nothing", {"coord_resolution": "0,4,40"}, ("coord-resolution '0,4,40': expected nm, or",)),
    ("unit in words", {"coord_resolution": "voxels"}, ("coord-resolution 'voxels': expected nm, or",)),
    ("wrong choice", {"missing_chunks": "zero"}, ("missing-chunks 'zero': expected one of null, error",)),
    ("output of no known format", {"output": "labels.xlsx"}, ("labels.xlsx: expected a name that ends", "found .xlsx")),
    ("nested column into CSV", {"output": "labels.csv"}, ("CSV can't hold the column tags (list<",)),
    ("output on a web server", {"output": "https://host/a.parquet"}, ("expected a local path or a bucket",)),
    ("cache on a bucket", {"cache": "gs://bucket/cache"}, ("cache gs://bucket/cache: expected a local folder",)),
]


@pytest.mark.parametrize(("name", "parameters", "expected"), SETTINGS, ids=[case[0] for case in SETTINGS])
def test_wrong_settings(name: str, parameters: dict[str, Any], expected: tuple[str, ...], cli: Any, volume: Path,
                        points: Path) -> None:
    """A setting that can't be met ends the run with a message on it, before anything is fetched."""
    outcome = cli.run(**({"volume": volume, "points": points} | parameters))
    check_refused(outcome, *expected)
    assert not list(cli.workspace.rglob("*.sqlite"))
    assert not list(cli.folder.rglob("labels.*"))


@pytest.mark.parametrize("missing", ["volume", "points"])
def test_a_required_parameter_is_missing(missing: str, cli: Any, volume: Path, points: Path) -> None:
    """Without a volume or without points, the message names the parameter and where to read on."""
    given = {"volume": volume, "points": points}
    del given[missing]
    check_refused(cli.run(**given), f"--{missing} is missing", "--help")


@pytest.mark.parametrize(("given", "missing"), [("volume", "points"), ("points", "volume")])
def test_the_demo_is_not_mixed_with_other_data(given: str, missing: str, cli: Any, volume: Path, points: Path) -> None:
    """In the checkout, one's own volume isn't sampled at the demo's points, nor the demo's at one's own."""
    outcome = cli.run(cwd=CHECKOUT, **{given: {"volume": volume, "points": points}[given]})
    check_refused(outcome, f"--{missing} is missing")


def other_unit(voxels: Any, name: str) -> Any:
    nm = (voxels + 0.5) * (4, 4, 40)
    return {"nm": nm, "8,8,40": nm / (8, 8, 40), "order": voxels[:, ::-1].copy(), "nowhere": voxels + 10**7}[name]


@pytest.mark.parametrize(("name", "advice"), [
    ("nm", "--coord-resolution nm would put 100.0% of them inside"),
    ("8,8,40", "--coord-resolution 8,8,40 would put 100.0% of them inside"),
    ("order", "columns in the order z,y,x would put 100.0% of them inside"),
])
def test_wrong_unit_or_axis_order(name: str, advice: str, cli: Any, volume: Path, voxels: Any,
                                  write_points: Any) -> None:
    """Points in another unit or order are found out before any chunk is asked for, with what would fit and how well."""
    with HttpStore(volume) as store:
        outcome = cli.run(volume=store.url, points=write_points(cli.folder / "p.parquet", other_unit(voxels, name)))
        check_refused(outcome, "100 of 100 points lie outside of http://127.0.0.1", advice)
        assert {request.path for request in store.requests} == {"info"}


def test_points_that_fit_nowhere_are_answered(cli: Any, volume: Path, voxels: Any, write_points: Any,
                                              read_table: Any) -> None:
    """Points that no unit would put inside are no mistake to stop for: all are out of bounds, with a warning."""
    outcome = cli.run(volume=volume, points=write_points(cli.folder / "p.npy", other_unit(voxels, "nowhere")))
    assert outcome.code == 0
    assert "no other unit or order of axes fits better" in outcome.err
    assert set(read_table(cli.result)["status"].to_pylist()) == {"out_of_bounds"}


@pytest.mark.parametrize(("change", "expected"), [
    ({"encoding": "wavelet"}, ("encoding 'wavelet' can't be read; the known ones are compressed_segmentation",)),
    ({"size": [96, 48]}, ("size: expected three whole numbers, found [96, 48]",)),
    ({"resolution": [4, 4, 0]}, ("expected three positive numbers for resolution, found [4, 4, 0]",)),
], ids=["unknown encoding", "size", "resolution"])
def test_wrong_info(change: dict[str, Any], expected: tuple[str, ...], cli: Any, volume: Path, points: Path) -> None:
    """An info that can't be read or contradicts itself is named, with what stands there."""
    info = json.loads((volume / "info").read_text())
    info["scales"][0] |= change
    (cli.folder / "odd").mkdir()
    (cli.folder / "odd/info").write_text(json.dumps(info))
    check_refused(cli.run(volume=cli.folder / "odd", points=points), *expected, f"{cli.folder}/odd")


def test_an_info_that_is_no_json(cli: Any, points: Path) -> None:
    """A web page in the place of the info is shown for what it is."""
    (cli.folder / "page").mkdir()
    (cli.folder / "page/info").write_text("<html>not here</html>")
    check_refused(cli.run(volume=cli.folder / "page", points=points), "page/info: expected JSON, found b'<html>")


def test_missing_codec_package(cli: Any, volume: Path, points: Path, shim: Any) -> None:
    """Without the package of the volume's encoding, the message has the command that installs it."""
    outcome = cli.run(volume=volume, points=points, env=shim(HIDE_CRACKLE))
    check_refused(outcome, "encoding 'crackle' needs a package that is not installed: pip install crackle-codec")


@pytest.mark.parametrize("clash", ["label", "status"])
def test_result_column_clash(clash: str, cli: Any, volume: Path, voxels: Any, write_points: Any) -> None:
    """A user's column is never replaced by one of the result's: the clash is named before anything is fetched."""
    table = pa.table({"x": voxels[:, 0], "y": voxels[:, 1], "z": voxels[:, 2], clash: np.arange(len(voxels))})
    outcome = cli.run(volume=volume, points=write_points(cli.folder / "p.parquet", table))
    check_refused(outcome, f"already has the column {clash}, which the result adds")
    assert not list(cli.workspace.rglob("*.sqlite"))


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "found an empty file"), (b"PAR1 not really", "p.parquet"),
], ids=["empty", "damaged"])
def test_damaged_points(content: bytes, expected: str, cli: Any, volume: Path) -> None:
    """A points file that is cut or something else is named, with what it was taken for."""
    (cli.folder / "p.parquet").write_bytes(content)
    outcome = cli.run(volume=volume, points=cli.folder / "p.parquet")
    check_refused(outcome, f"points table {cli.folder}/p.parquet: expected a Parquet file", expected)


def test_missing_chunks_as_an_error(cli: Any, voxels: Any, write_points: Any) -> None:
    """With --missing-chunks error, the first chunk that the store lacks is named and there is no table."""
    array = np.ones(SHAPE, np.uint8)
    write_volume(cli.folder / "seg", array, chunk_size=(32, 32, 16), voxel_offset=OFFSET, skip_chunks={(1, 0, 0)})
    points = write_points(cli.folder / "p.npy", voxels)
    outcome = cli.run(volume=cli.folder / "seg", points=points, missing_chunks="error")
    check_refused(outcome, f"chunk 1032-1064_400-432_0-16 of file://{cli.folder}/seg/4_4_40 is not in the store",
                  "--missing-chunks null")
    assert not cli.result.exists()
    # What was found out is not asked again; the answer stays the same.
    check_refused(cli.run(volume=cli.folder / "seg", points=points, missing_chunks="error"),
                  "chunk 1032-1064_400-432_0-16")
