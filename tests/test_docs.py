from __future__ import annotations

import configparser
import re
from pathlib import Path

import luigi
import pytest

import pipeline
from pipeline.settings import DEFAULTS
from voxelprobe.records import Status

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TASKS = {name: getattr(pipeline, name) for name in pipeline.__all__ if name != "RangeDaily"}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_is_in_the_readme(task: str) -> None:
    """The README names every task of the pipeline."""
    assert f"`{task}" in README


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_parameter_is_described_and_in_the_readme(task: str) -> None:
    """Every parameter has a description, and the README has its command-line name."""
    for name, parameter in TASKS[task].get_params():
        assert parameter.description, f"{task} --{name}"
        assert f"`--{name.replace('_', '-')}`" in README


@pytest.mark.parametrize("state", [state for state in Status if state != Status.NO_ROOT])
def test_every_status_is_in_the_readme(state: Status) -> None:
    """The README explains every status that a result can have."""
    assert f"`{state.label}`" in README


def read_config(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.cfg")), ids=lambda path: path.name)
def test_every_configured_key_is_a_parameter(path: Path) -> None:
    """Every key of a data set's configuration is a real parameter: Luigi would ignore a wrong one."""
    for section, options in read_config(path).items():
        names = {name for name, _ in TASKS[section].get_params()} if options else set()
        assert set(options) <= names, section


def test_luigi_cfg_agrees_with_the_settings_in_code() -> None:
    """luigi.cfg says nothing else than what the package sets where there is no luigi.cfg."""
    config = read_config(ROOT / "luigi.cfg")
    assert (ROOT / config["pipeline"]["dataset"]).is_file()
    for section in set(config) - {"DEFAULT", "pipeline"}:
        assert dict(config[section]).items() <= DEFAULTS[section].items()


def test_luigi_knows_the_settings() -> None:
    """The options that the package sets are ones that this Luigi has."""
    from luigi.interface import core
    from luigi.retcodes import retcode
    from luigi.scheduler import scheduler
    from luigi.worker import worker

    known = {"core": core, "retcode": retcode, "scheduler": scheduler, "worker": worker}
    for section, options in DEFAULTS.items():
        names = {name for name, _ in known[section].get_params()}
        # Read by luigi.interface from the configuration itself.
        assert set(options) - {"autoload_range"} <= names, section
    assert luigi.__version__.startswith("3.")


def test_links_lead_somewhere() -> None:
    """Every relative link of a document leads to a file."""
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_readme_shows_the_two_commands() -> None:
    """A fresh machine needs two commands, and the README has them."""
    assert "make demo" in README
    assert "make test" in README
