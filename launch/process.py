"""One child process of a run, and everything that it starts.

A child leads its own session, so Ctrl-C in the terminal reaches only the supervisor, and one
signal reaches the child with all its workers. What a killed process cannot clean up itself (its
shared memory) is remembered while it lives and removed after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

SHM = Path("/dev/shm")
_GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class Child:
    """A started process with a log file."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = _start(argv, env, out)
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code (negative: the signal that killed it), or None while it runs."""
        return self._process.poll()

    def last_words(self, lines: int = 12) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 32_768))
            text = file.read().decode(errors="replace")
            return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
        return ""


def _start(argv: Sequence[str], env: Mapping[str, str], out: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(argv),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def describe_exit(code: int) -> str:
    """`exited with code 3`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def members(sessions: Iterable[int]) -> list[int]:
    """Pids of the live processes (zombies left out) in these sessions, and in those that were
    begun by a process of one of them, as each rank of a learner begins its own."""
    wanted = set(sessions)
    found = []
    for pid in sorted(psutil.pids()) if wanted else ():
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            # The session first: it is one system call, and most processes are none of ours.
            session = os.getsid(pid)
            if session == pid and psutil.Process(pid).ppid() in found:
                wanted.add(session)
            if session in wanted and psutil.Process(pid).status() not in _GONE:
                found.append(pid)
    return found


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Files under /dev/shm that these processes have mapped.

    Found by inode: a semaphore is mapped under a temporary name before it gets its own. That,
    and that it is asked for every two seconds, is why this reads /proc: psutil's `memory_maps`
    gives no inodes, and has the kernel add up every page.
    """
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            inodes |= {int(line.split()[4]) for line in maps if "/dev/shm/" in line}
    if not inodes or not SHM.is_dir():
        return set()
    with os.scandir(SHM) as entries:
        return {Path(entry.path) for entry in entries if entry.inode() in inodes}


def stop(
    sessions: Iterable[int],
    patience: float,
    segments: Iterable[Path] = (),
    hurry: Callable[[], bool] = lambda: False,
    keep: Iterable[Path] = (),
    ask: Mapping[int, signal.Signals] | None = None,
) -> bool:
    """End every process of these sessions: SIGTERM, `patience` seconds or `hurry`, SIGKILL.

    `ask`: session -> the signal for its leader, if that is another.

    The leader is asked first, so that it can end its workers in its own order; workers that have
    lost their leader are asked themselves. A rank is its own session's leader, and led by its
    parent. Removes the shared memory that they had mapped, and `segments`, but not what is to
    `keep`. Returns whether all went without being killed. A zombie counts as gone.
    """
    sessions = set(sessions)
    asked: set[int] = set()
    doomed = set(segments)
    deadline = time.monotonic() + patience
    while (left := members(sessions)) and time.monotonic() < deadline and not hurry():
        doomed |= shared_memory(left)
        for pid in left:
            if pid not in asked and _leader(pid) not in left:
                asked.add(pid)
                _signal(pid, (ask or {}).get(pid, signal.SIGTERM))
        time.sleep(0.05)
    gentle = not left
    deadline = time.monotonic() + 2.0
    while (left := members(sessions)) and time.monotonic() < deadline:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.02)
    for path in doomed - set(keep):
        if path.parent == SHM:
            path.unlink(missing_ok=True)
    return gentle


def _leader(pid: int) -> int | None:
    """Who is asked before this one: the leader of its session, or the parent of a leader."""
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        session = os.getsid(pid)
        return psutil.Process(pid).ppid() if session == pid else session
    return None


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
