"""Which way weights travel: chosen here for the learner, and followed by the actor.

| name     | where                                    | how                                     |
|----------|------------------------------------------|-----------------------------------------|
| `shm`    | one machine                              | a ring of buffers in /dev/shm           |
| `folder` | machines with a shared file system       | safetensors files in the run folder     |
| `zmq`    | machines without one                     | chunks over a socket of the learner, to |
|          |                                          | one actor of each host                  |
| `store`  | many hosts, or far ones                  | safetensors objects in a store, read    |
|          |                                          | once on each host                       |

The manifest of every version names its transport; the actor opens its own end when the first one
comes, from its own configuration: nothing in a message becomes a path or an address.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from protocol.config import ProtocolConfig
from protocol.run.endpoint import find_endpoint
from protocol.weights.base import Progress, Tensor, WeightReceiver, WeightSender, WeightsError
from protocol.weights.folder import FolderReceiver, FolderSender
from protocol.weights.payload import payload_bytes
from protocol.weights.shm import ShmReceiver, ShmSender
from protocol.weights.store import StoreReceiver, StoreSender
from protocol.weights.zmq import ZmqReceiver, ZmqSender
from protocol.wire.messages import WeightManifest, WeightsComing

TRANSPORTS: Final = ("shm", "folder", "zmq", "store")
FOLDER: Final = "weights"
"""Where `folder` puts its files in the run folder."""


def open_sender(
    transport: str,
    config: ProtocolConfig,
    run_id: str,
    run_dir: Path,
    expected: Mapping[str, tuple[str, tuple[int, ...]]],
    full_every: int = 0,
) -> WeightSender:
    """The learner's end. `expected`: name -> (dtype, shape) of every tensor of the model.

    `full_every`: see `ZmqSender`; the others have no use for differences.
    Raises ValueError for a name that does not exist, or a transport that does not work here.
    """
    if transport == "shm":
        return ShmSender(run_id, payload_bytes(expected))
    if transport == "folder":
        return FolderSender(run_dir / FOLDER, expected)
    if transport == "zmq":
        listening = find_endpoint(run_dir, config.endpoint)
        return ZmqSender(config, payload_bytes(expected), full_every=full_every, beside=listening)
    if transport == "store":
        return StoreSender(config.weights_store, run_id, expected)
    raise ValueError(f"there is no weight transport '{transport}'; write {', '.join(TRANSPORTS)}")


class FollowingReceiver(WeightReceiver):
    """The actor's end: the one that each manifest asks for, opened when it is first needed."""

    def __init__(self, config: ProtocolConfig, run_id: str, run_dir: Path) -> None:
        self._config = config
        self._run_id = run_id
        self._run_dir = run_dir
        self._open: dict[str, WeightReceiver] = {}

    def expect(self, coming: WeightsComing) -> None:
        """Look on, where the transport can."""
        if coming.transport in self._open:
            self._open[coming.transport].expect(coming)

    def read(
        self, manifest: WeightManifest, *, verify: bool = True, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """The tensors, every hash checked. Raises `WeightsError`."""
        return self._of(manifest).read(manifest, verify=verify, progress=progress)

    def locate(self, manifest: WeightManifest) -> tuple[Path, int]:
        """The local file with the payload."""
        return self._of(manifest).locate(manifest)

    def serves(self, manifest: WeightManifest) -> None:
        """What is older may go."""
        self._of(manifest).serves(manifest)

    def close(self) -> None:
        """Close what was opened."""
        for receiver in self._open.values():
            receiver.close()
        self._open = {}

    def _of(self, manifest: WeightManifest) -> WeightReceiver:
        name = manifest.transport
        if name not in self._open:
            if name == "shm":
                self._open[name] = ShmReceiver(self._run_id)
            elif name == "folder":
                self._open[name] = FolderReceiver(self._run_dir / FOLDER)
            elif name == "zmq":
                where = partial(find_endpoint, self._run_dir, self._config.endpoint)
                self._open[name] = ZmqReceiver(self._config, where=where, run_id=self._run_id)
            elif name == "store":
                try:
                    self._open[name] = StoreReceiver(self._config.weights_store, self._run_id)
                except ValueError as error:
                    raise WeightsError(f"weights {manifest.version}: {error}") from error
            else:
                raise WeightsError(
                    f"weights {manifest.version} come by '{name}', which this release does not "
                    f"know; it has {', '.join(TRANSPORTS)}"
                )
        return self._open[name]
