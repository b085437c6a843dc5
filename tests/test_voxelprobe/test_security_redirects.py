"""Redirects: to other servers they are followed, to files, other schemes and this computer's own services never."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from typing import Any

import pytest

from voxelprobe import TransportError
from voxelprobe.transport.http import HttpSource
from voxelprobe.transport.protocol import Request, StoredObject
from voxelprobe.transport.reach import Reach, kind_of_address


def fetch_both_ways(url: str) -> list[Any]:
    """Return what a lone request and one of many come to: objects, or errors."""
    outcomes: list[Any] = []
    with closing(HttpSource(url)) as source:
        try:
            outcomes.append(source.fetch("x"))
        except TransportError as error:
            outcomes.append(error)
        with closing(source.open_transfers(limit=2)) as transfers:
            transfers.start(0, Request("x"))
            outcomes += [outcome for _, outcome in transfers.wait(30)]
    return outcomes


@pytest.mark.parametrize("target", [
    "file:///etc/passwd", "FILE:///etc/passwd", "file://127.0.0.1/etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x",
    "dict://127.0.0.1/x", "scp://127.0.0.1/x", "smb://127.0.0.1/x", "ldap://127.0.0.1/x", "data:text/plain,x",
    "tftp://127.0.0.1/x", "ws://127.0.0.1/x",
])
def test_other_schemes(serve: Any, target: str) -> None:
    """A redirect to a file or by another protocol than HTTP ends the request at once, whatever it asks for."""
    server = serve(lambda path, number: (302, {"Location": target}, b""))
    for outcome in fetch_both_ways(server.url):
        assert type(outcome) is TransportError, outcome
        assert "not a URL that can be fetched" in str(outcome)
        assert "root:" not in str(outcome)
    assert len(server.paths) == 2


@pytest.mark.parametrize("target", [
    "http://169.254.169.254/latest/meta-data", "http://[fe80::1]/", "http://[fd00:ec2::254]/", "http://100.100.100.200/",
    "http://[::ffff:169.254.169.254]/", "http://0xa9fea9fe/", "http://2852039166/", "http://169.254.43518/",
])
def test_metadata_servers(serve: Any, target: str) -> None:
    """A redirect to where clouds hand out a machine's credentials isn't connected to, however it is written."""
    server = serve(lambda path, number: (307, {"Location": target}, b""))
    for outcome in fetch_both_ways(server.url):
        assert type(outcome) is TransportError, outcome
        assert "a redirect leads to" in str(outcome)
        assert "a link-local address; only a user can name one" in str(outcome)


IN_A_NETWORK_OF_ITS_OWN = """
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from voxelprobe.transport.http import HttpSource

asked = []

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append((self.server.server_address[0], self.path))
        target = {"/to-loopback/x": "http://127.0.0.1:8001/secret", "/to-name/x": "http://localhost:8001/secret",
                  "/to-zero/x": "http://0.0.0.0:8001/secret", "/to-public/x": "http://203.0.113.2:8002/good"}.get(self.path)
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"body")

    def log_message(self, *_):
        pass

for place in (("203.0.113.1", 8000), ("127.0.0.1", 8001), ("203.0.113.2", 8002)):
    threading.Thread(target=HTTPServer(place, Handler).serve_forever, daemon=True).start()
for name in ("to-loopback", "to-name", "to-zero", "to-public"):
    with closing(HttpSource(f"http://203.0.113.1:8000/{name}")) as source:
        try:
            print(name, source.fetch("x"))
        except OSError as error:
            print(name, type(error).__name__, error)
print(sorted(asked))
"""


def test_from_a_public_address_to_this_computer() -> None:
    """A server elsewhere can't redirect us to a service of our own; to another server elsewhere it can."""
    network = ["unshare", "--net", "--map-root-user"]
    setup = ("ip link set lo up && ip addr add 203.0.113.1/32 dev lo && ip addr add 203.0.113.2/32 dev lo && "
             "grep -q localhost /etc/hosts")
    if subprocess.run([*network, "sh", "-c", setup], capture_output=True, check=False).returncode:
        pytest.skip("a network of its own needs privileges that this user lacks")
    words = [*network, "sh", "-c", f'{setup}; exec "$0" -c "$1"', sys.executable, IN_A_NETWORK_OF_ITS_OWN]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    loopback, name, zero, public, asked = done.stdout.splitlines()
    for line in (loopback, name, zero):
        assert "TransportError" in line
        assert "a loopback address; only a user can name one" in line
    assert public == f"to-public {StoredObject(b'body', None)}"
    assert "secret" not in asked
    assert "/good" in asked


@pytest.mark.parametrize(("address", "kind"), [
    ("127.0.0.1", "loopback"), ("127.9.9.9", "loopback"), ("::1", "loopback"), ("0.0.0.0", "loopback"),
    ("::", "loopback"), ("::ffff:127.0.0.1", "loopback"), ("localhost", "loopback"), ("169.254.169.254", "link-local"),
    ("fe80::1%eth0", "link-local"), ("fd00:ec2::254", "link-local"), ("100.100.100.200", "link-local"),
    ("::ffff:169.254.1.1", "link-local"), ("8.8.8.8", None), ("10.0.0.1", None), ("192.168.1.1", None),
    ("2001:db8::1", None), ("storage.googleapis.com", None), ("", None),
])
def test_kinds_of_addresses(address: str, kind: str | None) -> None:
    """Addresses of this computer and its link are told from all others, private networks included."""
    assert kind_of_address(address) == kind


def test_whom_a_source_may_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address of a user may be any, and so may then its kind; through a proxy it is the proxy's to say."""
    public = Reach(named_by_user=True)
    assert not public.complain("203.0.113.1", redirected=False)
    assert not public.complain("203.0.113.2", redirected=True)
    assert "a redirect leads to 127.0.0.1" in public.complain("127.0.0.1", redirected=True)
    local = Reach(named_by_user=True)
    assert not local.complain("127.0.0.1", redirected=False)
    assert not local.complain("::1", redirected=True)
    assert local.complain("169.254.169.254", redirected=True)
    assert Reach(named_by_user=False).complain("127.0.0.1", redirected=False)
    assert not Reach(named_by_user=False).complain("203.0.113.1", redirected=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
    assert not Reach(named_by_user=True).complain("127.0.0.1", redirected=True)
