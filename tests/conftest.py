"""What tests of every folder share: nothing of the user's own is read, and nothing is left running."""

from __future__ import annotations

import os

import pytest

# Settings of the person at the keyboard that would change what a test sees.
_OWN_SETTINGS = ("LUIGI_CONFIG_PATH", "LUIGI_CONFIG_PARSER", "CLOUD_VOLUME_DIR", "CLOUD_FILES_DIR",
                 "VOXELPROBE_EXECUTION", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture(autouse=True, scope="session")
def _without_own_settings() -> None:
    for name in _OWN_SETTINGS:
        os.environ.pop(name, None)
