import os
from pathlib import Path

import pytest

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.volume.url import parse_cloudpath, parse_location


@pytest.mark.parametrize(("text", "url"), [
    ("gs://bucket/seg", "gs://bucket/seg"),
    ("gs://bucket/seg/", "gs://bucket/seg"),
    ("  gs://bucket/seg \n", "gs://bucket/seg"),
    ("GS://bucket/Seg", "gs://bucket/Seg"),
    ("s3://http://localhost:9000/bucket/seg/", "s3://http://localhost:9000/bucket/seg"),
    ("mem://x/seg", "mem://x/seg"),
    ("file:///data/seg/", "file:///data/seg"),
    ("file:///data/../seg//a", "file:///seg/a"),
    ("/data/seg", "file:///data/seg"),
    (Path("/data/seg"), "file:///data/seg"),
    ("FILE:///data/seg", "file:///data/seg"),
])
def test_a_location_has_one_form(text, url):
    """However a place is written, it is known by one URL; local ones have a path, others none."""
    location = parse_location(text)
    assert location.url == url
    assert location.path == (Path(url.removeprefix("file://")) if url.startswith("file://") else None)
    assert parse_location(location.url) == location


def test_relative_paths_and_homes_are_made_absolute(tmp_path, monkeypatch):
    """A relative path is taken from the working directory, a tilde from the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert parse_location("seg").path == Path(os.getcwd(), "seg")
    assert parse_location("file://seg/a").path == Path(os.getcwd(), "seg", "a")
    assert parse_location("~/seg").path == tmp_path / "home" / "seg"


@pytest.mark.parametrize("text", ["", "   ", "file://", "gs://"])
def test_no_path_is_no_location(text):
    """Nothing is not silently the working directory."""
    with pytest.raises(InputError, match="expected a path or a URL, found no path"):
        parse_location(text)


@pytest.mark.parametrize(("text", "name", "parent", "child"), [
    ("gs://bucket/a/b.parquet", "b.parquet", "gs://bucket/a", "gs://bucket/a/b.parquet/c"),
    ("file:///data/a", "a", "file:///data", "file:///data/a/c"),
    ("file:///a", "a", "file:///", "file:///a/c"),
    ("mem://bucket/a", "a", "mem://bucket", "mem://bucket/a/c"),
])
def test_name_parent_and_child_go_along_the_path(text, name, parent, child):
    """Going up and down stays in the one form."""
    location = parse_location(text)
    assert (location.name, location.parent.url, location.child("c").url) == (name, parent, child)
    assert location.child("c").parent == location


@pytest.mark.parametrize(("text", "url"), [
    ("precomputed://gs://bucket/seg", "gs://bucket/seg"),
    ("precomputed://precomputed://gs://bucket/seg", "gs://bucket/seg"),
    ("gs://bucket/seg/info", "gs://bucket/seg"),
    ("gs://bucket/seg/info/", "gs://bucket/seg"),
    ("gs://bucket/seg_info", "gs://bucket/seg_info"),
    ("precomputed://https://host/a/seg/", "https://host/a/seg"),
    ("gs://bucket/seg|neuroglancer-precomputed:", "gs://bucket/seg"),
    ("gs://bucket/seg/|neuroglancer-precomputed:/", "gs://bucket/seg"),
    ("https://host/a%7Cneuroglancer-precomputed:", "https://host/a"),
    ("https://host/a%20b", "https://host/a%20b"),
    ("precomputed:///data/seg", "file:///data/seg"),
    (" file:///data/seg ", "file:///data/seg"),
])
def test_a_cloudpath_is_what_cloudvolume_and_neuroglancer_write(text, url):
    """The ways to write a volume lead to where it is."""
    assert parse_cloudpath(text).url == url


@pytest.mark.parametrize(("text", "kind", "url"), [
    ("zarr://gs://bucket/a", "zarr", "zarr://gs://bucket/a"),
    ("zarr2://gs://bucket/a/", "zarr2", "zarr2://gs://bucket/a"),
    ("zarr2://gs://bucket/a/.zattrs", "zarr2", "zarr2://gs://bucket/a"),
    ("zarr3://https://host/a.zarr/zarr.json", "zarr3", "zarr3://https://host/a.zarr"),
    ("n5://file:///data/a.n5/attributes.json", "n5", "n5://file:///data/a.n5"),
    ("n5://s3://bucket/a/info", "n5", "n5://s3://bucket/a/info"),
    ("gs://bucket/a/|zarr3:", "zarr3", "zarr3://gs://bucket/a"),
    ("gs://bucket/a/|zarr2:/sub/0/", "zarr2", "zarr2://gs://bucket/a/sub/0"),
    ("gs://bucket/a%7Czarr:", "zarr", "zarr://gs://bucket/a"),
    ("n5:///data/a", "n5", "n5://file:///data/a"),
])
def test_the_kind_of_a_volume_is_part_of_its_cloudpath(text, kind, url):
    """Zarr and n5 volumes are named as CloudVolume or Neuroglancer do, and known by one form, which leads back."""
    path = parse_cloudpath(text)
    assert (path.kind, path.url) == (kind, url)
    assert parse_cloudpath(url) == path


@pytest.mark.parametrize(("text", "error", "said"), [
    ("", InputError, "expected a cloudpath as in gs://bucket/path"),
    ("precomputed://", InputError, "expected a cloudpath as in gs://bucket/path"),
    ("graphene://https://host/segmentation/table/x", UnsupportedError, "found a graph server's table"),
    ("boss://collection/a", UnsupportedError, "boss volumes can't be read; expected one of precomputed, zarr, zarr2"),
    ("gs://bucket/a|nifti:", UnsupportedError, "nifti volumes can't be read"),
    ("precomputed://zarr2://gs://b/a", UnsupportedError, "precomputed and zarr2 volumes can't be read"),
    ("gs://bucket/a|zarr3:../b", InputError, "'../b' leads out of the volume"),
    ("zarr3://", InputError, "expected a cloudpath as in gs://bucket/path"),
])
def test_what_is_no_known_volume_is_refused(text, error, said):
    """A volume of another kind is named as such."""
    with pytest.raises(error) as caught:
        parse_cloudpath(text)
    assert said in str(caught.value)
