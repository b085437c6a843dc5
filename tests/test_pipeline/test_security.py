"""Secrets in a real run: what demands them gets them, and nothing else ever shows them."""

from __future__ import annotations

import base64
import gzip
import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.loopback import LoopbackServer
from voxelprobe.testing.s3_server import s3_server
from voxelprobe.testing.store_gate import StoreGate
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK, CREATED = (48, 32, 32), (16, 16, 16), 1_600_000_000.0
# With what quoting and base64 change, so that each form is one of its own.
USER, PASSWORD = "ann-5e1f", "hush/p4ss+wörd=7f3a"
ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AKIDHUSH0123456789AB", "hush/s3cret+key=9d21", "hush/sess10n+token=c4e8=="
GRAPH_TOKEN = "f00dcafe0123456789abcdef5ec2e7"
GOOGLE_TOKEN = "ya29.hush-goog1e_token"
# Everything that logs, at the level of everything, libraries included.
LOG_ALL = "import logging; logging.basicConfig(level=logging.DEBUG)"


def forms(secret: str) -> set[bytes]:
    """Return how a secret may be written: as it is, quoted for URLs and JSON, in base64 at each offset, reversed."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), quote_plus(secret).encode(), json.dumps(secret)[1:-1].encode(),
             repr(secret)[1:-1].encode(), raw.hex().encode(), secret.encode("utf-16-le")}
    for offset in range(3):
        # Without what depends on the neighbours.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(b"." * offset + raw)[4 if offset else 0 : -4])
    return found


SECRETS = {
    "http": forms(PASSWORD) | forms(f"{USER}:{PASSWORD}"),
    "s3": forms(SECRET_KEY) | forms(SESSION_TOKEN),
    "gcs": forms(GOOGLE_TOKEN),
    "graphene": forms(GRAPH_TOKEN),
}
ALL = frozenset().union(*SECRETS.values())


@contextmanager
def command_lines(folder: Path) -> Iterator[list[bytes]]:
    """Give what stands in /proc of every process that works for a command in `folder`, collected meanwhile."""
    seen: set[bytes] = set()
    found: list[bytes] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.01):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    line = (process / "cmdline").read_bytes()
                    title = (process / "comm").read_bytes()
                except OSError:
                    continue
                if os.fsencode(folder) in line:
                    seen.add(line + title)

    thread = threading.Thread(target=look)
    thread.start()
    yield found
    over.set()
    thread.join()
    found += seen


def check_unseen(cli: Any, *texts: str, secrets: Any = ALL) -> None:
    """None of the secrets is in a text, or in the name or content of any file but those that they are read from."""
    contents = {f"text {number}": text.encode() for number, text in enumerate(texts)}
    for path in cli.folder.rglob("*"):
        if path.is_file() and "secrets" not in path.parts:
            content = path.read_bytes()
            contents[str(path)] = os.fsencode(path) + content
            if path.name.endswith(".gz"):
                contents[f"{path} unpacked"] = gzip.decompress(content)
            if path.suffix == ".parquet" and content.startswith(b"PAR1"):
                contents[f"{path} metadata"] = repr(pq.read_schema(path).metadata).encode()
    assert len(contents) > len(texts)
    assert [(name, form) for name, content in contents.items() for form in secrets if form in content] == []


def write_secret(cli: Any, name: str, values: Any) -> Path:
    path = Path(cli.home) / ".cloudvolume/secrets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


@pytest.fixture(scope="module")
def array() -> Any:
    return np.random.default_rng(1).integers(1, 2**63, SHAPE, dtype=np.uint64)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory, array: Any) -> Path:
    folder = tmp_path_factory.mktemp("volume") / "seg"
    write_volume(folder, array, chunk_size=CHUNK)
    return folder


@pytest.fixture(scope="module")
def voxels() -> Any:
    return np.random.default_rng(2).integers(0, SHAPE, (500, 3))


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory, voxels: Any, write_points: Any) -> Path:
    return Path(write_points(tmp_path_factory.mktemp("points") / "p.parquet", voxels))


def run_watched(cli: Any, shim: Any, env: dict[str, str] | None = None, **parameters: Any) -> Any:
    """Return how a command ended, all of whose logs were on; its secrets are in no text, file or process's title."""
    with command_lines(cli.folder) as lines:
        outcome = cli.run(**parameters, env=shim(LOG_ALL) | (env or {}), log_level="DEBUG", workers=2)
    assert lines, "no process was seen"
    assert "DEBUG" in outcome.err
    check_unseen(cli, outcome.out, outcome.err, *(line.decode() for line in lines))
    return outcome


