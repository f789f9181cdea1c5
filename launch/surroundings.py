"""The doctor's look at what a machine of a cluster, or a container, gives a process to live in.

Homes that cannot be written, folders that are full or missing, clocks that disagree with the file
server's. Each function yields what `launch.doctor` prints.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from protocol.run.home import home_variables

_MIB = 2**20
_SKEW = 2.0
"""Seconds that two clocks may differ: less than `protocol.dead_after_seconds` by far."""


class Finding(msgspec.Struct, frozen=True):
    """What one check found."""

    ok: bool
    what: str
    fix: str = ""


def home(environment: Mapping[str, str] = os.environ) -> Finding:
    """Libraries keep caches in a home; where there is none, dynatok gives them a place."""
    moved = home_variables(environment)
    folder = Path(environment.get("HOME", "~")).expanduser()
    if not moved:
        return Finding(True, f"home {folder} can be written")
    place = moved.get("HOME") or str(Path(next(iter(moved.values()))).parent)
    return Finding(True, f"home {folder} cannot be written: caches go to {place}")


def models(model: str, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """A model from the hub is kept in a cache, which must be writable to fetch it."""
    if model in ("tiny", "smollm2") or Path(model).exists():
        return
    default = Path(environment.get("HOME", "~")).expanduser() / ".cache" / "huggingface"
    folder = Path(environment.get("HF_HOME", default))
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    yield Finding(
        os.access(there, os.W_OK | os.X_OK) or environment.get("HF_HUB_OFFLINE") == "1",
        f"models from the hub are kept in {folder}",
        f"{there} cannot be written: set HF_HOME to a folder that can (HF_HUB_OFFLINE=1 if the "
        "model is there already)",
    )


def temporary(needed: int = 256 * _MIB) -> Finding:
    """Sockets, and caches of those without a home."""
    folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    return Finding(
        free >= needed,
        f"{folder}: {free // _MIB} MiB free",
        f"set TMPDIR to a folder with {needed // _MIB} MiB",
    )


def clock(folder: Path) -> Finding:
    """The file server's clock against this machine's, by a file that is written now."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            before = time.time()
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            written, after = os.stat(file.name).st_mtime, time.time()
    except OSError as error:
        return Finding(
            False,
            f"{folder.resolve()}: nothing can be written ({error.strerror})",
            "set dir (the folder of run folders) to one that can be written",
        )
    skew = max(before - written, written - after, 0.0)
    return Finding(
        skew <= _SKEW,
        f"{folder.resolve()} can be written, its clock differs by {skew:.1f} s",
        "clocks of this machine and the file server must agree: start chronyd or ntpd on both",
    )


def fuse(device: Path = Path("/dev/fuse")) -> Iterator[Finding]:
    """Apptainer mounts its images by it where it is not installed setuid."""
    if shutil.which("apptainer") or shutil.which("singularity"):
        yield Finding(
            device.exists(),
            f"{device} for Apptainer's images",
            "without it apptainer needs --unsquash, or a sandbox: apptainer build --sandbox",
        )
