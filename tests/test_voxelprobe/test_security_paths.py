"""Paths and addresses in the metadata of a volume: none leads out of it, and none to this computer."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe import InputError, TransportError, UnsupportedError
from voxelprobe.graphene.ids import parse_graph
from voxelprobe.graphene.table import check_data_dir
from voxelprobe.graphene.url import parse_graphene_url
from voxelprobe.locations import parse_location
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.transport.http import HttpSource
from voxelprobe.transport.protocol import Request
from voxelprobe.transport.s3 import S3Source
from voxelprobe.transport.sources import open_source
from voxelprobe.volume.fields import parse_path
from voxelprobe.volume.formats import read_volume

# Where a path of an `info` may lead by way of a server or a system that reads it in its own way.
ELSEWHERE = [
    "..", "../seg", "a/../../b", "./../b", "/etc/passwd", "//host/share", "file:///etc/passwd", "gs://other/seg",
    "http://169.254.169.254/latest", "C:\\seg", "..\\seg", "a\\..\\..\\b", "%2e%2e/seg", "%2E%2E%2Fseg",
    "a/%2e./%2e./b", ".%2e/seg", "%252e%252e/seg", "%25252e%25252e/seg", "%2fetc/passwd",
    "..%2fseg", "..%5cseg", "%5c%5chost", "a%00b", "a\0b", "a\nb", "a\x1b[2Jb", "\u202egpj", "a" * 1025,
]


def array(**more: Any) -> dict[str, Any]:
    return {"zarr_format": 2, "shape": [9, 9, 9], "chunks": [3, 3, 3], "dtype": "<u8", "compressor": None,
            "fill_value": 0, "order": "C", "filters": None} | more


def scale(key: str) -> dict[str, Any]:
    return {"key": key, "size": [9, 9, 9], "resolution": [4, 4, 40], "chunk_sizes": [[3, 3, 3]], "encoding": "raw"}


def ome(path: str) -> dict[str, Any]:
    level = {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]}
    return {"version": "0.4", "axes": [{"name": name, "type": "space"} for name in "zyx"], "datasets": [level]}


def beside_scales(name: str) -> tuple[str, Callable[[str], dict[str, Any]]]:
    info = {"data_type": "uint64", "num_channels": 1, "scales": [scale("8_8_40")]}
    return "precomputed", lambda path: {"info": info | {name: path}}


DOCUMENTS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    **{name: beside_scales(name) for name in ("mesh", "mesh_dir", "skeletons", "segment_properties")},
    "key": ("precomputed", lambda path: {"info": {"data_type": "uint64", "num_channels": 1, "scales": [scale(path)]}}),
    "zarr 2": ("zarr", lambda path: {".zattrs": {"multiscales": [ome(path)]}, f"{path}/.zarray": array()}),
    "zarr 3": ("zarr", lambda path: {"zarr.json": {
        "zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": [ome(path)]}}}}),
    "n5": ("n5", lambda path: {"attributes.json": {"multiscales": [{"datasets": [{"path": path}]}]}}),
}


@pytest.mark.parametrize("path", ELSEWHERE, ids=repr)
@pytest.mark.parametrize("place", DOCUMENTS)
def test_a_path_that_leads_elsewhere(place: str, path: str) -> None:
    """Every path in the metadata of every kind of volume is refused if any reading of it leads out of the folder."""
    kind, make = DOCUMENTS[place]
    documents, asked = make(path), []

    def read_json(name: str) -> Any:
        asked.append(name)
        return documents.get(name)

    with pytest.raises(InputError, match=r"leads out of the volume|expected a path for"):
        read_volume(kind, read_json, "mem://v")
    assert set(asked) <= {"info", "zarr.json", ".zattrs", ".zarray", "attributes.json"}, "it went there"


@pytest.mark.parametrize("path", [
    "8_8_40", "a/b", "s0", "em.v1/8..8", "...", "a%20b", "ünï", "50%", "a+b", "(x)", "", ".",
])
def test_paths_that_stay(path: str) -> None:
    """Names that only look odd are taken, as they are."""
    assert parse_path(path, "w") == ("" if path == "." else path)


@given(st.text(max_size=12), st.integers(0, 3), st.sampled_from(["../", "/..", "\\", "\0", ":"]))
def test_no_quoting_hides_a_way_out(name: str, times: int, way: str) -> None:
    """However often a way out is quoted, and whatever stands around it, the path is refused."""
    path = f"{name}/{way}/x"
    for _ in range(times):
        path = quote(path, safe="")
    with pytest.raises(InputError):
        parse_path(path, "w")


def test_what_is_not_used_is_not_followed(tmp_path: Path, oracle: Any) -> None:
    """Members that nobody knows may say what they like, and meshes are named: nothing of them is ever asked for."""
    oracle.write(tmp_path / "seg")
    info = json.loads((tmp_path / "seg/info").read_text())
    names = ("redirect", "data_dir", "key", "chunkedgraph", "meshing", "path")
    hostile: dict[str, Any] = dict.fromkeys(names, "../../etc")
    hostile |= {"mesh_metadata": {"unsharded_mesh_dir": "file:///etc"}, "@type": "../..", "skeleton_metadata": {"@": 1}}
    info |= {name: value for name, value in hostile.items() if name not in info}
    info |= {"mesh": "mesh_mip_2", "skeletons": None, "segment_properties": "properties/"}
    info["scales"][0] |= {"mesh": "../x", "hidden": "../y"}
    (tmp_path / "seg/info").write_text(json.dumps(info))
    with HttpStore(tmp_path / "seg") as store:
        oracle.check(store.url)
        key = info["scales"][0]["key"]
        assert {request.path.split("/")[0] for request in store.requests} == {"info", key}


GRAPH = {
    "graph": {"chunk_size": [256, 256, 512], "n_layers": 6, "spatial_bit_masks": {"1": 10, "2": 10}},
    "app": {"supported_api_versions": [0, 1]},
}


@pytest.mark.parametrize("path", [
    "gs://b/../c", "gs://b/%2e%2e/c", "gs://b/%252e%252e/c", "gs://b/a\\b", "gs://b/a%5cb", "gs://b/a%00b",
    "https://h/..%2fc", "https://me:pw@h/ws", "https://me%40h/ws", "s3://https://me:pw@h/b", "https://h/a%0d%0ab",
    "ws", "../ws", "/data/ws", "file://ws", "gs://", "mem://b/ws", "ftp://h/ws", "data:,x", "javascript://h/x", "zarr://gs://b/x",
    "graphene://https://h/segmentation/table/t", "precomputed://precomputed://gs://b/x", "FILE:///etc", 3,
    None, ["x"],
])
def test_a_watershed_elsewhere(path: Any) -> None:
    """A data_dir that isn't the plain cloudpath of a store is refused."""
    with pytest.raises((InputError, UnsupportedError), match="data_dir"):
        parse_graph(GRAPH | {"data_dir": path}, "the-table")


