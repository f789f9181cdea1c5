"""Faults inside the processes of a soak, switched on and off by files in `$SOAK_FAULTS`.

Python imports this module by its name when it starts. `slow-disk`: every fsync takes 0.3 s
longer. `drop-events`: an actor's socket loses a third of vLLM's cache events. `refuse-weights`: an
actor reads every new version wrongly the first time.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import random
import sys
import time
from typing import Any, ClassVar

FOLDER = os.environ.get("SOAK_FAULTS", "")


def _on(fault: str) -> bool:
    return os.path.exists(os.path.join(FOLDER, fault))


def _slow(call: Any) -> Any:
    def slowed(fd: Any) -> None:
        if _on("slow-disk"):
            time.sleep(0.3)
        call(fd)

    return slowed


class _Lossy:
    """A socket that loses messages."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def recv_multipart(self, *arguments: Any, **named: Any) -> Any:
        while True:
            message = self._socket.recv_multipart(*arguments, **named)
            if not (_on("drop-events") and random.random() < 1 / 3):
                return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def _lose_events(module: Any) -> None:
    begin = module.KvEvents.__init__

    def __init__(self: Any, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        self._socket = _Lossy(self._socket)

    module.KvEvents.__init__ = __init__


def _refuse_weights(module: Any) -> None:
    read = module.ShmReceiver.read
    seen: set[int] = set()  # to go back to an older version must work

    def read_or_refuse(self: Any, manifest: Any, **named: Any) -> Any:
        new = manifest.version not in seen
        seen.add(manifest.version)
        if new and _on("refuse-weights"):
            raise module.WeightsError(f"weights {manifest.version}: a soak refuses them")
        return read(self, manifest, **named)

    module.ShmReceiver.read = read_or_refuse


class _WhenImported(importlib.abc.MetaPathFinder):
    """Changes modules of ours as soon as they are imported."""

    changes: ClassVar[dict[str, Any]] = {
        "actor.engine.kv_events": _lose_events,
        "protocol.weights.shm": _refuse_weights,
    }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        change = self.changes.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER:
    os.fsync, os.fdatasync = _slow(os.fsync), _slow(os.fdatasync)
    sys.meta_path.insert(0, _WhenImported())
