"""Many requests over HTTP at once: each gets its own answer, over kept connections, proxies, TLS and forks."""

from __future__ import annotations

import datetime
import functools
import http.server
import os
import re
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from voxelprobe import AuthorizationError, TransportError, sample_points
from voxelprobe.fetching import stream_chunks
from voxelprobe.opening import open_volume
from voxelprobe.testing.http_store import Fault, HttpStore
from voxelprobe.transport.http import HttpSource
from voxelprobe.transport.protocol import Request, RetryableError, StoredObject

BODY = np.random.default_rng(0).bytes(3000)
CHUNK_NAME = "4_4_40/29-45_23-39_109-117"


def fetch_at_once(source: HttpSource, paths: list[str], limit: int = 8) -> dict[str, Any]:
    """Return what became of several requests under way together."""
    with closing(source), closing(source.open_transfers(limit=limit)) as transfers:
        for path in paths:
            transfers.start(path, Request(path))
        ended: dict[str, Any] = {}
        while len(ended) < len(paths):
            ended |= dict(transfers.wait(None))
    return ended


def test_answers_come_with_their_keys(serve: Callable[..., Any]) -> None:
    """Of requests under way together each gets its own answer: bodies, absence, refusals, failures, redirects."""
    said: dict[str, Any] = {
        "/a": (200, {"Content-Encoding": "gzip"}, b"A" * 300_000), "/b": (404, {}, b"no"), "/c": (403, {}, b""),
        "/d": (503, {"Retry-After": "7"}, b""), "/e": (302, {"Location": "/a"}, b""), "/f": (200, {}, b""),
        "/g": (302, {"Location": "file:///etc/hostname"}, b""),
    }
    server = serve(lambda path, number: said[path])
    ended = fetch_at_once(HttpSource(server.url), list("abcdefg"))
    assert ended["a"] == ended["e"] == StoredObject(b"A" * 300_000, "gzip")
    assert ended["b"] is None
    assert isinstance(ended["c"], AuthorizationError)
    assert isinstance(ended["d"], RetryableError)
    assert ended["d"].wait_seconds == 7.0
    assert ended["f"] == StoredObject(b"", None)
    assert type(ended["g"]) is TransportError
    assert "not a URL that can be fetched" in str(ended["g"])


def test_a_stall_holds_up_nobody_else(store: HttpStore) -> None:
    """Beside a server that goes silent the other requests end, and the silent one is given up in time."""
    store.fail(CHUNK_NAME, Fault("stall", seconds=60))
    ended = fetch_at_once(HttpSource(store.url, read_timeout_seconds=1), ["info", CHUNK_NAME, "none"])
    assert list(ended)[-1] == CHUNK_NAME
    assert isinstance(ended[CHUNK_NAME], RetryableError)
    assert ended["none"] is None


def test_no_server_for_many(serve: Callable[..., Any]) -> None:
    """A port where nobody listens, and a host that there isn't, are failures that may pass."""
    for url in ("http://127.0.0.1:9/x", "http://no-such-host.invalid/x"):
        ended = fetch_at_once(HttpSource(url), ["a", "b"])
        assert [type(error) for error in ended.values()] == [RetryableError] * 2


def test_transfers_may_be_given_up(store: HttpStore) -> None:
    """Closing while requests are under way ends them, and waits for none."""
    store.latency_seconds = 30.0
    source = HttpSource(store.url)
    transfers = source.open_transfers(limit=4)
    for key in range(4):
        transfers.start(key, Request("info"))
    assert transfers.wait(0.05) == []
    transfers.close()
    source.close()


def test_connections_are_kept(store: HttpStore) -> None:
    """Requests one after another go over one connection, also after an answer without a body of use."""
    with closing(HttpSource(store.url)) as source, closing(source.open_transfers(limit=1)) as transfers:
        ports = set()
        for path in ["info", "none", "info", CHUNK_NAME]:
            transfers.start(path, Request(path))
            transfers.wait(None)
            ports |= {connection.laddr.port for connection in psutil.Process().net_connections("tcp")
                      if connection.raddr and store.url.endswith(f":{connection.raddr.port}")}
    assert len(ports) == 1


def test_a_proxy_of_the_environment_is_asked(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go through `http_proxy`, except to hosts of `no_proxy`."""
    proxy = serve(lambda path, number: (200, {}, path.encode()))
    server = serve(lambda path, number: (200, {}, BODY))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.url)
    assert fetch_at_once(HttpSource("http://example.invalid/v"), ["x"])["x"].content == b"http://example.invalid/v/x"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert fetch_at_once(HttpSource(server.url), ["x"])["x"].content == BODY


def test_certificates_are_checked(tmp_path: Path) -> None:
    """Over https a server whose certificate is trusted by SSL_CERT_FILE is read; one that isn't is an error at once."""
    certificate, key = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    (tmp_path / "x").write_bytes(BODY)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    code = ("import sys\nfrom voxelprobe.transport.http import HttpSource\n"
            "try: print(len(HttpSource(sys.argv[1]).fetch('x').content))\n"
            "except OSError as error: print(type(error).__name__, error)")
    url = f"https://localhost:{server.server_address[1]}"
    try:
        for trusted, expected in ((str(certificate), "3000"), (None, f"TransportError {url}/x: .*certificate")):
            env = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
            said = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=False,
                                  env=env | ({"SSL_CERT_FILE": trusted} if trusted else {}))
            assert re.match(expected, said.stdout), said
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return the files of a certificate of localhost that signs itself, and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


def test_sources_opened_after_forks(store: HttpStore, oracle: Any) -> None:
    """A process that has read an info may fork, and its children read chunks, as Luigi's workers do."""
    volume = open_volume(store.url)
    points = oracle.points()
    oracle.check(store.url)
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            code = 1
            try:
                with closing(volume.open_source(threads=4)) as source:
                    got = dict(stream_chunks(volume, source, np.arange(27), threads=4))
                assert len(got) == 27
                assert all(isinstance(fetched, StoredObject) and fetched.content for fetched in got.values())
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert sample_points(store.url, points[:5]).data.tolist() == oracle.at(points[:5]).tolist()
