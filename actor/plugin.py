"""What vLLM loads into each of its processes (entry point group `vllm.general_plugins`).

vLLM may call `register` several times in one process, and calls it in every vLLM process of the
environment, also in those that have nothing to do with DynaTok: it must be idempotent and cheap.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

WEIGHT_BACKEND = "dynatok"
"""Name of our weight-transfer backend in vLLM's `weight_transfer_config`."""
STICKY = "dynatok"
"""Key of our entry in the `extra_args` of vLLM's sampling parameters."""
BY_ACTOR = "DYNATOK_ACTOR"
"""Set by the actor in its own environment, inherited by the processes that vLLM starts."""


def register() -> None:
    """Add the weight-transfer backend and sticky reuse.

    Where an actor started the engine, its processes also multiply in `actor.cpu_rows`'s way on
    CPU, and die with the actor.
    """
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    from actor import sticky

    if WEIGHT_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            WEIGHT_BACKEND, "actor.weight_engine", "SharedMemoryWeightEngine"
        )
    sticky.install()
    if not os.environ.get(BY_ACTOR):
        return
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from actor import cpu_rows

        cpu_rows.install()
    if multiprocessing.parent_process() is not None:
        _die_with_parent()


def _die_with_parent() -> None:
    """A killed actor must not leave an engine behind: ask the kernel to kill this process too."""
    if not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os.kill(os.getpid(), signal.SIGKILL)  # it died before we asked
