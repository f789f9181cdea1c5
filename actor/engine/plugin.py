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

from actor.engine.names import BY_ACTOR, WEIGHT_BACKEND


def register() -> None:
    """Add the weight-transfer backend, sticky reuse, and room for urgent requests.

    Where an actor started the engine, its processes also serve adapters in `one_adapter`'s way,
    compute on CPU as `cpu_rows`, `cpu_chunks` and `cpu_drafts` say, and die with the actor.
    """
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    from actor.engine import sticky, urgent

    if WEIGHT_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            WEIGHT_BACKEND, "actor.engine.weight_engine", "FileWeightEngine"
        )
    sticky.install()
    urgent.install()
    if not os.environ.get(BY_ACTOR):
        return
    from vllm.platforms import current_platform

    from actor.engine import one_adapter

    one_adapter.install()
    if current_platform.is_cpu():
        from actor.engine import cpu_chunks, cpu_drafts, cpu_rows

        for one in (cpu_rows, cpu_chunks, cpu_drafts):
            one.install()
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
