"""Luigi's settings that a run depends on, wherever it is started; the user's own come first.

Luigi ends with 0 when a task fails, unless told otherwise, and takes a `run()` that wrote nothing
for a success: a lab's nightly job must not depend on somebody having copied luigi.cfg.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from luigi.configuration import get_config

DEFAULTS = {
    "core": {"local_scheduler": "true", "log_level": "WARNING", "autoload_range": "false"},
    "retcode": {
        "already_running": "10",
        "missing_data": "20",
        "not_run": "25",
        "task_failed": "30",
        "scheduling_error": "35",
        "unhandled_exception": "40",
    },
    "worker": {"check_complete_on_run": "true", "wait_jitter": "0.1", "wait_interval": "0.1"},
    # While other groups are at work Luigi tries a failed one again, for ever by default: where each fails in its turn,
    # as with a store that is gone, a run would never end.
    "scheduler": {"retry_delay": "5", "retry_count": "3"},
}
# NumPy starts a thread a processor for matrix products, none of which are made here, and each turns idly for a while:
# a seventh of the processor time of a small run on two processors.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}

# What is for these commands alone, not for a program that imports the package: its own products get their threads, and
# the data set of luigi.cfg is for who names nothing.
_COMMANDS = ("luigi", "luigi-deps-tree", "luigi-deps")


def apply_defaults(public: str, stages: Iterable[str]) -> None:
    """Set what the user's configuration leaves open.

    For a bare command that is also the data set that luigi.cfg names. The section of the `public`
    task serves the `stages` too: a part of a run needs no section of its own.
    """
    if _is_command():
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    _apply(DEFAULTS)
    dataset = get_config().get("pipeline", "dataset", "")
    if dataset and Path(dataset).is_file() and _names_no_data():
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(dataset)
        _apply({section: dict(parser[section]) for section in parser.sections()})
    if get_config().has_section(public):
        options = dict(get_config().items(public))
        _apply(dict.fromkeys(stages, options))


def _is_command() -> bool:
    return Path(sys.argv[0]).name in _COMMANDS


def _names_no_data() -> bool:
    """Return whether neither the command line nor the user's configuration names a volume or points.

    All or nothing: the demo's points, or just its unit, would give plausible labels of another volume.
    """
    config = get_config()
    if not _is_command():
        return False
    named = any(re.match(r"--(\w+-)?(volume|points)\b", argument) for argument in sys.argv[1:])
    return not named and not any(config.has_option("SamplePoints", name) for name in ("volume", "points"))


def _apply(settings: dict[str, dict[str, str]]) -> None:
    config = get_config()
    for section, options in settings.items():
        for option, value in options.items():
            if not (config.has_option(section, option) or config.has_option(section, option.replace("_", "-"))):
                config.set(section, option, value)
