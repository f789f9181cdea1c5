"""What must hold in the actor's process before vLLM is imported: its environment, our plugin."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version

from actor.engine.names import BY_ACTOR, PLUGIN
from protocol.run.threads import NAMES, threads


def check_plugin() -> None:
    """ValueError where vLLM would not find our plugin."""
    if not any(found.value == PLUGIN for found in entry_points(group="vllm.general_plugins")):
        raise ValueError(
            "vLLM does not see our plugin, without which it cannot take new weights; install "
            "the project into the environment: pip install --no-deps -e ."
        )


def socket_parent() -> str:
    """A folder for unix sockets, whose whole path may have no more than 107 characters.

    That for temporary files, unless its own path (`TMPDIR`) takes most of them.
    """
    for folder in (tempfile.gettempdir(), "/tmp", "/dev/shm"):
        if len(os.fsencode(folder)) <= 60 and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise ValueError(
        f"no folder for unix sockets: the path of {tempfile.gettempdir()} is too long for them; "
        "set TMPDIR to a short path"
    )


def prepare_environment(extra: Mapping[str, str], *, eager: bool) -> None:
    """Set what vLLM reads from the environment; what is set already, or in `extra`, wins."""
    defaults = {
        BY_ACTOR: "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_RPC_BASE_PATH": socket_parent(),
    }
    if is_cpu_build():
        defaults |= {
            # One process for engine core and worker: it starts in half the time.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Threads float, and leave half of the cores to the learner: pinned ones would
            # fight it for the same cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **threads(2),
            # Huge pages: blocks of one request lie all over the cache, the more so after edits,
            # and attention would wait for the address of every one of them.
            "THP_MEM_ALLOC_ENABLE": "1",
        }
        if eager:
            # The one function that vLLM compiles all the same costs seconds and gains nothing.
            defaults["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if NAMES[0] in extra:  # for all libraries, whatever the launcher has set
        os.environ.update(threads(1, extra))
    os.environ.update(extra)


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the one for CPUs."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return "cpu" in version("vllm")
