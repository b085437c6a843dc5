"""The short form of `python -m reliability.pairs`: two commands at the same time, one of them killed or neither."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.commands import Machine
from reliability.pairs import Scene, open_scene, run_round


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_scene(tmp_path_factory.mktemp("pairs")) as found:
        yield found


@pytest.mark.parametrize(("pair", "kill"), [("identical", True), ("shared cache", True), ("eviction", False),
                                            ("refresh", True)])
def test_two_at_once(pair: str, kill: bool, scene: Scene, tmp_path: Path) -> None:
    """Both commands, again where one was killed, leave the tables that each leaves alone, and nothing else."""
    machine = Machine(tmp_path / "machine")
    try:
        outcome = run_round(pair, scene.pair(pair, machine), machine, random.Random(pair), kill=kill)
    finally:
        machine.close(remove=False)
    assert outcome.problems == [], outcome.said
