"""An earlier evaluation's responses measured again, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actor.offline import eval as evaluation
from actor.offline.alone import load_tasks
from actor.offline.config import EvalConfig
from actor.offline.eval_stored import samples_file
from actor.tokenizer import load_tokenizer
from dynatok_online import tiny
from dynatok_online.data.storage import write_trajectories
from dynatok_online.tasks.scripted import scripted_trajectory

ROW = {
    "prompt": "Letters: {{case}}\nText: ",
    "slots": {"case": ["upper", "lower"]},
    "edits": [{"at": 17, "slot": "case", "to": "lower"}],
}
TEXT = "THE SEA IS WIDE. the hill is high. The end."


def settings(tmp_path: Path, **changes: Any) -> EvalConfig:
    tasks = tmp_path / "tasks.jsonl"
    rows = [ROW | {"task_id": name, "split": "heldout"} for name in ("a", "b")]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalConfig(
        tasks=str(tasks),
        count=2,
        seeds=(4,),
        dir=str(tmp_path / "runs"),
        samples=str(tmp_path / "earlier"),
        **changes,
    )


def store(config: EvalConfig, policy: str = "exact", task: str = "") -> None:
    encode, _ = load_tokenizer(tiny.resolve("tiny"))
    drawn = load_tasks(config, config.split, 4)
    found = []
    for one in (next(drawn), next(drawn)):
        written = scripted_trajectory(one, encode(TEXT), encode, reuse=policy)
        info = {"task": task or one.task_id}
        found.append(msgspec.structs.replace(written, trajectory_id=one.task_id, info=info))
    write_trajectories(samples_file(Path(config.samples), policy, 4), found)


def test_the_measures_are_those_of_the_stored_responses(tmp_path: Path, capsys: Any) -> None:
    config = settings(tmp_path, base_model="tiny", reuse=("exact", "sticky"), stale=True)
    store(config)
    store(config, "sticky")
    assert evaluation.run(config) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["exact"]["adherence_static"] == 1.0
    assert last["exact"]["adherence_after_edit"] == pytest.approx(5 / 6)  # `The`
    assert last["exact"]["edits_judged"] == 2
    assert last["exact"]["drift"] == pytest.approx(0, abs=1e-9)
    assert last["sticky"]["nll_under_base"] > 0
    assert "stale_share" in last["sticky"]
    assert "computed_per_token" not in last["exact"]
    again = Path(last["run_dir"])
    assert samples_file(again, "exact", 4).exists()
    assert "| NLL per token under the base model | " in (again / "evaluation.md").read_text()


def test_what_does_not_belong_to_these_settings_is_said(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(ValueError, match=r"exact-4\.parquet: no such file"):
        evaluation.run(config)
    store(config, task="another")
    with pytest.raises(ValueError, match="answers the task 'another', which these settings do not"):
        evaluation.run(config)
    assert not (tmp_path / "runs").exists()
