"""Numbers are served where Prometheus finds them."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from protocol.run.exporter import Exporter, open_exporter

pytest.importorskip("prometheus_client")


def scrape(address: str) -> list[str]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        return [line for line in answer.read().decode().splitlines() if line[0] != "#"]


def test_the_last_numbers_are_served(tmp_path: Path) -> None:
    exporter = Exporter(tmp_path, "run-1", "actor")
    try:
        exporter.set({"tokens": 5, "gap.mean": 0.5, "text": "x", "lost": float("nan")})
        exporter.set({"tokens": 7})
        (target,) = json.loads((tmp_path / "prometheus" / "actor.json").read_text())
        assert target["targets"] == [exporter.address]
        assert scrape(exporter.address) == [
            'dynatok_gap_mean{process="actor",run="run-1"} 0.5',
            'dynatok_tokens{process="actor",run="run-1"} 7.0',
        ]
        port = int(exporter.address.rpartition(":")[2])
        with pytest.raises(ValueError, match="prometheus_port"):
            Exporter(tmp_path, "run-1", "learner", port)
    finally:
        exporter.close()
    assert not (tmp_path / "prometheus" / "actor.json").exists()


def test_a_serving_thread_that_died_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exporter = Exporter(tmp_path, "run-1", "actor")
    exporter._server.shutdown()
    exporter._thread.join(5)
    for tokens in (1, 2):
        exporter.set({"tokens": tokens})
    assert capfd.readouterr().err.count("are served no more") == 1
    exporter.close()


def test_minus_one_is_none(tmp_path: Path) -> None:
    assert open_exporter(tmp_path, "run", "actor", -1) is None
