import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxelprobe.errors import TransportError
from voxelprobe.run.manifests import Manifest, read_manifest, seal, write_manifest
from voxelprobe.storage import Folder
from voxelprobe.volume.url import parse_location

FACTS = {"points": 3, "seconds": 0.25, "corrupt": {}, "words": ["ä"]}


@pytest.fixture
def folder(tmp_path):
    folder = Folder(parse_location(tmp_path))
    folder.write_bytes("plan/a.parquet", b"abc")
    folder.write_bytes("plan/b.parquet", b"")
    write_manifest(folder, "plan/manifest.json", "key1", ["plan/a.parquet", "plan/b.parquet"], FACTS)
    return folder


def read(folder, key="key1"):
    return read_manifest(folder, "plan/manifest.json", key)


def edit(change, *, is_sealed=True):
    def apply(folder):
        document = change(json.loads(folder.read_bytes("plan/manifest.json")))
        if is_sealed and isinstance(document, dict):
            document = seal(document)
        folder.write_bytes("plan/manifest.json", json.dumps(document).encode())
    return apply


def test_a_whole_manifest_says_what_was_written(folder):
    """Key, sizes and facts come back; the files are as they were."""
    assert read(folder) == Manifest("key1", {"plan/a.parquet": 3, "plan/b.parquet": 0}, FACTS)


@pytest.mark.parametrize("damage", [
    lambda f: f.path("plan/manifest.json").unlink(),
    lambda f: f.write_bytes("plan/manifest.json", b""),
    lambda f: f.write_bytes("plan/manifest.json", b"[" * 100_000),
    lambda f: f.write_bytes("plan/manifest.json", b"\xff\xfe{}"),
    lambda f: f.path("plan/a.parquet").unlink(),
    lambda f: f.write_bytes("plan/a.parquet", b"ab"),
    lambda f: f.write_bytes("plan/a.parquet", b"abcd"),
    lambda f: f.write_bytes("plan/b.parquet", b"x"),
    edit(lambda d: d | {"key": "key2"}),
    edit(lambda d: d | {"key": None}),
    edit(lambda d: d | {"files": {"plan/a.parquet": 4}}),
    edit(lambda d: d | {"files": {"plan/none.parquet": None}}),
    edit(lambda d: d | {"files": {"a\0b": 1}}),
    edit(lambda d: d | {"files": [1]}),
    edit(lambda d: d | {"facts": 3}),
    edit(lambda d: {"key": d["key"], "files": d["files"]}),
    edit(lambda d: [d]),
    edit(lambda d: None),
])
def test_a_manifest_that_isnt_right_in_everything_is_none(folder, damage):
    """Damaged, edited, or with a file gone or of another size, a marker marks nothing."""
    damage(folder)
    assert read(folder) is None


@pytest.mark.parametrize("change", [
    lambda d: d | {"facts": d["facts"] | {"points": 4}}, lambda d: d | {"facts": {}}, lambda d: d | {"more": 1},
    lambda d: d | {"files": {}}, lambda d: d | {"seal": None}, lambda d: {k: v for k, v in d.items() if k != "seal"},
    lambda d: d | {"seal": d["seal"][::-1]},
])
def test_a_manifest_that_was_edited_is_none(folder, change, caplog):
    """Whatever somebody changes in a marker, be it a count, it is found, said, and marks nothing any more."""
    edit(change, is_sealed=False)(folder)
    assert read(folder) is None
    assert "manifest.json was changed after it was written" in caplog.text


def test_a_manifest_that_was_written_anew_is_the_same(folder):
    """Spaces and the order of members are no change."""
    document = json.loads(folder.read_bytes("plan/manifest.json"))
    folder.write_bytes("plan/manifest.json", json.dumps(dict(sorted(document.items())), indent=7).encode())
    assert read(folder) == Manifest("key1", {"plan/a.parquet": 3, "plan/b.parquet": 0}, FACTS)


def test_a_manifest_of_another_key_is_none(folder):
    """What was made from something else is not complete."""
    assert read(folder, "key2") is None
    assert read(folder, "") is None


def test_a_cut_manifest_is_none_at_every_length(folder):
    """However much of it was written, half a marker is none."""
    content = folder.read_bytes("plan/manifest.json").rstrip()
    for length in range(len(content)):
        folder.write_bytes("plan/manifest.json", content[:length])
        assert read(folder) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
                    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
                        st.one_of(st.sampled_from(["key", "files", "facts"]), st.text(max_size=3)), inner,
                        max_size=4)), max_leaves=10))
def test_any_document_is_none_or_true(folder, document):
    """No JSON, however odd, is an error, or a manifest whose files aren't there."""
    folder.write_bytes("plan/manifest.json", json.dumps(document).encode())
    manifest = read(folder)
    assert manifest is None or all(folder.size(name) == size for name, size in manifest.files.items())


def test_a_marker_of_files_that_arent_there_is_not_written(folder):
    """A file that vanished before its marker is said, not marked as complete."""
    with pytest.raises(TransportError, match=r"other\.json: none\.parquet vanished"):
        write_manifest(folder, "other.json", "key1", ["plan/a.parquet", "none.parquet"], {})
    assert folder.read_bytes("other.json") is None
