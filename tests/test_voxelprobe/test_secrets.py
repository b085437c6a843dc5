"""Where credentials are looked for: as cloud-files does it, file by file and variable by variable."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe import AuthorizationError, InputError
from voxelprobe.transport.addresses import Address, parse_address
from voxelprobe.transport.secrets import Secret, find_keys, find_secret, secret_places

VOLUME, FILES = "volume/secrets", "files/secrets"
FIRST = {"AWS_ACCESS_KEY_ID": "first", "AWS_SECRET_ACCESS_KEY": "s1"}
SECOND = {"AWS_ACCESS_KEY_ID": "second", "AWS_SECRET_ACCESS_KEY": "s/2+", "AWS_DEFAULT_REGION": "eu-west-1"}
ENV = {"AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "s3", "AWS_SESSION_TOKEN": "t"}


@pytest.fixture
def cloud_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ModuleType]:
    """cloud-files' own module as a process would see it that starts now: it reads the environment when imported."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("CLOUD_FILES_DIR", str(tmp_path / "files"))

    def load() -> ModuleType:
        import cloudfiles.secrets

        spec = importlib.util.spec_from_file_location("cloudfiles._again", cloudfiles.secrets.__file__)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules.pop("cloudfiles._again", None)
        return module

    return load


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("service", ["aws", "matrix"])
@pytest.mark.parametrize("env", [
    {}, ENV, {"AWS_DEFAULT_REGION": "us-west-2"}, ENV | {"AWS_DEFAULT_REGION": "ap-south-1"},
    {"AWS_ACCESS_KEY_ID": "alone"}, {"CLOUD_VOLUME_DIR": ""}, {"CLOUD_FILES_DIR": None, "CLOUD_VOLUME_DIR": None},
], ids=str)
@pytest.mark.parametrize("files", [
    {}, {f"{VOLUME}/aws-secret.json": FIRST}, {f"{FILES}/aws-secret.json": FIRST},
    {f"{VOLUME}/aws-secret.json": FIRST, f"{FILES}/aws-secret.json": SECOND},
    {f"{VOLUME}/aws-secret.json": FIRST, f"{VOLUME}/b-aws-secret.json": SECOND},
    {f"{VOLUME}/aws-secret.json": FIRST, f"{FILES}/b-aws-secret.json": SECOND},
    {f"{VOLUME}/other-aws-secret.json": FIRST, f"{VOLUME}/b-matrix-secret.json": SECOND},
    {f"{VOLUME}/matrix-secret.json": FIRST, f"{FILES}/aws-secret.json": SECOND},
    {f"{VOLUME}/aws-secret.json": {}}, {f"{VOLUME}/aws-secret.json": {"AWS_DEFAULT_REGION": "eu-north-1"}},
    {f"{VOLUME}/b-aws-secret.json": {}, f"{FILES}/aws-secret.json": SECOND},
    {"home/.cloudvolume/secrets/aws-secret.json": FIRST}, {"home/.cloudfiles/secrets/aws-secret.json": SECOND},
], ids=str)
def test_keys_are_those_of_cloud_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud_files: Any, files: Any, env: Any, service: str
) -> None:
    """For every layout of files and variables keys, token and region are those that cloud-files takes."""
    write(tmp_path, files)
    for name, value in env.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    if env.get("CLOUD_VOLUME_DIR") == "":
        # cloud-files then takes `secrets` below wherever it runs; here an empty variable is as good as none.
        monkeypatch.delenv("CLOUD_VOLUME_DIR")
    expected = cloud_files().aws_credentials("b", service)
    secret, region = find_keys("b", service)
    found = dict(secret.reveal()) if secret else {}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert found.get(name) == expected.get(name)
    assert region == expected.get("AWS_DEFAULT_REGION", "us-east-1")


@pytest.mark.parametrize("files", [
    {}, {f"{VOLUME}/google-secret.json": {}}, {f"{FILES}/google-secret.json": {}},
    {f"{VOLUME}/google-secret.json": {}, f"{FILES}/b-google-secret.json": {}},
    {f"{VOLUME}/google-secret.json": {}, f"{VOLUME}/b-google-secret.json": {}},
    {f"{VOLUME}/b-google-secret.json": {}, f"{FILES}/b-google-secret.json": {}}, {f"{VOLUME}/c-google-secret.json": {}},
    {f"{VOLUME}/http-secret.json": {}, f"{FILES}/http-secret.json": {}}, {f"{FILES}/http-secret.json": {}},
], ids=str)
def test_files_are_those_of_cloud_files(tmp_path: Path, cloud_files: Any, files: Any) -> None:
    """A secret of Google's or of a web server is read from the file that cloud-files would read."""
    write(tmp_path, {name: {"project_id": name} for name in files})
    module = cloud_files()
    opened: list[str] = []
    module.service_account = type("Reader", (), {"Credentials": type("C", (), {
        "from_service_account_file": staticmethod(lambda path: opened.append(path) or object())})})
    module.google_credentials("b")
    google = find_secret("google", "b")
    assert ([google.origin] if google else []) == opened
    http = find_secret("http")
    assert (http.reveal() if http else None) == module.http_credentials()
    for secret in filter(None, (google, http)):
        assert secret.origin in secret_places("google", "b") + secret_places("http")


