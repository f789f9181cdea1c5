"""The real loop: real vLLM, real DeepSpeed, real sockets, started and stopped as a person does."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CONFIG = "launch/configs/tiny.yaml"
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


@contextlib.contextmanager
def launched(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`dynatok launch` in a process of its own; ended with everything it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "launch", CONFIG, "--dir", str(folder), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family: list[psutil.Process] = []
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid)]
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += psutil.Process(process.pid).children(recursive=True)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.communicate(timeout=30)


def wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> Path:
    """The run folder, once the learner has made `step` steps."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        for metrics in folder.glob("*/metrics.jsonl"):
            rows = [json.loads(line) for line in metrics.read_text().splitlines()]
            if any(row["process"] == "learner" and (row["step"] or 0) >= step for row in rows):
                return metrics.parent
        time.sleep(0.2)
    raise AssertionError(f"no step {step} within 240 s")


def gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Which of them still run after that long. A zombie is gone."""
    end = time.monotonic() + seconds
    while True:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.1)


def test_actor_and_learner_train_for_a_few_steps(tmp_path: Path) -> None:
    with launched(
        tmp_path,
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
    quick = ("--actor.evaluation.enabled", "false")
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
        (learner,) = [p for p in family if str(run / "learner.yaml") in p.cmdline()]
        learner.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
        assert not gone(family, 5)
    assert process.returncode not in (0, None)
    assert "learner" in errors
    assert str(run / "logs" / "learner.log") in errors
