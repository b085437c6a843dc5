"""A power cut: of what a run wrote, only that is sure which it told the kernel to bring to the disk.

The model. `power.c`, loaded before libc, keeps of each file below the workspace what it held at its last fsync. When
the run's processes have been killed, `cut_power` makes of each file what a disk might hold: every block of 4 KiB that
was written since is there, or as it was at the last fsync, or zero; the size is the old or the new one, or for a file
that was never brought to the disk any, and the file may be gone. Every rename and unlink in a folder that was not
itself brought to the disk since is done or not, each by a throw of its own: POSIX allows that, while journalling file
systems keep their order. Not in the model: folders that vanish, sectors that can't be read, disks that lie of fsync.
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import tempfile
from pathlib import Path

BLOCK_BYTES = 4096


@functools.cache
def library() -> Path:
    """Return the compiled recorder.

    Raises
    ------
    RuntimeError
        If there is no C compiler.
    """
    built = Path(tempfile.mkdtemp(prefix="power-")) / "power.so"
    words = ["cc", "-O1", "-shared", "-fPIC", "-o", str(built), str(Path(__file__).with_name("power.c")), "-ldl"]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"the recorder of fsync can't be compiled: {error}") from error
    return built


def recording(root: Path, log: Path) -> dict[str, str]:
    """Return the environment of a command whose fsyncs, renames and unlinks below `root` are recorded in `log`."""
    log.mkdir(parents=True, exist_ok=True)
    return {"LD_PRELOAD": str(library()), "POWER_ROOT": str(root.resolve()), "POWER_LOG": str(log.resolve())}


def cut_power(root: Path, log: Path, rng: random.Random) -> dict[str, int]:
    """Make of the files below `root` what a disk might hold after a power cut; return how many of what were lost."""
    lost = {"names": _lose_names(log, rng), "contents": 0}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix != ".lock":
            lost["contents"] += _lose_content(path, log, rng)
    return lost


def _lose_names(log: Path, rng: random.Random) -> int:
    """Undo some of the renames and unlinks that no fsync of their folder made sure."""
    try:
        operations = [line.split("\t") for line in (log / "operations").read_text().splitlines()]
    except FileNotFoundError:
        return 0
    unsure: list[list[str]] = []
    for operation in operations:
        kind, first, second, _ = operation
        if kind == "folder":
            unsure = [one for one in unsure if os.path.dirname(one[2] or one[1]) != first]
        else:
            unsure.append(operation)
    count = 0
    for kind, first, second, kept in reversed(unsure):
        if rng.random() < 0.5:
            continue
        name = Path(second or first)
        if not name.parent.is_dir():
            continue
        if kind == "rename":
            if not name.exists():
                continue
            name.replace(first)
        elif name.exists():
            continue
        if kept and Path(kept).exists():
            os.link(kept, name)
        count += 1
    return count


def _lose_content(path: Path, log: Path, rng: random.Random) -> bool:
    """Take from a file some of what was not brought to the disk; return whether anything."""
    stat = path.stat()
    written = path.read_bytes()
    durable = log / f"durable-{stat.st_ino}"
    old = durable.read_bytes() if durable.exists() else None
    if written == old:
        return False
    fate = rng.random()
    if old is None and fate < 0.2:
        path.unlink()
        return True
    size = rng.choice([len(written), len(old) if old is not None else rng.randint(0, len(written))])
    blocks = []
    for start in range(0, size, BLOCK_BYTES):
        new, before = (content[start : start + BLOCK_BYTES] for content in (written, old or b""))
        if new != before and rng.random() < 0.5:
            new = rng.choice([before, b"", before])
        blocks.append(new.ljust(min(BLOCK_BYTES, size - start), b"\0")[: size - start])
    content = b"".join(blocks)
    if content == written:
        return False
    with path.open("r+b") as file:
        file.write(content)
        file.truncate(len(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return True