def test_a_token_of_the_session_may_lack(monkeypatch: pytest.MonkeyPatch, cloud_files: Any) -> None:
    """AWS_ACCESS_KEY_ID without AWS_SESSION_TOKEN, on which cloud-files ends in a KeyError, is enough."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, ENV[name])
    with pytest.raises(KeyError):
        cloud_files().aws_credentials("b")
    secret, _ = find_keys("b")
    assert secret
    assert not secret.reveal()["AWS_SESSION_TOKEN"]


@pytest.mark.parametrize(("content", "message"), [
    ("{", "expected JSON, found something else"), ('"hush"', "expected a JSON object"), ("\xff", "expected JSON"),
    ('{"AWS_ACCESS_KEY_ID": "hush"}', "expected `AWS_SECRET_ACCESS_KEY` as text"),
    ('{"AWS_ACCESS_KEY_ID": 5, "AWS_SECRET_ACCESS_KEY": "hush"}', "expected `AWS_ACCESS_KEY_ID` as text"),
    ('{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hush\\n"}', "of letters and digits"),
    ('{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "hush\\r\\nX: y"}', "of letters"),
    ('{"AWS_DEFAULT_REGION": "hush.example/"}', "expected AWS_DEFAULT_REGION"), ('["hush"' * 99_999, "expected JSON"),
])
def test_a_broken_secret_is_said(tmp_path: Path, cloud_files: Any, content: str, message: str) -> None:
    """A file that can't be understood is an AuthorizationError that names it, without what it holds."""
    import traceback

    path = tmp_path / VOLUME / "aws-secret.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(AuthorizationError, match=message) as caught:
        find_keys("b")
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.__context__ is None
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, cloud_files: Any) -> None:
    """A folder of the name of a secret is an AuthorizationError, not nothing."""
    (tmp_path / VOLUME / "b-aws-secret.json").mkdir(parents=True)
    with pytest.raises(AuthorizationError, match=r"b-aws-secret\.json: can't be read: Is a directory"):
        find_keys("b")


def test_a_secret_keeps_to_itself() -> None:
    """A secret shows itself neither in its repr nor in a pickle."""
    secret = Secret({"password": "hush"}, "here")
    assert repr(secret) == str(secret) == "Secret(from here)"
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)


URLS = [
    "gs://b", "gs://b/a/c", "s3://b/a", "s3://https://h:90/b/a/c", "s3://http://h/b", "matrix://b/p", "nokura://b",
    "tigerdata://b/a/c", "s3://b//a", "s3://b/a//c", "gs://b/a?x=1/#y", "gs://B_x.y/a%20b", "s3://https://h/pre/b",
    "gs:///b/a", "gs://b:90/a", "gs://é/a", "s3://b/ä", "gs://b/b/b", "s3://~b/a", "gs://b/../a", "lab://b/a/c",
    "web://a/c", "s3://b@/a", "gs://", "s3://http://h", "s3://b/a://c", "s3://https://h//b/a", "xx://a/b", "gs://b/x://",
]


@pytest.mark.parametrize("url", URLS)
def test_addresses_are_those_of_cloud_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Bucket, folder, server and credentials of a cloudpath are cloud-files', those of an alias file included."""
    from cloudfiles import paths

    aliases = tmp_path / "aliases.json"
    aliases.write_text(json.dumps({"lab": {"host": "s3://http://127.0.0.1:9/"}, "web": {"host": "https://h.example/v/"}}))
    monkeypatch.setattr(paths, "ALIAS_FILE", str(aliases))
    for name in ("ALIASES", "ALLOWED_PROTOCOLS", "CLOUDPATH_REGEXP", "ALIASES_FROM_FILE"):
        value = getattr(paths, name)
        monkeypatch.setattr(paths, name, value.copy() if isinstance(value, dict) else value)
    monkeypatch.setattr(paths, "ALIASES_FROM_FILE", None)
    paths.extract.cache_clear()
    check_address(url)
    paths.extract.cache_clear()


@given(st.from_regex(
    r"(s3|gs)://(https?://[a-z.:0-9]{1,9}/)?[A-Za-z_.:~@%é0-9 -]{1,9}(/[a-z ./:%]{0,9})?", fullmatch=True))
def test_any_address_is_that_of_cloud_files(url: str) -> None:
    """Whatever the bucket and the folder are called, both take a cloudpath apart alike."""
    if url.startswith("s3://http") and not url.startswith(("s3://http://", "s3://https://")):
        return  # cloud-files takes a bucket's name that begins with http for a server
    check_address(url.rstrip("/"))


def check_address(url: str) -> None:
    from cloudfiles import paths

    try:
        path = paths.extract(url)
        expected = Address(path.protocol, path.bucket or "", path.path.rstrip("/"), path.host, path.alias or "aws")
    except Exception:
        with pytest.raises(InputError, match=r"expected|cloud-files can't open it"):
            parse_address(url)
    else:
        assert parse_address(url) == expected