def labels_of(cli: Any) -> list[int]:
    labels: list[int] = pq.read_table(cli.result)["label"].to_pylist()
    return labels


def test_the_forms_are_found(cli: Any) -> None:
    """The search finds each secret in every form that it knows: raw, quoted, in base64, in a name, in packed files."""
    for secret, form in ((PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode())), (SECRET_KEY, SECRET_KEY.encode()),
                         (SESSION_TOKEN, quote(SESSION_TOKEN, safe="").encode()),
                         (GRAPH_TOKEN, base64.b64encode(b"x" + GRAPH_TOKEN.encode()))):
        (cli.folder / "leak.gz").write_bytes(gzip.compress(b"noise " + form + b" noise"))
        with pytest.raises(AssertionError):
            check_unseen(cli, "")
        (cli.folder / "leak.gz").unlink()
        with pytest.raises(AssertionError):
            check_unseen(cli, f"Authorization: {form.decode()}")
        assert form in b"noise " + form, secret
    (cli.folder / f"token-{GRAPH_TOKEN}").write_text("")
    with pytest.raises(AssertionError):
        check_unseen(cli, "")


HTTP_ENDS = {
    "well, after failures of the server": ({"faults": 3}, None),
    "refused": ({"password": "another"}, "the server answered 401; it was sent the credentials of"),
    "with a secret that is no JSON": ({"secret": f'{{"user": "{USER}", "password": "{PASSWORD}'}, "expected JSON,"),
    "with a secret of another form": ({"secret": {"user": USER, "pass": PASSWORD}}, "expected `user` and `password`"),
}


@pytest.mark.parametrize("end", HTTP_ENDS)
def test_a_web_server_with_a_password(end: str, cli: Any, shim: Any, volume: Path, points: Path, array: Any,
                                      voxels: Any) -> None:
    """Well or badly, a run over a server with a password ends without showing it."""
    options, said = HTTP_ENDS[end]
    write_secret(cli, "http-secret.json", options.get("secret", {"user": USER, "password": PASSWORD}))
    with HttpStore(volume, require_basic_auth=(USER, options.get("password", PASSWORD))) as store:
        store.fail("*", Fault("status", status=500), times=options.get("faults", 0))
        outcome = run_watched(cli, shim, volume=store.url, points=points)
    if said is None:
        assert outcome.code == 0, outcome.err
        assert labels_of(cli) == array[tuple(voxels.T)].tolist()
    else:
        assert outcome.code not in (0, None)
        assert said in outcome.err


