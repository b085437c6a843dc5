"""Tokens: where they are looked for, and that they don't show."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest

from voxelprobe.errors import AuthorizationError
from voxelprobe.graphene.tokens import Token, find_token, token_places

SECRET = "0123456789abcdef0123456789abcdef"
HOST = "cave.lab.org:8443"
NAMES = [f"{HOST}-cave-secret.json", "cave-secret.json", "chunkedgraph-secret.json"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CLOUD_VOLUME_DIR", raising=False)
    return tmp_path


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_no_file_is_no_token(home: Path) -> None:
    """Without a file there is no token, which is no error: a server may ask for none."""
    assert find_token(HOST) is None


@pytest.mark.parametrize("override", [False, True])
def test_order_is_cloudvolumes(home: Path, monkeypatch: pytest.MonkeyPatch, override: bool) -> None:
    """Whichever of the files exist, the token is the one that CloudVolume takes."""
    from cloudvolume import secrets

    main = home / (".cloudvolume" if not override else "elsewhere")
    if override:
        monkeypatch.setenv("CLOUD_VOLUME_DIR", str(main))
    monkeypatch.setattr(secrets, "HOME", str(home))
    monkeypatch.setattr(secrets, "CLOUD_VOLUME_DIR", str(main))
    files = [folder / "secrets" / name for folder in (main, home / ".neuroglancer") for name in NAMES]
    for present in itertools.product([False, True], repeat=len(files)):
        for number, (path, there) in enumerate(zip(files, present, strict=True)):
            path.unlink(missing_ok=True)
            if there:
                write(path, {"token": f"abc{number}"})
        secrets.CAVE_CREDENTIALS_CACHE.clear()
        theirs = secrets.cave_credentials(HOST).get("token")
        ours = find_token(HOST)
        assert (ours.reveal() if ours else None) == theirs
    secrets.CAVE_CREDENTIALS_CACHE.clear()


def test_override_hides_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CLOUD_VOLUME_DIR the folder in the home isn't read; empty, it is as if it weren't set."""
    write(home / ".cloudvolume" / "secrets" / "cave-secret.json", {"token": SECRET})
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(home / "elsewhere"))
    assert find_token(HOST) is None
    monkeypatch.setenv("CLOUD_VOLUME_DIR", "")
    assert find_token(HOST) is not None


def test_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places that messages name are those looked at, first first; /secrets is the last of each name."""
    monkeypatch.setenv("CLOUD_VOLUME_DIR", "/own")
    assert token_places("h") == [
        os.path.join(folder, "secrets", name)
        for name in ("h-cave-secret.json", "cave-secret.json", "chunkedgraph-secret.json")
        for folder in ("/own", str(home / ".neuroglancer"), "/")
    ]


def test_other_hosts_token_is_not_taken(home: Path) -> None:
    """A token named for one host isn't sent to another."""
    write(home / ".cloudvolume" / "secrets" / "other.org-cave-secret.json", {"token": SECRET})
    assert find_token(HOST) is None


@pytest.mark.parametrize("content", [{"token": SECRET, "note": "mine"}, SECRET])
def test_contents(home: Path, content: object) -> None:
    """An object with `token` and a bare JSON string are read, as CloudVolume does; the token knows its file."""
    path = write(home / ".cloudvolume" / "secrets" / "cave-secret.json", json.dumps(content))
    token = find_token(HOST)
    assert token is not None
    assert (token.reveal(), token.source) == (SECRET, str(path))


@pytest.mark.parametrize(
    "content",
    [
        "", SECRET + "}", f"{{'token': '{SECRET}'}}", json.dumps([SECRET]), json.dumps({"tokens": SECRET}),
        json.dumps({SECRET: 1}), json.dumps({"token": 5, "other": SECRET}), json.dumps({"token": None}), "3", "null",
        json.dumps({"token": SECRET + "\r\nX-Evil: 1"}), json.dumps({"token": f"Bearer {SECRET}"}),
        json.dumps({"token": SECRET + "é"}), '{"token": "' + SECRET, "[" * 100_000,
    ],
)
def test_damaged_files(home: Path, content: str) -> None:
    """A damaged file is named, its content isn't: not in the message, nor in the causes of the error."""
    path = write(home / ".cloudvolume" / "secrets" / NAMES[0], content)
    write(home / ".cloudvolume" / "secrets" / NAMES[1], {"token": "aaaa"})
    with pytest.raises(AuthorizationError) as caught:
        find_token(HOST)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    shown = "".join(traceback.format_exception(caught.value)) + repr(pickle.dumps(caught.value))
    assert SECRET not in shown


def test_bytes_that_are_no_text(home: Path) -> None:
    """A file that isn't UTF-8 is damaged, a folder in its place can't be read."""
    path = write(home / ".cloudvolume" / "secrets" / "cave-secret.json", "")
    path.write_bytes(b"\xff\xfe" + SECRET.encode())
    with pytest.raises(AuthorizationError, match="expected JSON"):
        find_token(HOST)
    path.unlink()
    path.mkdir()
    with pytest.raises(AuthorizationError, match="can't be read"):
        find_token(HOST)


def test_token_does_not_show(caplog: pytest.LogCaptureFixture) -> None:
    """A token is hidden in every form that text, logs and copies give it, and doesn't pickle."""
    token = Token(SECRET, "/a/file.json")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("any").warning("token %s %r", token, {"token": token})
    texts = [str(token), repr(token), f"{token}", f"{[token]}", f"{token!a}", caplog.text]
    assert all(SECRET not in text and "/a/file.json" in text for text in texts)
    assert not hasattr(token, "__dict__")
    for spill in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            spill(token)
