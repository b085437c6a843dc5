from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_imports_follow_the_map() -> None:
    """Every contract on imports in pyproject.toml holds: layers, no Luigi in the engine, no oracles in the product."""
    from importlinter.cli import lint_imports

    try:
        assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0
    finally:
        # It configures logging for itself and disables every logger that is there already.
        for logger in logging.Logger.manager.loggerDict.values():
            if isinstance(logger, logging.Logger):
                logger.disabled = False


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import voxelprobe", {"numpy", "pyarrow", "luigi", "cloudfiles", "crackle"}),
        ("import pipeline", {"numpy", "pyarrow", "cloudfiles", "crackle", "compresso"}),
        ("from voxelprobe import sample_points", {"luigi", "cloudfiles", "crackle", "compresso", "pyarrow.parquet"}),
    ],
)
def test_heavy_packages_are_loaded_by_who_uses_them(statement: str, absent: set[str]) -> None:
    """Starting costs no package that isn't needed yet."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert absent.isdisjoint(loaded), absent.intersection(loaded)


def test_modules_stay_small() -> None:
    """No module of the product has more than 300 lines: past that, look for the second idea in it."""
    long = {
        str(path.relative_to(ROOT)): lines
        for package in ("pipeline", "tasks", "voxelprobe")
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 300
    }
    assert not long