def test_a_redirect_to_somebody_else(cli: Any, shim: Any, volume: Path, points: Path, array: Any, voxels: Any) -> None:
    """A server that sends on to another is followed, and the password goes to the first alone."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_first = self.server.server_address[1] == first.server_address[1]
            seen.append(("first" if is_first else "second", self.headers.get("Authorization")))
            self.send_response(307 if is_first else 200)
            body = b"" if is_first else (volume / self.path[1:]).read_bytes()
            if is_first:
                self.send_header("Location", second.url + self.path)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    write_secret(cli, "http-secret.json", {"user": USER, "password": PASSWORD})
    first, second = LoopbackServer(Handler), LoopbackServer(Handler)
    try:
        outcome = run_watched(cli, shim, volume=first.url, points=points)
    finally:
        first.stop()
        second.stop()
    assert outcome.code == 0, outcome.err
    assert labels_of(cli) == array[tuple(voxels.T)].tolist()
    expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert set(seen) == {("first", f"Basic {expected}"), ("second", None)}


def test_a_killed_run(cli: Any, shim: Any, volume: Path, points: Path, wait_until: Any) -> None:
    """What a kill leaves half done shows no password either."""
    write_secret(cli, "http-secret.json", {"user": USER, "password": PASSWORD})
    with HttpStore(volume, require_basic_auth=(USER, PASSWORD), latency_seconds=0.1) as store:
        process = cli.start(volume=store.url, points=points, env=shim(LOG_ALL), log_level="DEBUG", fetch_threads=1)
        wait_until(lambda: len(store.requests) > 5, "requests")
        outcome = cli.kill(process)
    check_unseen(cli, outcome.out, outcome.err)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.mark.parametrize("end", ["well", "refused"])
def test_a_bucket_with_keys(end: str, cli: Any, shim: Any, volume: Path, points: Path, array: Any, voxels: Any,
                            moto: str) -> None:
    """Keys and a session token sign requests and stand nowhere else; the identifier of the key is public."""
    import boto3

    client = boto3.client("s3", endpoint_url=f"http://{moto}", aws_access_key_id="k", aws_secret_access_key="s",
                          region_name="us-east-1")
    client.create_bucket(Bucket="lab")
    for path in volume.rglob("*"):
        if path.is_file():
            client.put_object(Bucket="lab", Key=f"seg/{path.relative_to(volume)}", Body=path.read_bytes())
    values = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_SESSION_TOKEN": SESSION_TOKEN}
    write_secret(cli, "aws-secret.json", values)
    with StoreGate(moto) as gate:
        def judge(request: Any) -> Any:
            fields = {name.lower(): value for name, value in request.fields.items()}
            # A door of its own: moto doesn't look at tokens.
            return "pass" if fields.get("x-amz-security-token") == SESSION_TOKEN and end == "well" else "refuse"

        gate.judge = judge
        env = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}
        outcome = run_watched(cli, shim, env, volume=gate.url.replace("http://", "s3://http://") + "/lab/seg",
                              points=points)
        sent = {value for request in gate.requests for value in request.fields.values()}
    assert not any(SECRET_KEY in value for value in sent)
    if end == "well":
        assert outcome.code == 0, outcome.err
        assert labels_of(cli) == array[tuple(voxels.T)].tolist()
    else:
        assert outcome.code not in (0, None)
        assert "aws-secret.json" in outcome.err


class Google(LoopbackServer):
    """A token server and a store that wants its tokens, in one."""

    def __init__(self, folder: Path, *, refuses: bool) -> None:
        server = self
        self.bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                # A server that repeats what it was sent, in an error above all.
                said = {"error": "invalid_grant", "error_description": server.bodies[-1].decode() + GOOGLE_TOKEN}
                if not refuses:
                    said = {"access_token": GOOGLE_TOKEN, "expires_in": 3600, "token_type": "Bearer"}  # type: ignore[dict-item]
                self.answer(400 if refuses else 200, json.dumps(said).encode())

            def do_GET(self) -> None:
                name = unquote(urlsplit(self.path).path.rsplit("/o/", 1)[-1]).removeprefix("seg/")
                if self.headers.get("Authorization") != f"Bearer {GOOGLE_TOKEN}":
                    self.answer(401, f"Invalid Credentials {self.headers.get('Authorization')}".encode())
                else:
                    path = folder / name
                    self.answer(200 if path.is_file() else 404, path.read_bytes() if path.is_file() else b"")

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(Handler)


@pytest.mark.parametrize("end", ["well", "refused", "with a key that is none"])
def test_a_service_account(end: str, cli: Any, shim: Any, volume: Path, points: Path, array: Any, voxels: Any) -> None:
    """A service account's key signs what the token server gets, its token goes to the store, and neither is shown."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    lines = [line.encode() for line in pem.splitlines()[1:-1]]
    server = Google(volume, refuses=end == "refused")
    account = {"type": "service_account", "project_id": "p", "private_key_id": "k", "token_uri": f"{server.url}/token",
               "client_email": "reader@example.invalid",
               "private_key": pem if end != "with a key that is none" else pem[:700] + "!" + pem[700:]}
    write_secret(cli, "google-secret.json", account)
    try:
        outcome = run_watched(cli, shim, {"STORAGE_EMULATOR_HOST": server.url, "NO_GCE_CHECK": "true"},
                              volume="gs://lab/seg", points=points)
    finally:
        server.stop()
    signed = [part for body in server.bodies for part in body.split(b"assertion=")[1:]]
    check_unseen(cli, outcome.out, outcome.err, secrets={*lines, *(part[-60:] for part in signed)})
    if end == "well":
        assert outcome.code == 0, outcome.err
        assert signed
        assert labels_of(cli) == array[tuple(voxels.T)].tolist()
    else:
        assert outcome.code not in (0, None)
        assert "google-secret.json" in outcome.err


