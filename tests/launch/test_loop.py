"""The real loop: real vLLM, real DeepSpeed, real sockets, started and stopped as a person does."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launch.running import gone, launched, process_of, wait_for_step

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RESULT_FIELDS = {
    "run_dir",
    "learner_steps",
    "weight_syncs",
    "trajectories",
    "edits",
    "generated_tokens",
    "computed_tokens",
    "reused_tokens",
    "audit_mismatches",
    "logprob_gap",
    "policy_lag_max",
    "adherence_after_edit_before",
    "adherence_after_edit_after",
    "seconds",
}


def test_actor_and_learner_train_for_a_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a long path with blanks and umlauts, without a home, in the C locale."""
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("LC_ALL", "C")
    with launched(
        tmp_path / "Läufe mit Leerzeichen" / ("x" * 100),
        *("--learner.training.max_steps", "6", "--learner.publish_every", "1"),
        *("--actor.evaluation.tasks", "6"),
    ) as process:
        out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert result.keys() >= RESULT_FIELDS
    assert result["learner_steps"] == 6
    assert result["weight_syncs"] >= 3
    assert result["trajectories"] >= 6 * 16
    assert result["audit_mismatches"] == 0
    assert 0 < result["logprob_gap"] < 1e-3
    assert result["reused_tokens"] > 0
    assert result["computed_tokens"] > result["generated_tokens"] > 0
    for name in ("before", "after"):
        assert 0 <= result[f"adherence_after_edit_{name}"] <= 1

    run = Path(result["run_dir"])
    assert json.loads((run / "result.json").read_text()) == result
    for name in ("config.yaml", "actor.yaml", "learner.yaml", "adherence.png", "model/config.json"):
        assert (run / name).stat().st_size > 0, name
    for process_name in ("actor", "learner"):
        assert list((run / "tensorboard" / process_name).glob("events.*"))
        assert (run / "logs" / f"{process_name}.log").stat().st_size > 0


def test_ctrl_c_and_a_killed_learner_leave_nothing_behind(tmp_path: Path) -> None:
    quick = ("--actor.evaluation.enabled", "false", "--restarts", "0")
    with launched(tmp_path / "ctrl-c", *quick) as process:
        run = wait_for_step(tmp_path / "ctrl-c", process, 1)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert not gone(family, 10)
        process.wait(timeout=20)
    assert process.returncode != 0
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted"

    with launched(tmp_path / "killed", *quick) as process:
        run = wait_for_step(tmp_path / "killed", process, 1)
        family = psutil.Process(process.pid).children(recursive=True)
        process_of(process, run, "learner").send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
        assert not gone(family, 5)
    assert process.returncode not in (0, None)
    assert "learner" in errors
    assert str(run / "logs" / "learner.log") in errors
