"""What no line of the product does, and what malice in a file therefore can't: nothing that is read is run."""

from __future__ import annotations

import ast
import pickle
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from voxelprobe import InputError, UnsupportedError
from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.patient_table import PatientTable
from voxelprobe.codecs.compression import make_layers
from voxelprobe.points import open_points
from voxelprobe.processes import run_isolated
from voxelprobe.run.checkpoints import Checkpoints
from voxelprobe.transport.protocol import StoredObject
from voxelprobe.volume.formats import read_volume

ROOT = Path(__file__).parents[2]
# Without the doubles for tests, which import-linter keeps apart.
MODULES = sorted(path for package in ("voxelprobe", "tasks", "pipeline") for path in (ROOT / package).rglob("*.py")
                 if "testing" not in path.parts)
# Modules that run what they read, or a shell, or make names that can be guessed.
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml",
                     "code", "multiprocessing", "subprocess", "xmlrpc", "telnetlib", "ftplib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "input",
                   "pandas.read_pickle", "pd.read_pickle", "numcodecs.get_codec", "pa.deserialize", "runpy.run_path"}
# With a keyword that must be there, and its value.
GUARDED_CALLS = {"np.load": ("allow_pickle", False), "np.save": ("allow_pickle", False)}
# What takes SQL as its first argument.
STATEMENTS = {"execute", "executemany", "executescript"}


def name_of(node: ast.expr) -> str:
    """Return a dotted name as it is written, or ""."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def find_dangers(source: str) -> Iterator[str]:
    """Yield what a module does that could run what it reads."""
    tree = ast.parse(source)
    constants = find_constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in FORBIDDEN_CALLS or name.endswith(("read_pickle", "deserialize")):
            yield f"{node.lineno}: {name}"
        if any(isinstance(value, ast.Constant) and value.value is True
               for key, value in keywords.items() if key in ("shell", "allow_pickle")):
            yield f"{node.lineno}: {name} with shell or allow_pickle"
        if name in GUARDED_CALLS:
            key, value = GUARDED_CALLS[name]
            if not (isinstance(keywords.get(key), ast.Constant) and keywords[key].value is value):  # type: ignore[attr-defined]
                yield f"{node.lineno}: {name} without {key}={value}"
        if name.split(".")[-1] == "SqliteDict":
            yield f"{node.lineno}: {name} unpickles; PatientTable doesn't"
        if name.split(".")[-1] in STATEMENTS and node.args:
            yield from (f"{node.lineno}: SQL made of {part}" for part in find_data(node.args[0], constants))


def find_constants(tree: ast.Module) -> set[str]:
    """Return the names that a module binds to literals: its own constants, and what loops over literals bind."""
    constants: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and not list(find_data(node.value, constants)):
            constants |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple) and isinstance(node.target, ast.Name) \
                and not [data for part in node.iter.elts for data in find_data(part, constants)]:
            constants.add(node.target.id)
    return constants


def find_data(sql: ast.expr, constants: set[str]) -> Iterator[str]:
    """Yield the parts of a text that are neither literals, constants nor numbers (`{x:d}`, which refuses a text)."""
    if isinstance(sql, ast.Constant) or (isinstance(sql, ast.Name) and sql.id in constants):
        return
    if isinstance(sql, ast.JoinedStr):
        for value in sql.values:
            is_number = isinstance(value, ast.FormattedValue) and ast.dump(value).endswith("[Constant(value='d')]))")
            if isinstance(value, ast.FormattedValue) and not is_number:
                yield from find_data(value.value, constants)
        return
    yield ast.unparse(sql)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    """No module reads a pickle, runs text or a shell, or makes SQL out of data."""
    assert list(find_dangers(path.read_text())) == []


@pytest.mark.parametrize("line", [
    "import pickle", "from pickle import loads", "import multiprocessing.pool", "eval(x)", "exec(x)", "np.load(path)",
    "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag)", "subprocess.run(x, shell=True)",
    "os.system(x)", "pd.read_pickle(x)", "SqliteDict(path)", "db.execute(f'DELETE FROM {name}')", "import yaml",
    "db.execute('DELETE FROM %s' % name)", "db.executemany('SELECT {}'.format(x), y)", "db.execute('SELECT ' + x)",
    "self.conn.execute(text)", "tempfile.mktemp()",
])
def test_the_search_finds(line: str) -> None:
    """Each kind of danger is found where it is: the search itself is no empty promise."""
    assert list(find_dangers(f"TABLE = 'chunks'\n{line}\n"))


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that must not go off; it is shown that it would."""
    crater = tmp_path / "crater"
    with pickle.loads(pickle.dumps(Bomb(crater))):
        assert crater.exists()
    crater.unlink()
    yield pickle.dumps(Bomb(crater))
    assert not crater.exists(), "a pickle was read"


