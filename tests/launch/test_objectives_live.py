"""Every objective in the real loop: what needs ghosts, groups, a reference or a scoring, and sums
of what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dynatok_online.objectives.written import KNOWN, objective_of
from tests.launch.running import CONFIG, launched

RUNS: dict[str, list[Any]] = {
    "groups": [
        {"name": "hapo", "times": ["contrast"]},
        {"name": "sstoken", "times": ["importance"], "scale": 0.1},
    ],
    "other groups": ["grpo", {"name": "decoupled", "scale": 0.5}],
    "earlier text": [
        "hindsight",
        *("sft", "dft", "asft", "eksft", "rollout", "reward", "key", "context"),
        {"name": "hinge", "scale": 0.1},
    ],
    "hindsight alone": [{"name": "hindsight", "times": ["reward"]}],
    "hidden inputs": [{"name": "dft", "times": ["masked", "reward"]}],
}
"""What is trained on in one run; a sum where it can be one."""
CI = ("groups", 2)


def test_every_objective_is_among_them() -> None:
    found = set()
    for run in RUNS.values():
        for term in objective_of(run).terms:
            found |= {term.name, *(name for name, _ in term.factors)}
    assert found == set(KNOWN)


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        pytest.param(name, ranks, marks=[] if (name, ranks) == CI else [pytest.mark.slow])
        for name in RUNS
        for ranks in (1, 2)
    ],
)
def test_the_loop_takes_it(tmp_path: Path, name: str, ranks: int) -> None:
    """Groups of several responses to each task are compared by step."""
    config = yaml.safe_load(Path(CONFIG).read_text())
    config["name"] = "objectives"
    config["actor"] |= {"responses_per_task": 4, "evaluation": {"enabled": False}}
    config["learner"] |= {"ranks": ranks, "objective": RUNS[name]}
    config["learner"]["training"]["max_steps"] = 3
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
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
