from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import voxelprobe

ROOT = Path(__file__).parents[1]


def test_packages_come_from_one_folder() -> None:
    """`pipeline` and `tasks`, common names, are ours and not somebody else's."""
    modules = [importlib.import_module(name) for name in ("pipeline", "tasks", "voxelprobe")]
    homes = {Path(str(module.__file__)).parents[1] for module in modules}
    assert homes == {ROOT}


def test_version_is_said_once() -> None:
    """The package, its metadata and the project file agree on the version, and the changelog has it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert declared == voxelprobe.__version__ == version("voxelprobe")
    assert f"[{declared}]" in (ROOT / "CHANGELOG.md").read_text()


def test_dependencies_that_need_an_api_are_bounded() -> None:
    """crackle-codec has scattered_points from 0.53 on; Luigi's next major version may change what we rely on."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "crackle-codec>=0.53" in dependencies
    assert "luigi>=3.8,<4" in dependencies


def test_module_is_found_away_from_the_checkout(tmp_path: Path) -> None:
    """The installed command finds the pipeline from any folder, and fails with a status there."""
    luigi = Path(sys.executable).with_name("luigi")
    done = subprocess.run(
        [luigi, "--module", "pipeline", "SamplePoints"], cwd=tmp_path, capture_output=True, text=True,
        check=False, timeout=60, env={**os.environ, "LUIGI_CONFIG_PATH": ""},
    )
    assert done.returncode == 30, done.stderr
    assert "--volume is missing" in done.stderr


@pytest.mark.parametrize("word", ["pypi" + ".org", "python" + "hosted", "index" + "-url", "/ro" + "ot/", "/wo" + "rk/"])
def test_no_machine_or_registry_is_named(word: str) -> None:
    """The repository names no machine's path and no registry's host."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [
        name for name in tracked.split("\0")
        if name and (ROOT / name).is_file()
        and word.encode() in (ROOT / name).read_bytes()
    ]
    assert not found
