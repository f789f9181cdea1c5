"""Several real actors of one learner, by each transport that leaves the machine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from protocol.run.trace import account
from protocol.weights.folder import versions_in
from protocol.weights.memory import PREFIX, memory_folder, remove_leftovers
from tests.launch.running import launched

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.mark.parametrize("transport", ["zmq", "folder"])
def test_two_actors_feed_every_step_and_follow_the_weights(tmp_path: Path, transport: str) -> None:
    """A step takes sixteen trajectories and an actor's credits are eight: it needs both."""
    remove_leftovers()
    before = set(memory_folder().glob(f"{PREFIX}*"))
    with launched(
        tmp_path,
        *("--actors", "2", "--protocol.credits", "8", "--actor.sessions", "8"),
        *("--learner.weight_transport", transport, "--learner.publish_every", "1"),
        *("--learner.training.max_steps", "6", "--learner.trajectories_per_step", "16"),
        *("--actor.evaluation.enabled", "false"),
    ) as process:
        out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert result["learner_steps"] == 6
    assert result["audit_mismatches"] == 0
    assert 0 < result["logprob_gap"] < 1e-3
    run = Path(result["run_dir"])
    found = account(run)
    assert found.twice == []
    trained = Counter(trace.partition(".")[0] for trace in found.trained)
    assert trained.keys() == {"actor", "actor-1"}
    assert sum(trained.values()) == 6 * 16
    learner = json.loads((run / "learner.json").read_text())
    assert learner["weights_rejected"] == 0
    for name in ("actor", "actor-1"):
        actor = json.loads((run / f"{name}.json").read_text())
        assert actor["weight_version"] == learner["weights_published"]
        assert actor["trajectories"] >= trained[name]
    if transport == "folder":
        assert 2 <= len(versions_in(run / "weights")) <= 3
    assert set(memory_folder().glob(f"{PREFIX}*")) <= before, "nothing is left in memory"