@pytest.mark.parametrize("path", [
    "file:///etc", "http://127.0.0.1/ws", "http://127.1.2.3:80/ws", "http://localhost:8080/ws", "http://LOCALHOST./ws",
    "http://[::1]/ws", "http://[::ffff:127.0.0.1]/ws", "http://0.0.0.0/ws", "http://169.254.169.254/latest",
    "http://[fe80::1]/ws", "http://[fd00:ec2::254]/latest", "http://100.100.100.200/", "s3://http://127.0.0.1:9/b/ws",
    "s3://http://169.254.169.254/b/ws",
])
def test_a_watershed_on_this_computer(path: str) -> None:
    """A graph server elsewhere can't send us to our own files or services; one on this computer may."""
    assert parse_graph(GRAPH | {"data_dir": path}, "t").data_dir == path.rstrip("/")
    with pytest.raises(InputError, match=r"data_dir .* leads to"):
        check_data_dir(path, parse_graphene_url("graphene://https://graphs.example/segmentation/table/t"))
    check_data_dir(path, parse_graphene_url("graphene://http://127.0.0.1:5000/segmentation/table/t"))


@pytest.mark.parametrize("path", ["gs://b/ws", "s3://b/ws", "https://h/ws", "http://10.1.2.3/ws", "matrix://b/ws"])
def test_a_watershed_in_a_store(path: str) -> None:
    """Buckets and web servers, a laboratory's own among them, are where watersheds are."""
    check_data_dir(path, parse_graphene_url("graphene://https://graphs.example/segmentation/table/t"))


def test_an_address_of_somebody_else_gets_no_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a server that only somebody's metadata name goes neither the password for web servers nor a key for S3."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/http-secret.json").write_text(json.dumps({"user": "ann", "password": "hush"}))
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush")
    for url, sends in (("https://h/ws", True), ("s3://https://h/b/ws", True), ("s3://b/ws", True)):
        for named in (True, False):
            with closing(open_source(parse_location(url), threads=1, named_by_user=named)) as source:
                single = source._source
                assert isinstance(single, HttpSource)
                known = single._keys if isinstance(single, S3Source) else single._sent
                # Amazon's own servers are nobody else's.
                assert bool(known) == (sends if named else url == "s3://b/ws"), (url, named)


def test_a_name_for_this_computer_is_found_out_when_it_is_connected_to(serve: Any) -> None:
    """Whatever name it was found by, an address of this computer isn't connected to on the word of somebody else."""
    server = serve(lambda path, number: (200, {}, b"{}"))
    for url in (server.url, server.url.replace("127.0.0.1", "localhost"), server.url.replace("127.0.0.1", "0.0.0.0")):
        with closing(HttpSource(url, named_by_user=False)) as source:
            with pytest.raises(TransportError, match=r"leads to .*, a loopback address; only a user can name one"):
                source.fetch("info")
            transfers = source.open_transfers(limit=2)
            for number in range(3):
                transfers.start(number, Request("info"))
            ended = [outcome for _ in range(3) for _, outcome in transfers.wait(10)]
            transfers.close()
            assert len(ended) == 3
            assert all(isinstance(outcome, TransportError) for outcome in ended)
    assert server.paths == []


@pytest.mark.parametrize("url", [
    "https://ann:hush@host/seg", "https://hush@host/seg", "s3://https://ann:hush@host/b/seg", "http://ann:hush@host",
    "https://host/p.parquet?sig=hush", "https://host/a?b=hush/p.csv", "https://host?hush", "gs://hush@b/seg",
])
def test_secrets_in_an_address(url: str) -> None:
    """An address with a password or a token in it is refused, since addresses stand in logs, and isn't repeated."""
    with pytest.raises(InputError, match=r"belongs? in a file") as caught:
        parse_location(url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host/a@b/seg", "gs://b/a@b?c", "https://[::1]:80/x", "/data/a@b?c"])
def test_addresses_that_only_look_so(url: str) -> None:
    """An @ or a ? in the name of an object is no secret."""
    assert parse_location(url).url.endswith(url)
