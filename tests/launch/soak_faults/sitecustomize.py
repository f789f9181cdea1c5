"""Faults inside the processes of a soak, switched on and off by files in `$SOAK_FAULTS`.

Python imports this module by its name when it starts. `slow-disk`: every fsync takes 0.3 s
longer. `drop-events`: an actor's socket loses a third of vLLM's cache events.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import random
import sys
import time
from typing import Any

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


class _WhenImported(importlib.abc.MetaPathFinder):
    """Has the cache events of an actor come through a lossy socket."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "actor.engine.kv_events":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            begin = module.KvEvents.__init__

            def __init__(self: Any, *arguments: Any, **named: Any) -> None:
                begin(self, *arguments, **named)
                self._socket = _Lossy(self._socket)

            module.KvEvents.__init__ = __init__

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER:
    os.fsync, os.fdatasync = _slow(os.fsync), _slow(os.fdatasync)
    sys.meta_path.insert(0, _WhenImported())
