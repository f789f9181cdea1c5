"""Hosts of a small network on this machine: network namespaces, and a wire that is a program.

Each host's `eth0` is a TUN device, whose packets this process carries to the others: later, or not
at all. The kernels' TCP at both ends is the real one. (`tc netem` does the same, but many kernels
are built without it.) Needs root, `/dev/net/tun` and Debian's `iproute2`.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator

_NET = (10, 77, 0)
_TUNSETIFF = 0x400454CA
_IFF_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_MTU = 9000


def missing() -> str:
    """What is not there to make hosts with; empty: all is."""
    if shutil.which("ip") is None:
        return "no ip (apt-get install iproute2)"
    if os.getuid() != 0:
        return "namespaces need root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no /dev/net/tun"
    name = f"dynatok-try-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if done.returncode != 0:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


class Hosts:
    """`names[i]` is the namespace of host i, whose address is `address(i)`, on `eth0`."""

    def __init__(self, count: int) -> None:
        self.names = [f"dt{os.getpid()}-{number}" for number in range(count)]
        self.delay = 0.0
        """Seconds that a packet takes, give or take a quarter."""
        self.loss = 0.0
        """Share of the packets that get lost."""
        self.cut: set[int] = set()
        """Hosts whose cable is out."""
        self.carried = self.lost = 0
        self._fds: list[int] = []
        self._closing = False
        self._draw = random.Random(1)
        self._wire = threading.Thread(target=self._carry, name="wire", daemon=True)

    def address(self, host: int) -> str:
        """Its IPv4 address."""
        return ".".join(str(part) for part in (*_NET, host + 1))

    def command(self, host: int, *argv: str) -> list[str]:
        """A command line that runs on a host."""
        return ["ip", "netns", "exec", self.names[host], *argv]

    def open(self) -> None:
        """Make them."""
        for host, name in enumerate(self.names):
            _run("ip", "netns", "add", name)
            device = f"dt{os.getpid()}x{host}"
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            self._fds.append(fd)
            asked = struct.pack("16sH", device.encode(), _IFF_TUN_WITHOUT_HEADER)
            fcntl.ioctl(fd, _TUNSETIFF, asked)
            _run("ip", "link", "set", device, "netns", name)
            inside = ("ip", "link", "set", "dev")
            _run(*self.command(host, *inside, device, "name", "eth0", "mtu", str(_MTU)))
            _run(
                *self.command(host, "ip", "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            )
            _run(*self.command(host, *inside, "eth0", "up"))
            _run(*self.command(host, *inside, "lo", "up"))
        self._wire.start()

    def close(self) -> None:
        """Remove them, with the processes that still run there."""
        self._closing = True
        if self._wire.ident is not None:
            self._wire.join(5)
        for name in self.names:
            done = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            for pid in done.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for fd in self._fds:
            os.close(fd)

    def _carry(self) -> None:
        poll = select.poll()
        hosts = {fd: host for host, fd in enumerate(self._fds)}
        for fd in self._fds:
            poll.register(fd, select.POLLIN)
        under_way: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._closing:
            now = time.monotonic()
            wait = 100.0 if not under_way else max(0.0, (under_way[0][0] - now) * 1000)
            for fd, _ in poll.poll(min(wait, 100.0)):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        packet = os.read(fd, _MTU + 64)
                        to = packet[19] - 1 if len(packet) >= 20 and packet[0] >> 4 == 4 else -1
                        known = 0 <= to < len(self._fds) and packet[16:19] == bytes(_NET)
                        if not known or self.cut & {to, hosts[fd]} or self._unlucky():
                            self.lost += known
                            continue
                        number += 1
                        due = time.monotonic() + self.delay * self._draw.uniform(0.75, 1.25)
                        heapq.heappush(under_way, (due, number, to, packet))
            now = time.monotonic()
            while under_way and under_way[0][0] <= now:
                _, _, to, packet = heapq.heappop(under_way)
                self.carried += 1
                with contextlib.suppress(OSError):  # its queue is full: lost, as on a real wire
                    os.write(self._fds[to], packet)

    def _unlucky(self) -> bool:
        return self._draw.random() < self.loss


@contextlib.contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Some hosts that reach each other."""
    made = Hosts(count)
    try:
        made.open()
        yield made
    finally:
        made.close()


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
