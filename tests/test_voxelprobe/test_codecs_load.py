import importlib
import sys

import pytest

from voxelprobe.codecs import ENCODINGS, load_reader
from voxelprobe.errors import UnsupportedError


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_readers_are_complete(encoding):
    """Every encoding in the table loads as a module with the two names of a PointReader."""
    reader = load_reader(encoding, "file:///vol")
    assert callable(reader.read_points)
    assert isinstance(reader.ISOLATED, bool)


def test_unknown_encoding():
    """An encoding without a reader is refused, naming the volume and the encodings there are."""
    with pytest.raises(UnsupportedError, match=r"gs://b/vol: encoding 'jpeg2000' .* compressed_segmentation, .*, raw"):
        load_reader("jpeg2000", "gs://b/vol")


@pytest.mark.parametrize("encoding", ["crackle", "compresso"])
def test_missing_package(monkeypatch, encoding):
    """A package that isn't installed is named with the pip command, as the table of encodings has it."""
    load_reader(encoding, "v")
    monkeypatch.delitem(sys.modules, f"voxelprobe.codecs.{encoding}")
    monkeypatch.setitem(sys.modules, encoding, None)
    with pytest.raises(UnsupportedError, match=rf"gs://b/vol: .*: pip install {ENCODINGS[encoding]}$") as caught:
        load_reader(encoding, "gs://b/vol")
    assert isinstance(caught.value.__cause__, ImportError)


def test_own_fault_is_not_a_missing_package(monkeypatch):
    """An ImportError of voxelprobe's own is not taken for a package that the user could install."""
    def fail(name):
        raise ImportError("no such name", name="voxelprobe.codecs.protocol")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match="no such name"):
        load_reader("raw", "v")


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_light_readers_load_no_package(encoding):
    """Readers of our own make don't load the packages of the others."""
    import subprocess
    program = (f"import sys; from voxelprobe.codecs import load_reader; load_reader({encoding!r}, 'v'); "
               f"sys.exit(bool({{'crackle', 'compresso', 'compressed_segmentation'}} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
