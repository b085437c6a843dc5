"""What the person at the terminal sees: our lines, and Luigi's only when something is wrong."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import TracebackType

from voxelprobe.errors import VoxelProbeError, printable


class _PlainFormatter(logging.Formatter):
    """Lines of the log that no data can forge: what follows a line end is set in."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", "\n    ")

_MAIN_PROCESS = os.getpid()
_LATER_SECONDS = 0.05


class _ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the present stderr, after taking a progress bar away."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K")
        super().emit(record)


def _shorten(record: logging.LogRecord) -> bool:
    """Say an error of ours in its own words, without the way through Luigi that it took.

    So too that of Luigi's which says that the marker of a stage can't be read any more.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, VoxelProbeError) or (isinstance(error, RuntimeError) and str(error).startswith("Unfulfilled")):
        record.msg, record.args = "%s", (str(error).replace("\n", "\n    "),)
        record.exc_info = record.exc_text = None
    return True


def _report_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        logging.getLogger("voxelprobe").error("interrupted; the same command goes on from here")
    else:
        sys.__excepthook__(kind, error, trace)


def _keep_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Have an interrupt happen a little later that came where Python drops exceptions, as in the middle of a fork."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
    elif os.getpid() == _MAIN_PROCESS:  # it is the parent's to handle
        timer = threading.Timer(_LATER_SECONDS, os.kill, (_MAIN_PROCESS, signal.SIGINT))
        timer.daemon = True
        timer.start()


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def set_up_logging() -> None:
    """Show the lines of the engine, and Luigi's warnings with our errors said plainly."""
    logger = logging.getLogger("voxelprobe")
    if not logger.handlers:
        handler = _ConsoleHandler()
        handler.setFormatter(_PlainFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    logging.getLogger("luigi-interface").addFilter(_shorten)
    sys.excepthook = _report_uncaught
    sys.unraisablehook = _keep_interrupt
    # From the first moment: until its task runs, a worker would show a traceback.
    os.register_at_fork(after_in_child=_leave_interrupts_to_parent)
