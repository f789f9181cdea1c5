"""An actor's process as far as weights by zmq are concerned.

    python -m tests.protocol.readers PORT RUN_ID < MANIFESTS

Reads each manifest (a line of hexadecimal msgpack) and says which bytes its tensor `w` has, or why
not. Keeps the newest two until its input ends.
"""

from __future__ import annotations

import sys

import msgspec
import numpy as np

from protocol.config import ProtocolConfig
from protocol.weights.base import WeightsError
from protocol.weights.zmq import ZmqReceiver
from protocol.wire.messages import WeightManifest


def main() -> None:
    """See above."""
    port, run_id = sys.argv[1:]
    config = ProtocolConfig(endpoint=f"tcp://127.0.0.1:{port}")
    receiver = ZmqReceiver(config, deadline_seconds=2.0, run_id=run_id)
    for line in sys.stdin:
        manifest = msgspec.msgpack.decode(bytes.fromhex(line), type=WeightManifest)
        try:
            got = receiver.read(manifest)
        except WeightsError as error:
            print(error, flush=True)
        else:
            print(np.unique(np.frombuffer(got["w"].data, np.uint8)).tolist(), flush=True)
            receiver.serves(msgspec.structs.replace(manifest, version=manifest.version - 1))
    receiver.close()


if __name__ == "__main__":
    main()
