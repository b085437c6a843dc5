"""Luigi's settings that a run depends on, wherever it is started; the user's own come first.

Luigi ends with 0 when a task fails, unless told otherwise, and takes a `run()` that wrote nothing
for a success: a lab's nightly job must not depend on somebody having copied luigi.cfg.
"""

from __future__ import annotations

import configparser
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
    "scheduler": {"retry_delay": "5"},
}


def apply_defaults() -> None:
    """Set what the user's configuration leaves open; then the data set that it names, if it names one."""
    _apply(DEFAULTS)
    dataset = get_config().get("pipeline", "dataset", "")
    if dataset and Path(dataset).is_file():
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(dataset)
        _apply({section: dict(parser[section]) for section in parser.sections()})


def _apply(settings: dict[str, dict[str, str]]) -> None:
    config = get_config()
    for section, options in settings.items():
        for option, value in options.items():
            if not (config.has_option(section, option) or config.has_option(section, option.replace("_", "-"))):
                config.set(section, option, value)
