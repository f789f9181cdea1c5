"""Eight launches at once on one machine: each finds its own, whatever address they choose.

The supervisors, the sockets, the files and the processes are real; engine and trainer are left
out, because eight of each do not fit into the memory of a test machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

LEARNER = """
import sys, time
from pathlib import Path
from protocol.config import ProtocolConfig
from protocol.delivery.learner_channel import LearnerChannel
from protocol.run.endpoint import to_tell, write_endpoint
from protocol.run.json_files import write_json
from protocol.wire.messages import Bye

run, endpoint, keys = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
channel = LearnerChannel(ProtocolConfig(endpoint=endpoint, keys=keys), run.name)
channel.start()
write_endpoint(run, to_tell(channel.endpoint, endpoint))
end = time.monotonic() + 60
while time.monotonic() < end:
    event = channel.receive(1.0)
    if event is not None and isinstance(event.message, Bye):
        write_json(run / "learner.json", {"finished": True, "said": event.message.reason})
        break
channel.close()
"""

ACTOR = """
import asyncio, sys
from functools import partial
from pathlib import Path
from protocol.config import ProtocolConfig
from protocol.delivery.actor_channel import ActorChannel
from protocol.run.endpoint import find_endpoint
from protocol.wire.messages import Bye, Hello

run, endpoint, keys = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None

async def main():
    channel = ActorChannel(
        ProtocolConfig(endpoint=endpoint, keys=keys, connect_seconds=60), run.name, "actor",
        Hello("none", 32, 0), where=partial(find_endpoint, run, endpoint),
    )
    await channel.start()
    channel.send(Bye(f"of {run.name}"))
    await asyncio.sleep(0.2)
    await channel.close()

asyncio.run(main())
"""

LAUNCH = """
import os, sys
from pathlib import Path
from launch.supervisor import Command, supervise

class Quiet:
    def update(self, state, seconds): pass
    def say(self, text): print(text, file=sys.stderr)
    def close(self): pass

run, learner, actor, *rest = sys.argv[1:]
commands = [
    Command(name, [sys.executable, "-c", code, run, *rest], os.environ)
    for name, code in (("learner", learner), ("actor", actor))
]
raise SystemExit(supervise(Path(run), commands, Quiet()).code)
"""


@pytest.mark.parametrize("endpoint", ["ipc://*", "tcp://127.0.0.1:0", "tcp://*:0"])
def test_eight_launches_at_once_all_start(tmp_path: Path, endpoint: str) -> None:
    keys = ""
    if "*:" in endpoint:
        keys = str(tmp_path / "keys")
        subprocess.run([sys.executable, "-m", "launch.cli", "keys", keys], check=True)
    runs = [tmp_path / f"run-{number}" for number in range(8)]
    for run in runs:
        run.mkdir()
    launches = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(run), LEARNER, ACTOR, endpoint, keys],
            stderr=subprocess.PIPE,
            text=True,
        )
        for run in runs
    ]
    for run, one in zip(runs, launches, strict=True):
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors
        said = json.loads((run / "learner.json").read_text())["said"]
        assert said == f"of {run.name}", "its own actor, and nobody else's"
