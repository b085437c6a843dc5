import os
import uuid

import pytest

from voxelprobe.errors import InputError
from voxelprobe.run import inputs
from voxelprobe.run.inputs import fingerprint_points, localise_points
from voxelprobe.storage import Folder
from voxelprobe.volume.url import parse_location


def make_files(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_a_file_is_known_by_its_content_and_not_by_its_path(tmp_path):
    """Copies, moved or touched, are the same input; a changed byte makes another."""
    make_files(tmp_path, {"a.csv": b"x,y,z\n1,2,3\n", "below/b.csv": b"x,y,z\n1,2,3\n", "c.csv": b"x,y,z\n1,2,4\n",
                          "empty.csv": b"", "longer.csv": b"x,y,z\n1,2,3\n\n"})
    os.utime(tmp_path / "a.csv", (1, 1))
    prints = {name: fingerprint_points(tmp_path / name) for name in ("a.csv", "c.csv", "empty.csv", "longer.csv")}
    assert len(set(prints.values())) == 4
    assert fingerprint_points(tmp_path / "below" / "b.csv") == prints["a.csv"]


def test_a_folder_is_known_by_its_parquet_files(tmp_path):
    """Names inside count, since they are the order of rows; where the folder is, and other files, don't."""
    parts = {"a.parquet": b"one", "b/c.parquet": b"two"}
    same = [parts, dict(reversed(parts.items())), parts | {"_SUCCESS": b"", "notes.txt": b"x"}]
    others = [{"a.parquet": b"one"}, {"a.parquet": b"two", "b/c.parquet": b"one"}, parts | {"d.parquet": b""},
              {"z.parquet": b"one", "b/c.parquet": b"two"}, {"a.parquet": b"onetwo", "b/c.parquet": b""}]
    folders = [make_files(tmp_path / str(number), files) for number, files in enumerate([*same, *others])]
    prints = [fingerprint_points(folder) for folder in folders]
    assert len(set(prints[: len(same)])) == 1
    assert len(set(prints)) == 1 + len(others)


@pytest.mark.parametrize("at", [0, 500_000, -1])
def test_a_large_file_is_known_by_size_time_and_samples(tmp_path, monkeypatch, at):
    """Begin, middle and end of a large file are looked at, and its size and time of change."""
    monkeypatch.setattr(inputs, "WHOLE_BYTES", 100_000)
    path = tmp_path / "points.npy"
    content = bytearray(os.urandom(1_000_000))
    path.write_bytes(content)
    os.utime(path, (1000, 1000))
    before = fingerprint_points(path)
    assert before == fingerprint_points(path)
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, (1000, 1000))
    assert fingerprint_points(path) != before
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, (1000, 1001))
    assert fingerprint_points(path) != before
    os.rename(path, tmp_path / "moved.npy")
    os.utime(tmp_path / "moved.npy", (1000, 1000))
    assert fingerprint_points(tmp_path / "moved.npy") == before


def test_a_local_table_is_used_where_it_is(tmp_path):
    """Nothing is copied; a table that isn't there is named."""
    make_files(tmp_path, {"a.csv": b"x"})
    assert localise_points(parse_location(tmp_path / "a.csv"), tmp_path / "down") == tmp_path / "a.csv"
    with pytest.raises(InputError, match=r"points table .*none\.csv: no such file or folder"):
        localise_points(parse_location(tmp_path / "none.csv"), tmp_path / "down")
    assert not (tmp_path / "down").exists()


def test_remote_tables_are_downloaded_whole(tmp_path):
    """A file or a folder of Parquet comes to this machine with name and content, the same input as at home."""
    bucket = parse_location(f"mem://{uuid.uuid4().hex}/tables")
    store = Folder(bucket, tmp_path / "scratch")
    files = {"points.csv": b"x,y,z\n", "many/a.parquet": b"one", "many/b/c.parquet": b"two", "many/notes.txt": b"no"}
    for name, content in files.items():
        store.write_bytes(name, content)
    home = make_files(tmp_path / "home", files)
    for name in ("points.csv", "many"):
        local = localise_points(bucket.child(name), tmp_path / "down")
        assert local.name == name
        assert fingerprint_points(local) == fingerprint_points(home / name)
        assert localise_points(bucket.child(name), tmp_path / "down") == local
    with pytest.raises(InputError, match=r"no file at mem://.*none\.csv"):
        localise_points(parse_location(f"mem://{uuid.uuid4().hex}/tables/none.csv"), tmp_path / "down")


def test_tables_of_one_name_from_two_places_stay_apart(tmp_path):
    """Downloads are kept by where they came from."""
    locals_ = []
    for content in (b"1", b"2"):
        bucket = parse_location(f"mem://{uuid.uuid4().hex}/tables")
        Folder(bucket, tmp_path / "scratch").write_bytes("points.csv", content)
        locals_.append(localise_points(bucket.child("points.csv"), tmp_path / "down"))
    assert [path.read_bytes() for path in locals_] == [b"1", b"2"]