def object_array(content: bytes, descr: str) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1, 3), }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize("descr", ["'|O'", "[('x', '|O')]"])
def test_points_that_are_a_pickle(descr: str, bomb: bytes, tmp_path: Path) -> None:
    """A .npy of objects, or a pickle by that name, is refused unread."""
    for content in (object_array(bomb, descr), bomb):
        (tmp_path / "p.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"points table .*p\.npy"):
            open_points(tmp_path / "p.npy")


@pytest.mark.parametrize("header", [
    "__import__('os').system('x')", "{'descr': open('crater', 'w')}", "{" * 5000, "x" * 60000,
])
def test_headers_that_are_code(header: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of a .npy is data; code in it is a complaint."""
    monkeypatch.chdir(tmp_path)
    text = header.encode() + b"\n"
    (tmp_path / "p.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(InputError):
        open_points(tmp_path / "p.npy")
    assert not (tmp_path / "crater").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
@pytest.mark.parametrize("kind", ["arrow.py_extension_type", "arrow.opaque", "pandas"])
def test_pickles_in_the_metadata_of_a_table(kind: str, suffix: str, bomb: bytes, tmp_path: Path) -> None:
    """A column that says it is an object of Python's (CVE-2023-47248) is read as what it is stored as, or refused."""
    labels = {b"ARROW:extension:name": kind.encode(), b"ARROW:extension:metadata": bomb, b"pandas": bomb}
    field = pa.field("x", pa.int64(), metadata=labels)
    table = pa.table([pa.array([1, 2])], schema=pa.schema([field], metadata={b"pandas": bomb, b"pickle": bomb}))
    path = tmp_path / f"p{suffix}"
    pq.write_table(table, path) if suffix == ".parquet" else pyarrow.feather.write_feather(table, path)
    if kind == "arrow.opaque":  # which has JSON there
        with pytest.raises(InputError, match="expected a"):
            open_points(path)
        return
    assert [batch.column("x").to_pylist() for batch in open_points(path).batches()] == [[1, 2]]


def test_a_cache_full_of_pickles(bomb: bytes, tmp_path: Path) -> None:
    """Rows that somebody put into the cache are bytes without a checksum: damage, and not looked into."""
    cache = DiskCache(tmp_path / "cache", budget_bytes=1 << 30).of_scale("file:///v", "f")
    cache.write(0, {1: StoredObject(b"good", None)})
    (path,) = (tmp_path / "cache").rglob("*.sqlite")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM chunks")
        for key in ("1", "2", "1 facts", "2 facts"):
            database.execute("INSERT INTO chunks VALUES (?, ?)", (key, bomb))
    assert cache.read(0, [1, 2]) == {}
    cache.write(0, {1: StoredObject(b"good", None)})
    assert cache.read(0, [1, 2]) == {1: StoredObject(b"good", None)}


def test_a_cache_with_a_schema_of_its_own(tmp_path: Path) -> None:
    """A cache file in which somebody made views and triggers gives nothing that its checksums don't hold."""
    cache = DiskCache(tmp_path / "cache", budget_bytes=1 << 30).of_scale("file:///v", "f")
    cache.write(0, {1: StoredObject(b"good", None)})
    (path,) = (tmp_path / "cache").rglob("*.sqlite")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE chunks RENAME TO hidden")
        database.execute("CREATE VIEW chunks AS SELECT key, CAST('evil' AS BLOB) AS value FROM hidden")
    assert cache.read(0, [1]) == {}


CODECS = ["pickle", "json2", "msgpack2", "vlen-utf8", "vlen-bytes", "vlen-array", "categorize", "json", "msgpack",
          "../pickle", "os.system", "numcodecs.pickles.Pickle", "__class__", "", "base64\0"]


@pytest.mark.parametrize("name", CODECS)
def test_codecs_of_objects(name: str, bomb: bytes) -> None:
    """A codec that zarr metadata name is one of a list of ours: pickles, objects and imports aren't on it."""
    with pytest.raises(UnsupportedError):
        make_layers([{"id": name}])
    array = {"zarr_format": 2, "shape": [9, 9, 9], "chunks": [3, 3, 3], "dtype": "<u8", "fill_value": 0, "order": "C"}
    for place in ({"compressor": {"id": name}, "filters": None}, {"compressor": None, "filters": [{"id": name}]},
                  {"compressor": None, "filters": None, "dtype": "|O"}):
        documents = {".zarray": array | place}
        with pytest.raises(UnsupportedError):
            read_volume("zarr", documents.get, "mem://v")


def test_checkpoints_that_are_a_pickle(bomb: bytes, tmp_path: Path) -> None:
    """What a killed run left of its roots is numbers; anything else is thrown away, and asked for again."""
    place = tmp_path / "roots"
    ids, none = np.array([1, 2], np.uint64), np.zeros(0, np.uint64)
    Checkpoints(place).write(ids, ids)
    assert len(Checkpoints(place).read((none, none))[0]) == 2
    (file,) = [path for path in place.rglob("*") if path.is_file()]
    file.write_bytes(object_array(bomb, "'|O'"))
    assert len(Checkpoints(place).read((none, none))[0]) == 0


def test_an_isolated_decoder_cannot_have_its_parent_unpickle(bomb: bytes) -> None:
    """What goes wrong in a decoder's process comes back as a name and a text, whatever the process writes."""
    class LocalError(Exception):
        def __reduce__(self) -> Any:
            return pickle.loads(bomb), ()

    def work(item: int) -> None:
        raise LocalError(bomb)

    with pytest.raises(RuntimeError, match="LocalError"):
        run_isolated(work, 1, what="the decoder")


# Releases in which a known hole was closed, of what is installed along with voxelprobe. For a network without
# pip-audit's services; sources: the advisories themselves. With them, `make advisories` asks for the present state.
CLOSED = {
    "pyarrow": ("14.0.1", "CVE-2023-47248: pickles in Arrow files are read"),
    "urllib3": ("2.6.0", "CVE-2025-66418, -66471: bodies that grow without end; CVE-2025-50181: redirects"),
    "requests": ("2.32.4", "CVE-2024-47081: .netrc to another host; CVE-2024-35195"),
    "brotli": ("1.2.0", "CVE-2025-6176: no bound for what is decompressed"),
    "certifi": ("2024.7.4", "CVE-2024-39689: a root that is no longer trusted"),
    "idna": ("3.7", "CVE-2024-3651"),
    "tornado": ("6.5", "CVE-2025-47287"),
    "protobuf": ("6.31.1", "CVE-2025-4565: nesting without end"),
    "cryptography": ("44.0.1", "CVE-2024-12797"),
    "tqdm": ("4.66.3", "CVE-2024-34062: eval of arguments"),
    "luigi": ("2.8.0", "CVE-2018-1000843: cross-site requests to luigid"),
    "orjson": ("3.9.15", "CVE-2024-27454"),
    "zstandard": ("0.15.1", "CVE-2021-24031, -24032 in the zstd that it brings"),
    "pyasn1": ("0.4.8", "none known below; the oldest that google-auth takes"),
}


def test_no_dependency_is_of_a_release_with_a_known_hole() -> None:
    """Nothing that is installed for voxelprobe is older than the release that closed a hole we know of."""
    names = requirements_of("voxelprobe")
    assert {"pyarrow", "urllib3", "luigi"} <= names
    old = [f"{name} {metadata.version(name)} < {release}: {why}" for name, (release, why) in CLOSED.items()
           if name in names and Version(metadata.version(name)) < Version(release)]
    assert old == []


def test_the_project_asks_for_releases_without_known_holes() -> None:
    """The lower bounds in pyproject.toml keep out the releases in which a direct dependency had a known hole."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {canonicalize_name(found.name): found.specifier for found in map(Requirement, project["dependencies"])}
    for name in set(wanted) & set(CLOSED):
        # The last that comes before the release.
        assert not wanted[name].contains(f"{CLOSED[name][0]}.dev0", prereleases=True), name


def requirements_of(root: str) -> set[str]:
    """Return the names of all that a distribution requires without extras, directly or not, as installed here."""
    found: set[str] = set()
    todo = [root]
    while todo:
        name = canonicalize_name(todo.pop())
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        needed = [Requirement(text) for text in requires]
        todo += [r.name for r in needed if (r.marker is None or r.marker.evaluate({"extra": ""}))
                 and canonicalize_name(r.name) not in found]
    return found - {root}


def test_the_one_package_with_an_open_hole_is_held_off(bomb: bytes, tmp_path: Path) -> None:
    """The package sqlitedict unpickles its rows (CVE-2024-35515, open in 2.1.0): ours are given and taken as bytes."""
    path = tmp_path / "c.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE chunks (key TEXT PRIMARY KEY, value BLOB)")
        database.execute("INSERT INTO chunks VALUES (?, ?)", ("1", bomb))
    with PatientTable(path, "chunks", busy_seconds=5) as table:
        assert list(table.items()) == [("1", bomb)]
    assert [found.name for found in MODULES if "sqlitedict import" in found.read_text()] == ["patient_table.py"]
