"""How an actor's process ends, on a fake engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actor.config import ActorConfig
from actor.main import run
from protocol.config import ProtocolConfig
from tests.actor.fake import FakeEngine


class Engine(FakeEngine):
    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_wrong_keys_are_said_and_starting_again_is_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine()

    def start(*arguments: Any, **settings: Any) -> Engine:
        return engine

    monkeypatch.setattr("actor.main.VllmEngine.start", start)
    keys = str(tmp_path / "nowhere")
    config = ActorConfig(
        run_dir=str(tmp_path / "run"),
        run_id="t",
        model="tiny",
        protocol=ProtocolConfig(endpoint="tcp://127.0.0.1:9", keys=keys),
        prometheus_port=-1,
    )
    assert run(config) == 2
    assert "nowhere" in capsys.readouterr().err
    assert engine.calls == ["shutdown"]
