"""DeepSpeed's communication op for CPUs, compiled once and never waited for in vain.

DeepSpeed compiles it at its first start (about 35 s with g++ and ninja). torch guards such builds
with a lock *file*: a process that is killed while it compiles leaves the file behind, and every
later start waits for it for ever. So the op is built here first, under a lock that the kernel
drops with its holder; a lock file found while we hold that one belongs to nobody.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

DEADLINE = 300.0
"""Seconds to wait for another process that is compiling."""


def build() -> None:
    """Compile or load the op. Raises ValueError where it cannot be compiled."""
    from deepspeed.accelerator import get_accelerator
    from torch.utils import cpp_extension

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    folder = Path(cpp_extension._get_build_directory(builder.name, verbose=False))
    with open(folder.parent / f"{builder.name}.lock", "w") as ours:
        _wait_for(ours.fileno(), folder)
        (folder / "lock").unlink(missing_ok=True)
        try:
            builder.load(verbose=False)
        except (RuntimeError, ImportError, OSError) as error:
            raise ValueError(
                f"DeepSpeed cannot compile its communication op: {error}; `dynatok doctor` checks "
                "the compiler"
            ) from error


def _wait_for(file: int, folder: Path) -> None:
    until = time.monotonic() + DEADLINE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ValueError(
                    f"another process has been compiling in {folder} for {DEADLINE:.0f} s; stop it"
                ) from None
            time.sleep(0.2)
