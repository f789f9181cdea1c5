"""CURVE keys: who may talk to whom when others can reach the address.

A folder has one pair for the learner and one for the actors. Public halves end in `.key`,
secret ones in `.key_secret`. The learner's machine needs `learner.key_secret` and `actor.key`;
an actor's machine `actor.key_secret` and `learner.key`. A peer without the right key gets no
answer at all, and is counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from protocol.wire.socket import Refusals

LEARNER: Final = "learner"
ACTOR: Final = "actor"


def make_keys(folder: Path) -> list[Path]:
    """Make both pairs. Raises ValueError where there are some already: they are never replaced."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = [folder / f"{name}.{end}" for name in (LEARNER, ACTOR) for end in ("key", "key_secret")]
    there = [path.name for path in files if path.exists()]
    if there:
        raise ValueError(
            f"{folder} already has {', '.join(there)}; delete them to make new ones, or choose "
            "another folder"
        )
    before = os.umask(0o077)
    try:
        for name in (LEARNER, ACTOR):
            zmq.auth.create_certificates(folder, name)
    finally:
        os.umask(before)
    return files


def load(folder: str | Path, name: str, *, secret: bool) -> tuple[bytes, bytes | None]:
    """(public, secret) halves of a pair. Raises ValueError that says which file is wrong."""
    path = Path(folder) / f"{name}.{'key_secret' if secret else 'key'}"
    try:
        public, hidden = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"protocol.keys: cannot read {path}: {error}; make keys with `dynatok keys FOLDER`"
        ) from error
    if secret and hidden is None:
        raise ValueError(f"protocol.keys: {path} has no secret key")
    if secret and path.stat().st_mode & 0o077:
        raise ValueError(
            f"protocol.keys: others can read {path}; run chmod 600 {path}, or make new keys"
        )
    return public, hidden


class _Known:
    """Says which client keys are known; asked by the authenticator's thread."""

    def __init__(self, keys: set[bytes], refusals: Refusals) -> None:
        self._keys = keys
        self._refusals = refusals

    def callback(self, domain: str, key: bytes) -> bool:
        if key in self._keys:
            return True
        self._refusals.count("key", "a peer with an unknown key")
        return False


class Authenticator:
    """Refuses clients without the actors' key, for all server sockets of a context."""

    def __init__(self, context: zmq.Context[Any], folder: str | Path, refusals: Refusals) -> None:
        public, _ = load(folder, ACTOR, secret=False)
        self._thread = ThreadAuthenticator(context)
        self._thread.start()
        self._thread.configure_curve_callback("*", _Known({public}, refusals))

    def check(self) -> None:
        """Raise RuntimeError where its thread has died: no peer could connect any more."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that checks CURVE keys has died")

    def stop(self) -> None:
        """Before the context ends, which must be by `destroy` where its thread has died."""
        if self._thread.is_alive():
            self._thread.stop()


def secure_server(socket: zmq.Socket[Any], folder: str | Path) -> None:
    """Make a socket of the learner speak CURVE; call before binding."""
    public, secret = load(folder, LEARNER, secret=True)
    assert secret is not None
    socket.curve_publickey = public
    socket.curve_secretkey = secret
    socket.curve_server = True


def open_server(
    context: zmq.Context[Any],
    socket: zmq.Socket[Any],
    keys: str | Path | None,
    refusals: Refusals,
    bind: Callable[[], object],
    cannot: Callable[[str], str],
) -> Authenticator | None:
    """Secure a socket of the learner where there are keys, and have `bind` bind it.

    Raises ValueError for keys that cannot be used, or, where the address cannot be bound, with what
    `cannot` makes of zmq's reason; nothing of the context is left then.
    """
    authenticator = None
    try:
        if keys is not None:
            secure_server(socket, keys)
            authenticator = Authenticator(context, keys, refusals)
        bind()
    except (zmq.ZMQError, ValueError) as error:
        if authenticator is not None:
            authenticator.stop()
        context.destroy(linger=0)
        if isinstance(error, ValueError):
            raise
        raise ValueError(cannot(error.strerror)) from error
    return authenticator


def secure_client(socket: zmq.Socket[Any], folder: str | Path) -> None:
    """Make a socket of an actor speak CURVE; call before connecting."""
    public, secret = load(folder, ACTOR, secret=True)
    assert secret is not None
    socket.curve_publickey = public
    socket.curve_secretkey = secret
    socket.curve_serverkey, _ = load(folder, LEARNER, secret=False)
