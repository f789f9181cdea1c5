"""Objectives in the real loop that need something of their own: ghosts, groups, a scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launch.running import launched

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RUN = """
name: objectives
model: tiny
actor:
  responses_per_task: 4
  evaluation: {enabled: false}
learner:
  ranks: 2
  trajectories_per_step: 16
  objective:
    - {name: hapo, times: [contrast]}
    - {name: sstoken, times: [importance], scale: 0.1}
  training: {max_steps: 3}
"""


def test_ghosts_groups_and_whole_trajectories_on_two_ranks(tmp_path: Path) -> None:
    """Several responses to each task, compared by step; what they owe to edits; the best tokens."""
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    with launched(None, str(path), "--dir", str(tmp_path)) as process:
        out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert result["learner_steps"] == 3
    assert result["audit_mismatches"] == 0
    assert 0 < result["logprob_gap"] < 1e-3
    run = Path(result["run_dir"])
    said = (run / "logs" / "learner.log").read_text()
    assert "nothing to learn from" not in said, "groups met in every step"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    norms = [one["grad_norm"] for one in steps if "grad_norm" in one]
    assert len(norms) == 3
    assert min(norms) > 0
