"""Volumes behind a real web server, nginx, in the ways that people have set theirs up: every label is the oracle's."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest

from voxelprobe import AuthorizationError, InputError, TransportError, sample_points
from voxelprobe.locations import parse_location
from voxelprobe.run.inputs import localise_points
from voxelprobe.storage import Folder
from voxelprobe.transport.http import HttpSource
from voxelprobe.transport.protocol import StoredObject

# Debian has it where only root's PATH looks.
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
if NGINX is None and os.environ.get("VOXELPROBE_NGINX") != "required":
    pytest.skip("no nginx on this machine (apt-get install nginx-light)", allow_module_level=True)

PATIENCE_SECONDS = 30.0
SHARDING = {"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3, "minishard_index_encoding": "gzip",
            "data_encoding": "gzip"}
SCALE = "4_4_40"
GONE = (1, 1, 1)

CONFIG = """
daemon off; master_process off;
pid {folder}/nginx.pid; error_log {folder}/error.log notice;
events {{ worker_connections 512; }}
http {{
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  log_format plain '$server_port|$status|$uri|$http_range|$http_authorization|$sent_http_content_encoding|'
                   '$sent_http_content_length|$sent_http_etag|$server_protocol';
  access_log {folder}/access.log plain;
  default_type application/octet-stream;
  limit_req_zone $server_port zone=few:64k rate=100r/s;
  server {{
    listen 127.0.0.1:{port}; root {data};
    location /static/ {{ gzip_static on; }}
    location /both/ {{ gzip_static on; }}
    location /always/ {{ gzip_static always; gunzip on; }}
    location /fly/ {{ alias {data}/plain/; gzip on; gzip_types *; gzip_min_length 1; }}
    location /old/ {{ alias {data}/plain/; gzip on; gzip_types *; gzip_min_length 1; chunked_transfer_encoding off; }}
    location /whole/ {{ alias {data}/plain/; max_ranges 0; }}
    location /wholeshards/ {{ alias {data}/shards/; max_ranges 0; }}
    location /flyshards/ {{ alias {data}/shards/; gzip on; gzip_types *; gzip_min_length 1; }}
    location /close/ {{ alias {data}/plain/; keepalive_timeout 0; }}
    location ~ ^/r301/(.*)$ {{ return 301 /plain/$1; }}
    location ~ ^/r302/(.*)$ {{ return 302 http://127.0.0.1:{other}/plain/$1; }}
    location ~ ^/r303/(.*)$ {{ return 303 /plain/$1; }}
    location ~ ^/r307/(.*)$ {{ return 307 http://localhost:{other}/shards/$1; }}
    location ~ ^/r308/(.*)$ {{ return 308 /shards/$1; }}
    location /loop/ {{ return 302 $request_uri; }}
    location /tofile/ {{ return 302 file://{data}/plain/info; }}
    location /toftp/ {{ return 302 ftp://127.0.0.1:{other}/info; }}
    location /closed/ {{ alias {data}/plain/; auth_basic "volumes"; auth_basic_user_file {folder}/users; }}
    location ~ ^/away/(.*)$ {{ return 302 http://127.0.0.1:{other}/plain/$1; }}
    location ~ ^/awayname/(.*)$ {{ return 302 http://localhost:{other}/plain/$1; }}
    location /denied/ {{ alias {data}/plain/; }}
    location /denied/{scale}/ {{ deny all; }}
    location /limited/ {{ alias {data}/plain/; limit_req zone=few burst=8 nodelay; }}
    location /page/ {{ alias {data}/plain/; }}
    location /page/{scale}/ {{ default_type text/html; return 200 "<html><body>Please sign in.</body></html>"; }}
    location /pagegz/ {{ alias {data}/both/; }}
    location /pagegz/{scale}/ {{ default_type text/html; return 200 "<html><body>Please sign in.</body></html>"; }}
    location /fallback/ {{ alias {data}/holes/; error_page 404 =200 /page.html; }}
    location = /page.html {{ internal; default_type text/html; return 200 "<html>Not here.</html>"; }}
    location /tables/ {{ gzip on; gzip_types *; gzip_min_length 1; }}
  }}
  server {{ listen 127.0.0.1:{other}; root {data}; }}
}}
"""


class Nginx:
    """A server of a folder; `url` is the main one's, `other` another port of it."""

    def __init__(self, data: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        ports = _free_ports()
        self.url, self.other = (f"http://127.0.0.1:{port}" for port in ports)
        (folder / "users").write_text("ann:{PLAIN}pass word\n")
        config = CONFIG.format(folder=folder, data=data, port=ports[0], other=ports[1], scale=SCALE)
        (folder / "nginx.conf").write_text(config)
        assert NGINX is not None, "VOXELPROBE_NGINX=required, and there is no nginx"
        self._process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf"], stdin=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._wait(lambda: all(_answers(port) for port in ports))

    def requests(self, path: str, count: int = 1) -> list[list[str]]:
        """Return the fields of the log's lines of paths that match, once there are so many; nginx writes them late."""
        def lines() -> list[list[str]]:
            said = [line.split("|") for line in (self.folder / "access.log").read_text().splitlines()]
            return [line for line in said if re.match(path, line[2])]

        self._wait(lambda: len(lines()) >= count)
        return lines()

    def clear(self) -> None:
        """Forget what was logged."""
        os.truncate(self.folder / "access.log", 0)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate(timeout=PATIENCE_SECONDS)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"nginx: {self._process.poll()} {(self.folder / 'error.log').read_text()}")
            time.sleep(0.005)


def _free_ports() -> list[int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in (first, second)]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, known: Any) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("nginx")
    data, oracle = folder / "data", known()
    oracle.write(data / "plain")
    oracle.write(data / "segments", encoding="compressed_segmentation")
    oracle.write(data / "shards", sharding=SHARDING)
    oracle.write(data / "static", compress="gzip")
    oracle.write(data / "always", compress="gzip")
    oracle.write(data / "both", encoding="compressed_segmentation", compress="gzip")
    shutil.copytree(data / "segments", data / "both", dirs_exist_ok=True)
    oracle.write(data / "holes", skip_chunks=[GONE])
    (data / "tables").mkdir()
    (data / "tables/points.csv").write_text("x,y,z\n" + "13,7,101\n" * 500)
    nginx = Nginx(data, folder / "nginx")
    yield nginx
    nginx.stop()


@pytest.fixture
def nginx(server: Nginx) -> Nginx:
    server.clear()
    return server


# What each is about: the encodings of the answers to requests of chunks or shards, and their status.
SERVED = {
    "plain": ({"-"}, {"200"}), "segments": ({"-"}, {"200"}), "static": ({"gzip"}, {"200"}), "both": ({"gzip"}, {"200"}),
    "always": ({"gzip"}, {"200"}), "fly": ({"gzip"}, {"200"}), "old": ({"gzip"}, {"200"}), "close": ({"-"}, {"200"}),
    "shards": ({"-"}, {"206"}), "whole": ({"-"}, {"200"}), "wholeshards": ({"-"}, {"200"}),
    "flyshards": ({"-"}, {"206"}),
}


@pytest.mark.parametrize("folder", SERVED)
def test_volumes_as_people_serve_them(nginx: Nginx, known: Any, folder: str) -> None:
    """Files plain and compressed, compressed on the way, without ranges, without kept connections: the same labels."""
    known().check(f"{nginx.url}/{folder}")
    encodings, statuses = SERVED[folder]
    lines = nginx.requests(f"/{folder}/{SCALE}/")
    # What is left of a chunk to compress may be too little for it.
    assert {line[5] for line in lines} == encodings
    assert {line[1] for line in lines} == statuses
    if folder in ("fly", "old"):
        assert {line[6] for line in lines} == {"-"}, "the length isn't said"
        assert all(line[7].startswith("W/") for line in lines)


@pytest.mark.parametrize("folder", ["plain", "static", "both", "always", "fly", "old", "whole", "wholeshards", "holes"])
def test_a_point_alone(nginx: Nginx, known: Any, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few points, for which bytes of a chunk are asked for, have their labels, whether nginx gives ranges or not."""
    monkeypatch.setattr("voxelprobe.fetching_voxels.REQUEST_BYTES", 20)  # these chunks are small
    oracle = known()
    points = oracle.points()[:3]
    labels, status = sample_points(f"{nginx.url}/{folder}", points, return_status=True)
    missing = ((points - oracle.offset) // oracle.chunk_size == 1).all(axis=1) & (folder == "holes")
    np.testing.assert_array_equal(status == "missing_chunk", missing)
    np.testing.assert_array_equal(labels[~missing].data, oracle.at(points)[~missing])
    ranged = [line for line in nginx.requests(f"/{folder}/{SCALE}/") if line[3] != "-"]
    assert bool(ranged) == (folder != "both")
    if folder in ("plain", "fly", "old"):
        assert {line[1] for line in ranged} == {"206"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(nginx: Nginx, known: Any, status: int) -> None:
    """A redirect to another path or port is followed, for whole objects and for ranges of shards."""
    known().check(f"{nginx.url}/r{status}")
    assert {line[1] for line in nginx.requests(f"/r{status}/")} == {str(status)}


@pytest.mark.parametrize(("folder", "message"), [
    ("loop", "more than 5 redirects"), ("tofile", "not a URL that can be fetched"),
    ("toftp", "not a URL that can be fetched"),
])
def test_redirects_that_lead_nowhere(nginx: Nginx, folder: str, message: str) -> None:
    """A loop, and a redirect to a file of this machine or to FTP, are errors at once that name the object."""
    with pytest.raises(TransportError, match=f"{nginx.url}/{folder}/info: .*{message}"):
        sample_points(f"{nginx.url}/{folder}", [13, 7, 101])
    assert len(nginx.requests(f"/{folder}/")) == (6 if folder == "loop" else 1)


@pytest.mark.parametrize(("start", "end"), [(0, 9), (5, None), (60, 10**9), (10**9, 10**9 + 4), (7, 7)])
@pytest.mark.parametrize("folder", ["shards", "wholeshards"])
def test_ranges_past_the_end(nginx: Nginx, server: Nginx, folder: str, start: int, end: int | None) -> None:
    """A range gives the bytes that there are, none past the end, whether nginx answers 206, 416 or 200."""
    content = (server.folder.parent / "data/shards" / SCALE / "0.shard").read_bytes()
    source = HttpSource(f"{nginx.url}/{folder}")
    found = source.fetch(f"{SCALE}/0.shard", start, end)
    source.close()
    assert found is not None
    assert found.content == content[start:end]
    if start != end:
        expected = "200" if folder == "wholeshards" else "416" if start >= len(content) else "206"
        assert [line[1] for line in nginx.requests(f"/{folder}/")] == [expected]


@pytest.fixture
def password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def write(password: str) -> None:
        (tmp_path / "files/secrets").mkdir(parents=True)
        (tmp_path / "files/secrets/http-secret.json").write_text(json.dumps({"user": "ann", "password": password}))
        monkeypatch.setenv("CLOUD_FILES_DIR", str(tmp_path / "files"))
        monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path / "none"))

    return write


def test_a_password(nginx: Nginx, known: Any, password: Callable[[str], None]) -> None:
    """The user and password of http-secret.json in CLOUD_FILES_DIR open what is closed without."""
    with pytest.raises(AuthorizationError, match=r"/closed/info: .*401.*http-secret\.json"):
        sample_points(f"{nginx.url}/closed", [13, 7, 101])
    password("pass word")
    known().check(f"{nginx.url}/closed")


def test_a_wrong_password(nginx: Nginx, password: Callable[[str], None]) -> None:
    """A password that nginx doesn't take is asked with once, and isn't in the message."""
    password("another word")
    with pytest.raises(AuthorizationError, match="401") as caught:
        sample_points(f"{nginx.url}/closed", [13, 7, 101])
    assert "another word" not in str(caught.value)
    assert len(nginx.requests("/closed/")) == 1


@pytest.mark.parametrize("folder", ["away", "awayname"])
def test_passwords_stay_where_they_are_for(nginx: Nginx, known: Any, password: Callable[[str], None],
                                           folder: str) -> None:
    """A redirect to another port, by another name or not, is followed without the password."""
    password("pass word")
    known().check(f"{nginx.url}/{folder}")
    assert {line[4] for line in nginx.requests(f"/{folder}/")} == {"Basic YW5uOnBhc3Mgd29yZA=="}
    assert {line[4] for line in nginx.requests("/plain/")} == {"-"}


def test_missing_chunks(nginx: Nginx, known: Any) -> None:
    """A 404 is a missing chunk, and no other point is touched by it."""
    oracle = known()
    points = oracle.points()
    labels, status = sample_points(f"{nginx.url}/holes", points, return_status=True)
    missing = ((points - oracle.offset) // oracle.chunk_size == 1).all(axis=1)
    assert missing.any()
    np.testing.assert_array_equal(status == "missing_chunk", missing)
    np.testing.assert_array_equal(labels[~missing].data, oracle.at(points)[~missing])


def test_no_volume(nginx: Nginx) -> None:
    """No file `info` is an InputError."""
    with pytest.raises(InputError, match=f"no volume at {nginx.url}/nothing"):
        sample_points(f"{nginx.url}/nothing", [13, 7, 101])


def test_a_forbidden_chunk(nginx: Nginx, known: Any) -> None:
    """A 403 is not a missing chunk, but an AuthorizationError that names it."""
    with pytest.raises(AuthorizationError, match=f"{nginx.url}/denied/{SCALE}/.*403"):
        sample_points(f"{nginx.url}/denied", known().points())


def test_a_limit_of_requests(nginx: Nginx, known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that nginx answers with 503, since there were too many at once, are asked for again: none is missing."""
    monkeypatch.setattr("voxelprobe.transport.sources.FIRST_WAIT_SECONDS", 0.05)
    known().check(f"{nginx.url}/limited")
    statuses = [line[1] for line in nginx.requests("/limited/")]
    assert set(statuses) == {"200", "503"}
    assert statuses.count("200") == 28


@pytest.mark.parametrize("folder", ["page", "pagegz"])
@pytest.mark.parametrize("count", [1, None])
def test_a_page_instead_of_chunks(nginx: Nginx, known: Any, folder: str, count: int | None) -> None:
    """A server that answers 200 with a page, where it should say that it won't, gives corrupt chunks, not labels."""
    labels, status = sample_points(f"{nginx.url}/{folder}", known().points()[:count], return_status=True)
    assert set(status) == {"corrupt_chunk"}
    assert np.ma.getmaskarray(labels).all()


def test_a_page_instead_of_404(nginx: Nginx, known: Any) -> None:
    """A server that answers a missing chunk with a page makes it a corrupt one; the others are read."""
    oracle = known()
    points = oracle.points()
    labels, status = sample_points(f"{nginx.url}/fallback", points, return_status=True)
    lost = ((points - oracle.offset) // oracle.chunk_size == 1).all(axis=1)
    np.testing.assert_array_equal(status == "corrupt_chunk", lost)
    np.testing.assert_array_equal(labels[~lost].data, oracle.at(points)[~lost])


def test_points_that_are_compressed_on_the_way(nginx: Nginx, tmp_path: Path) -> None:
    """A table that nginx compresses while it sends it is downloaded as it is in the server's folder."""
    path = localise_points(parse_location(f"{nginx.url}/tables/points.csv"), tmp_path / "down")
    assert pyarrow.csv.read_csv(path).num_rows == 500
    lines = nginx.requests("/tables/")
    assert "gzip" in {line[5] for line in lines}
    with pytest.raises(AuthorizationError, match=r"/closed/p\.csv: .*401"):
        localise_points(parse_location(f"{nginx.url}/closed/p.csv"), tmp_path / "closed")
    with pytest.raises(InputError, match=f"no file at {nginx.url}/tables/none.csv"):
        localise_points(parse_location(f"{nginx.url}/tables/none.csv"), tmp_path / "none")
    folder = Folder(parse_location(f"{nginx.url}/tables"), tmp_path / "again")
    assert folder.local_copy("points.csv").read_bytes() == path.read_bytes()


def test_an_object_is_as_it_is_stored(nginx: Nginx, server: Nginx) -> None:
    """With gzip_static the very bytes of NAME.gz come, with their encoding."""
    chunk = next((server.folder.parent / "data/static" / SCALE).glob("*.gz"))
    source = HttpSource(f"{nginx.url}/static/{SCALE}")
    found = source.fetch(chunk.name.removesuffix(".gz"))
    source.close()
    assert found == StoredObject(chunk.read_bytes(), "gzip")
