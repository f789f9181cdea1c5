"""The actor's end of transports that bring a version into a file of this host."""

from __future__ import annotations

import os
from abc import abstractmethod
from pathlib import Path

from protocol.weights.base import Progress, Tensor, WeightReceiver, WeightsError
from protocol.weights.host_file import HostFile, fetch_once
from protocol.weights.memory import memory_folder, remove_leftovers
from protocol.weights.payload import WrongBytes, check_layout, identify, slice_verified
from protocol.wire.messages import WeightManifest


class HostReceiver(WeightReceiver):
    """Has a version fetched once on this host, and checks every hash. Subclasses fetch."""

    def __init__(self, transport: str, run_id: str, deadline_seconds: float) -> None:
        """`deadline_seconds`: without any bytes for so long, a fetch fails."""
        self._transport = transport
        self._run_id = run_id
        self._deadline = deadline_seconds
        self._fetched: dict[tuple[int, str], HostFile] = {}
        """By version, and by what is in it: a learner that was started again may publish a number
        anew."""
        remove_leftovers()

    @abstractmethod
    def _fetch(self, manifest: WeightManifest, fd: int, whole: bool, progress: Progress) -> None:
        """Write a version's bytes to a file. `whole`: without anything that came before."""

    def read(
        self, manifest: WeightManifest, *, verify: bool = True, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """Fetch a version (once on this host) and give views of the local file."""
        progress = progress or Progress()
        if manifest.transport != self._transport:
            raise WeightsError(
                f"weights {manifest.version} came by '{manifest.transport}', not {self._transport}"
            )
        check_layout(manifest, manifest.nbytes)
        key = manifest.version, identify(self._run_id, manifest)
        try:
            return self._read(key, manifest, verify, progress, whole=False)
        except WrongBytes:
            # Another process of this host has damaged them, or they were made from a base that the
            # learner no longer means.
            return self._read(key, manifest, verify, progress, whole=True)

    def _read(
        self,
        key: tuple[int, str],
        manifest: WeightManifest,
        verify: bool,
        progress: Progress,
        whole: bool,
    ) -> dict[str, Tensor]:
        def fetch(fd: int) -> None:
            free = os.statvfs(memory_folder())
            check_layout(manifest, free.f_bavail * free.f_frsize)
            self._fetch(manifest, fd, whole, progress)

        if key not in self._fetched:
            self._fetched[key] = fetch_once(
                key[1], manifest.nbytes, fetch, progress, self._deadline
            )
        view = self._fetched[key].view()
        try:
            return slice_verified(manifest, view, verify=verify, progress=progress)
        except WrongBytes:
            self._fetched.pop(key).discard()
            raise

    def serves(self, manifest: WeightManifest) -> None:
        """Older versions are let go of."""
        for old in [key for key in self._fetched if key[0] < manifest.version]:
            self._fetched.pop(old).delete()

    def locate(self, manifest: WeightManifest) -> tuple[Path, int]:
        """The local file."""
        local = self._fetched.get((manifest.version, identify(self._run_id, manifest)))
        if local is None:
            raise WeightsError(f"weights {manifest.version} were not fetched")
        return local.path, 0

    def close(self) -> None:
        """Let go of the local files; what is mapped stays until it is unmapped."""
        for local in self._fetched.values():
            local.delete()
        self._fetched = {}
