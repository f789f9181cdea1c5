"""The learner's numbers: of the actors that are here, and of every step."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learner.online.report import Report
from learner.online.stream import Stream
from protocol.delivery.peers import PeerInfo
from protocol.run.metrics import Metrics
from protocol.wire.socket import Refusals


@pytest.fixture
def peers() -> list[PeerInfo]:
    return []


@pytest.fixture
def report(tmp_path: Path, peers: list[PeerInfo]) -> Report:
    parts: dict[str, Any] = {
        "channel": SimpleNamespace(peers=lambda: peers, refusals=Refusals()),
        "batches": SimpleNamespace(waited=0.0),
        "inbox": SimpleNamespace(
            audit_mismatches=0, weight_syncs=0, weights_rejected=0, rejected=Counter()
        ),
        "publisher": SimpleNamespace(version=7, postponed=0, seconds=0.0, changed=0.5),
        "probe": SimpleNamespace(worst=None, compared=0, missed=0, seconds=0.0),
    }
    metrics = Metrics(tmp_path, "learner", tensorboard=False)
    return Report(
        tmp_path, metrics=metrics, exporter=None, stream=Stream(4), timings={}, step=0, **parts
    )


def step(report: Report, number: int) -> None:
    report.reached(number)
    numbers = {"loss": 1.0, "seconds_step": 1.0, "seconds_wait_for_batch": 0.5}
    numbers |= {"seconds_publish": 0.25 * (number % 2), "seconds_compare": 0.125}
    report.write_step(number, numbers)


def logged(tmp_path: Path) -> list[int]:
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["actor_version"] for line in lines]


def test_an_actor_that_left_does_not_hold_the_version_back(
    report: Report, peers: list[PeerInfo], tmp_path: Path
) -> None:
    step(report, 1)
    peers.extend([PeerInfo("a", 1, 3, 0.0, 0), PeerInfo("b", 1, 6, 0.0, 0)])
    step(report, 2)
    peers.append(PeerInfo("new", 1, -1, 0.0, 0))
    del peers[0]
    step(report, 3)
    assert logged(tmp_path) == [-1, 3, 6]


def test_the_share_of_publishing_and_comparing_is_that_of_all_steps(
    report: Report, tmp_path: Path
) -> None:
    for number in range(1, 5):
        step(report, number)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["sync_share"] for line in lines] == [0.375, 0.25, 0.875 / 3, 0.25]
    assert report.summary()["sync_share"] == 0.25


def test_the_share_of_waiting_begins_with_the_second_step(report: Report, tmp_path: Path) -> None:
    """The first one waits until engines have started."""
    for number, waited in enumerate((100.0, 0.5, 0.0, 0.1), 1):
        numbers = {"loss": 1.0, "seconds_step": waited + 1, "seconds_wait_for_batch": waited}
        told = report.write_step(number, numbers | {"seconds_publish": 0, "seconds_compare": 0})
        assert told["idle_share"] == report.idle_share
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    shares = [json.loads(line)["idle_share"] for line in lines]
    assert shares == pytest.approx([0, 0.5 / 1.5, 0.5 / 2.5, 0.6 / 3.6])
    assert report.summary()["idle_share"] == shares[-1]


def test_steps_that_are_not_logged_count(report: Report) -> None:
    step(report, 2)
    report.reached(3)
    assert report.summary()["learner_steps"] == 3


def test_a_full_disk_keeps_the_summary_before(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.write()

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    report.write("failed")
    assert json.loads((tmp_path / "learner.json").read_text())["failure"] is None
