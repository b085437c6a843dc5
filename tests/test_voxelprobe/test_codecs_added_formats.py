"""docs/encodings.md: its table is the table of encodings, and what it says of adding one is done here and holds."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from voxelprobe import CorruptDataError, codecs, sample_points
from voxelprobe.codecs import ENCODINGS, load_reader
from voxelprobe.testing import encoders
from voxelprobe.testing.contracts import PointReaderTests
from voxelprobe.testing.volumes import chunk_name, write_volume

TEXT = (Path(__file__).parents[2] / "docs/encodings.md").read_text()
# What each piece of code is for is said in the line before it.
CODE = dict(re.findall(r"`([^`\n]+)`[^`\n]*:\n\n```python\n(.*?)```", TEXT, re.DOTALL))
LAWS = sorted(name for name in dir(PointReaderTests) if name.startswith("test_"))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Do what the page says, in this process only; return the test class it ends with."""
    folder = tmp_path / "added"
    folder.mkdir()
    (folder / "runs.py").write_text(CODE["voxelprobe/codecs/runs.py"])
    monkeypatch.setattr(codecs, "__path__", [*codecs.__path__, str(folder)])
    monkeypatch.setattr(codecs, "ENCODINGS", ENCODINGS | eval(f"{{{CODE['voxelprobe/codecs/__init__.py']}}}"))
    names = dict(vars(encoders))
    exec(CODE["voxelprobe/testing/encoders.py"], names)
    for name, encode in eval(f"{{{CODE['ENCODERS']}}}", names).items():
        monkeypatch.setitem(encoders.ENCODERS, name, encode)
    tests = {"__name__": "test_codecs_runs"}
    exec(CODE["tests/test_voxelprobe/test_codecs_runs.py"], tests)
    yield tests["TestRunsReader"]
    # What was loaded from the temporary folder goes with it.
    monkeypatch.delitem(sys.modules, "voxelprobe.codecs.runs")
    monkeypatch.delattr(codecs, "runs")


@pytest.mark.parametrize("law", LAWS)
def test_the_pages_reader_keeps_the_contract(runs, law):
    """The reader that the page adds keeps every law of `PointReaderTests`, by the class that the page has."""
    getattr(runs(), law)()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_volume_of_the_added_encoding(tmp_path, runs, channels):
    """A volume in it is written and sampled like any other; a chunk that was cut is corrupt, the others aren't."""
    array = np.random.default_rng(0).integers(0, 2**64, (20, 15, 9, channels), np.uint64).repeat(2, 0)
    info = write_volume(tmp_path / "seg", array, encoding="runs", chunk_size=(16, 16, 8))
    points = np.indices(array.shape[:3]).reshape(3, -1).T
    expected = array.reshape(-1) if channels == 1 else array.reshape(-1, channels)
    np.testing.assert_array_equal(sample_points(str(tmp_path / "seg"), points), expected)
    cut = tmp_path / "seg" / chunk_name(info["scales"][0], (1, 0, 0))
    cut.write_bytes(cut.read_bytes()[:-12])
    labels, status = sample_points(str(tmp_path / "seg"), points, return_status=True)
    bad = (points // [16, 16, 8] == [1, 0, 0]).all(axis=1)
    np.testing.assert_array_equal(status, np.where(bad, "corrupt_chunk", "ok"))
    np.testing.assert_array_equal(labels.data[~bad], expected[~bad])
    with pytest.raises(CorruptDataError, match="expected runs of"):
        sample_points(str(tmp_path / "seg"), points)


def test_nothing_is_left(runs):
    """The reader is the added one here, and the table of encodings itself is untouched."""
    assert load_reader("runs", "v").__file__.endswith("added/runs.py")
    assert "runs" not in ENCODINGS


def test_the_table_is_complete():
    """The page has a row for every encoding, in the order of the table in the code, with the same package."""
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]]
            for line in TEXT.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert {row[0]: row[2] or None for row in rows} == ENCODINGS
    assert [row[0] for row in rows] == list(ENCODINGS)
    assert all(row[1] and row[3] for row in rows)
