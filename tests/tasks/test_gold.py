"""Offline data: trajectories as they are, gold responses as passes, and what is neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynatok_online.tasks.gold import load_training_data
from dynatok_online.trajectory import Trajectory, to_row
from tests.simulate import simulate

GOLD = {
    "prompt": "In {{case}}: ",
    "slots": {"case": [{"text": "UPPER"}, {"text": "lower"}]},
    "edits": [{"at": 4, "slot": "case", "to": {"text": "lower"}}],
    "response": "OWLSowls",
}


def load(tmp_path: Path, *rows: Any, **more: Any) -> list[Trajectory]:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return load_training_data(
        path, encode=lambda text: [ord(c) for c in text], chat=lambda: lambda messages: "", **more
    )


def test_trajectories_and_gold_responses(tmp_path: Path) -> None:
    recorded = simulate(np.random.default_rng(0), name="recorded")
    first, gold = load(tmp_path, to_row(recorded), GOLD, reuse="sticky", block_size=2)
    assert to_row(first) == to_row(recorded)
    assert [(one.start, one.stop, one.states["case"]) for one in gold.passes] == [
        (0, 4, "UPPER"),
        (4, 8, "lower"),
    ]
    assert (gold.policy, gold.block_size) == ("sticky", 2)
    assert "".join(map(chr, gold.response)) == "OWLSowls"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "line 2: is neither a trajectory"),
        ({"trajectory_id": "x", "pieces": [], "response": []}, "trajectory x has no 'passes'"),
        (GOLD | {"response": ""}, "line 2: the gold response is empty"),
        (GOLD | {"slots": {}}, "line 2: slot {{case}} stands in the text"),
        (
            {**GOLD, "edits": [], "schedule": {"rule": "after_sentences"}},
            "needs edits at known tokens",
        ),
    ],
)
def test_what_cannot_be_used_is_named_or_left_out(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, GOLD, row)
    assert message in str(error.value)
    bad: list[str] = []
    assert len(load(tmp_path, GOLD, row, GOLD, on_bad=bad.append)) == 2
    assert len(bad) == 1
    assert message in bad[0]
