"""Three hosts, a bad network, and a cut: nothing lost, nothing twice, all back at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.wire.keys import make_keys
from tests.protocol.hosts import hosts, missing
from tests.protocol.peers import read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(missing()), reason=f"no hosts can be made here: {missing()}"),
]


@pytest.mark.parametrize("cut", [60.0, 12.0])
def test_a_cut_loses_nothing_and_everybody_is_back_within_ten_seconds(
    tmp_path: Path, cut: float
) -> None:
    """Learner and two actors over CURVE, weights by zmq, 20 ms away with 1 % of packets lost."""
    make_keys(tmp_path / "keys")
    common = (str(tmp_path), "tcp://*:0", str(tmp_path / "keys"))
    names = ("actor-0", "actor-1")
    with hosts(3) as net:
        net.delay, net.loss = 0.02, 0.01
        processes = [
            subprocess.Popen(
                net.command(host, sys.executable, "-m", "tests.protocol.peers", *argv),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            for host, argv in enumerate(
                [("learner", *common, "eth0"), *(("actor", *common, name) for name in names)]
            )
        ]
        until(lambda: all(serves(tmp_path, name) >= 1 for name in names), 60)
        # The learner's cable is out: both actors are cut off, in the middle of whatever they do.
        net.cut = {0}
        time.sleep(cut)
        net.cut = set()
        back = time.monotonic()
        before = {name: serves(tmp_path, name) for name in names}
        until(lambda: all(arrived(tmp_path, name, back) for name in names), 60)
        seconds = max(arrived(tmp_path, name, back) or 0.0 for name in names) - back
        until(lambda: all(serves(tmp_path, name) > before[name] for name in names), 60)
        print(f"cut of {cut:g} s: all back {seconds:.1f} s after it")
        time.sleep(5)
        (tmp_path / "enough").touch()
        for process in processes:
            assert process.wait(90) == 0
        print(f"{net.carried} packets carried, {net.lost} lost")
    sent = [
        event["id"] for name in names for event in read(tmp_path, name) if event["event"] == "sent"
    ]
    got = [event["id"] for event in read(tmp_path, "learner") if event["event"] == "got"]
    print(
        f"{len(sent)} trajectories sent, {len(set(sent) - set(got))} lost, "
        f"{len(got) - len(set(got))} twice"
    )
    assert sorted(got) == sorted(sent)
    assert len(set(got)) == len(got)
    assert seconds <= 10


def serves(run: Path, name: str) -> int:
    """The weights that an actor serves."""
    if not (run / f"{name}.jsonl").exists():
        return -1
    return max([-1, *(e["version"] for e in read(run, name) if e["event"] == "serves")])


def arrived(run: Path, name: str, since: float) -> float | None:
    """When the first trajectory of an actor arrived that was sent after a moment."""
    sent = {e["id"] for e in read(run, name) if e["event"] == "sent" and e["at"] > since - 60}
    for event in read(run, "learner"):
        if event["event"] == "got" and event["at"] > since and event["id"] in sent:
            return float(event["at"])
    return None


def until(ready, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
