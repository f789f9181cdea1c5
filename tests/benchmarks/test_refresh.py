"""`dynatok bench refresh`: evaluations pooled edit by edit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.refresh import main


def evaluation(folder: Path, **policies: tuple[float, int, float]) -> Path:
    """A run folder: policy -> adherence, edits judged, tokens computed again per edit."""

    def seed(mean: float, edits: int, again: float) -> dict[str, Any]:
        return {
            "adherence_after_edit": mean,
            "adherence_after_edit_half": 0.1,
            "edits_judged": edits,
            "recomputed_per_edit": again,
            "computed_per_token": 2.0,
        }

    report = {
        name.replace("_", ":"): {"by_seed": {"0": {"all": seed(*one)}}}
        for name, one in policies.items()
    }
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({**report, "gold": {}}))
    config = {"count": 100, "split": "heldout", "tasks": "t", "sampling": {"temperature": 0.8}}
    (folder / "eval.json").write_text(json.dumps(config))
    return folder


def test_the_smallest_that_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = evaluation(tmp_path / "a", exact=(1.0, 100, 60.0), sticky=(0.9, 100, 20.0))
    two = evaluation(tmp_path / "b", exact=(0.8, 300, 60.0), sticky=(0.6, 300, 20.0))
    other = evaluation(
        tmp_path / "c", exact=(0.5, 10, 60.0), refresh_32=(0.48, 10, 40.0), sticky=(0.1, 10, 20.0)
    )
    page = tmp_path / "refresh.md"
    code = main([f"m={one}", f"m={two}", f"n={other}", "--page", str(page)])
    assert code == 0
    assert json.loads(capsys.readouterr().out) == {"m": "exact", "n": "refresh:32"}
    text = page.read_text()
    # (100 * .9 + 300 * .6) / 400 = .675; sqrt((100 * .1)^2 + (300 * .1)^2) / 400 = .079
    assert "| sticky | 400 | 0.675 ± 0.079 | 0.794 | 20.0 | 2.00 |" in text
    assert "2 seeds. The least that comes to 0.95 of exact: `exact`" in text
    assert "1 seed. The least that comes to 0.95 of exact: `refresh:32`" in text


def test_what_is_no_evaluation_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("no-name", f"m={tmp_path}"):
        with pytest.raises(SystemExit):
            main([wrong])
        assert "write MODEL=RUN" in capsys.readouterr().err
    only = evaluation(tmp_path / "a", sticky=(0.9, 100, 20.0))
    with pytest.raises(SystemExit):
        main([f"m={only}"])
    assert "m was not evaluated with reuse exact" in capsys.readouterr().err