def test_csv_for_spreadsheets(cli: Any, volume: Path, array: Any, write_points: Any) -> None:
    """Asked for, the texts of a CSV are guarded; the flag changes the table and not the run: nothing is read again."""
    import pyarrow as pa

    table = pa.table({"x": [1, 2], "y": [3, 4], "z": [5, 6], "=note": ["=1+1", "plain"], "shift": [-1, -2]})
    points, output = write_points(cli.folder / "p.parquet", table), cli.folder / "out.csv"
    contents = []
    for flag in ({}, {"csv_safe": True}, {"csv_safe": True}, {}):
        outcome = cli.run(volume=volume, points=points, output=output, **flag)
        assert outcome.code == 0, outcome.err
        contents.append(output.read_bytes())
        assert ("nothing to do" in outcome.err) == (len(contents) == 3)
        assert ("fetched" in outcome.err) == (len(contents) == 1)
    plain, safe, again, back = contents
    assert (plain, safe) == (back, again)
    assert safe == plain.replace(b"=note", b"'=note").replace(b'"=1+1"', b"\"'=1+1\"")
    assert f'"{array[1, 3, 5]}"'.encode() not in safe
    assert f"{array[1, 3, 5]}".encode() in safe
    assert b",-1," in safe


def fetch(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("end", ["refused half way", "well"])
def test_what_luigi_knows(end: str, cli: Any, shim: Any, luigid: int, tmp_path: Path, write_points: Any) -> None:
    """Neither task ids nor anything on the scheduler's web page and in its state have a graph server's token."""
    few = np.random.default_rng(1).integers(1, 10, [n // 4 for n in SHAPE])
    watershed = graphene_watershed(few.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint64), CHUNK)
    write_volume(tmp_path / "ws", watershed.labels, chunk_size=CHUNK, resolution=(8, 8, 40))
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    points = write_points(tmp_path / "p.parquet", np.random.default_rng(2).integers(0, SHAPE, (500, 3)))
    write_secret(cli, "cave-secret.json", {"token": GRAPH_TOKEN})
    (cli.folder / "lab.cfg").write_text("[core]\nlocal_scheduler = false\n[scheduler]\nretry_count = 1\n")
    with GraphServer(graph, data_dir=tmp_path / "ws", token=GRAPH_TOKEN) as server:
        if end != "well":
            server.fail("*roots_binary", Fault("status", status=403), times=None, skip=1)
        outcome = run_watched(cli, shim, {"LUIGI_CONFIG_PATH": str(cli.folder / "lab.cfg")}, volume=server.cloudpath,
                              points=points, timestamp=CREATED, scheduler_host="127.0.0.1", scheduler_port=luigid,
                              graphene_batch_size=50)
        assert any(request.authorized for request in server.requests)
    assert (outcome.code == 0) == (end == "well"), outcome.err
    tasks = json.loads(fetch(luigid, "/api/task_list"))["response"]
    assert any(name.startswith("ResolveRoots_") for name in tasks)
    pages = [fetch(luigid, "/static/visualiser/index.html"), json.dumps(tasks)]
    for name, task in tasks.items():
        data = quote(json.dumps({"task_id": name}))
        pages += [fetch(luigid, f"/api/{call}?data={data}")
                  for call in ("dep_graph", "fetch_error", "get_task_status_message", "get_task_progress_percentage")]
        if task["status"] == "FAILED":
            assert "403" in pages[-3] or "SamplePoints" in name or "MergeTable" in name
    pages += [fetch(luigid, "/api/worker_list"), fetch(luigid, "/api/resource_list")]
    check_unseen(cli, *pages)
    state = tmp_path / "luigid.state"
    assert not state.exists() or GRAPH_TOKEN.encode() not in state.read_bytes()
