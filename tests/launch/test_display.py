"""What people see: the panel, the plain lines, the picture, the result."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from launch import panel, picture, result
from launch.history import HeldOut, History, evaluations, smooth
from protocol.run.metrics import Metrics


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with ten steps of numbers and both evaluations."""
    with (
        Metrics(tmp_path, "actor", tensorboard=False) as actor,
        Metrics(tmp_path, "learner", tensorboard=False) as learner,
    ):
        for step in range(10):
            actor.log(
                None,
                adherence=step / 10,
                adherence_half=0.05,
                adherence_edits=27 * step,
                trajectories=4 * step,
                weight_version=step,
            )
            learner.log(step, loss=1.0 - step / 10, version=step)
    (tmp_path / "evaluation").mkdir()
    for name, value in (("before", 0.3), ("after", 0.9)):
        (tmp_path / "evaluation" / f"{name}.json").write_text(
            json.dumps(
                {
                    "adherence_after_edit": value,
                    "adherence_after_edit_half": 0.1,
                    "edits_judged": 27,
                    "adherence_static": 0.95,
                }
            )
        )
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "actor.log").write_text("loading\rloading the engine\n\n")
    return tmp_path


def shown(run_dir, state):
    history = History(run_dir)
    history.update()
    out = io.StringIO()
    console = Console(width=120, file=out)
    console.print(panel.draw(run_dir, history, state, 65.0, 20))
    return out.getvalue()


def test_the_panel_shows_numbers_curves_and_ends(run_dir):
    text = shown(run_dir, {"actor": "running", "learner": "was killed by SIGKILL"})
    assert "1:05" in text
    sure = "± 0.05 (243 edits)"
    assert f"weights 9, 36 trajectories, adherence after edit 0.90 {sure}" in text
    assert f" 0.900 {sure}" in text
    assert "was killed by SIGKILL" in text
    assert "▁" in text


def test_before_there_are_numbers_the_panel_shows_the_log(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    text = shown(run_dir, {"actor": "running", "learner": "running"})
    assert "loading the engine" in text
    assert "starting" in text


def test_plain_lines_come_at_intervals_and_when_something_changes(run_dir):
    out = io.StringIO()
    lines = panel.PlainLines(run_dir, 20, out, every=10)
    running = {"actor": "running", "learner": "running"}
    for seconds in (0.0, 1.0, 9.0, 11.0):
        lines.update(running, seconds)
    lines.update({**running, "learner": "exited with code 0"}, 12.0)
    said = out.getvalue().splitlines()
    assert len(said) == 3
    assert said[0].startswith("0:00  actor running | learner running | actor: weights 9")
    assert said[1].startswith("0:11  actor: weights 9")
    assert "learner: step 9/20, loss 0.100" in said[1]
    assert said[2].startswith("0:12  learner exited with code 0")


def test_spark_and_clock():
    assert panel.spark([]) == ""
    assert panel.spark([1.0]) == "▁"
    assert panel.spark([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(panel.spark([float(i) for i in range(999)], width=40)) == 40
    assert panel.spark([float(i) for i in range(999)])[-1] == "█"
    assert [panel.clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_smoothing_starts_at_the_first_value():
    assert smooth([1.0, 0.0], 0.8) == [1.0, 0.8]


def test_the_picture_is_drawn_from_the_run_folder_alone(run_dir):
    pytest.importorskip("matplotlib")
    assert picture.draw(run_dir) == run_dir / "adherence.png"
    assert (run_dir / "adherence.png").read_bytes().startswith(b"\x89PNG")


def test_without_numbers_there_is_no_picture(tmp_path):
    assert picture.draw(tmp_path) is None


def test_the_result_merges_both_sides(run_dir):
    (run_dir / "actor.json").write_text(
        '{"edits": 7, "weight_syncs": 5, "audit_mismatches": 0, "reused_tokens": 64}'
    )
    (run_dir / "learner.json").write_text('{"learner_steps": 9, "audit_mismatches": 2}')
    merged = result.collect(run_dir, "finished", 12.34)
    result.write(run_dir, merged)
    assert json.loads((run_dir / "result.json").read_text()) == merged
    assert merged["run_dir"] == str(run_dir)
    assert (merged["edits"], merged["learner_steps"], merged["audit_mismatches"]) == (7, 9, 2)
    assert merged["adherence_after_edit_before"] == 0.3
    assert merged["adherence_after_edit_after"] == 0.9
    assert merged["logprob_gap"] is None
    assert merged["seconds"] == 12.3


def test_the_result_says_what_each_side_waited_and_took(run_dir):
    for name, waited, generated, memory in (("actor", 1.0, 3.0, 900.5), ("actor-1", 0.0, 4.0, 7.0)):
        (run_dir / f"{name}.json").write_text(
            json.dumps(
                {
                    "seconds_wait_for_credit": waited,
                    "seconds_generate": generated,
                    "peak_memory_mb": memory,
                }
            )
        )
    (run_dir / "learner.json").write_text('{"idle_share": 0.25, "peak_memory_mb": 800.0}')
    merged = result.collect(run_dir, "finished", 1.0)
    assert (merged["idle_share_learner"], merged["idle_share_actor"]) == (0.25, 1 / 8)
    assert (merged["peak_memory_mb_learner"], merged["peak_memory_mb_actor"]) == (800.0, 900.5)
    assert merged["adherence_static_after"] == 0.95


@pytest.mark.parametrize(
    ("after", "half", "told"), [(0.9, 0.1, True), (0.43, 0.1, False), (0.9, None, False)]
)
def test_a_run_with_too_little_evidence_says_so(run_dir, after, half, told):
    """The change of the means against the interval of their difference: 0.1414 here."""
    path = run_dir / "evaluation" / "after.json"
    path.write_text(
        json.dumps(
            {
                "adherence_after_edit": after,
                "adherence_after_edit_half": half,
                "edits_judged": 31,
            }
        )
    )
    line = result.evidence(run_dir)
    assert line.startswith("adherence after edit: 0.30 ± 0.10 (27 edits) before, ")
    assert "(31 edits) after" in line
    assert ("too little" in line) != told
    path.unlink()
    assert result.evidence(run_dir) == ""


def test_the_panel_shows_how_sure_the_last_evaluation_is(run_dir):
    with Metrics(run_dir, "actor", tensorboard=False) as actor:
        actor.log(
            4,
            evaluation_adherence_after_edit=0.5,
            evaluation_adherence_after_edit_half=0.06,
            evaluation_edits_judged=120,
            evaluation_adherence_static=0.9,
            evaluation_adherence_static_half=0.02,
            evaluation_passes_static=300,
        )
    text = shown(run_dir, {"actor": "running", "learner": "running"})
    assert "after edit 0.50 ± 0.06 (120 edits), static 0.90 ± 0.02 (300 passes)" in text


def test_a_torn_file_counts_as_missing(tmp_path):
    (tmp_path / "actor.json").write_text('{"edits": ')
    assert result.collect(tmp_path, "failed", 1.0)["edits"] is None


def test_a_file_that_cannot_be_read_is_named_in_the_result(run_dir, monkeypatch):
    read = Path.read_bytes

    def broken(self):
        if self.name == "learner.json":
            raise OSError(errno.EIO, "Input/output error")
        return read(self)

    (run_dir / "actor.json").write_text('{"edits": 7}')
    assert "unread" not in result.collect(run_dir, "finished", 1.0)
    monkeypatch.setattr(Path, "read_bytes", broken)
    merged = result.collect(run_dir, "finished", 1.0)
    assert merged["unread"] == {"learner.json": "Input/output error"}
    assert (merged["edits"], merged["learner_steps"]) == (7, None)


def test_what_was_measured_on_held_out_tasks_says_how_sure_it_is(run_dir):
    assert str(evaluations(run_dir)["after"]) == "0.90 ± 0.10 (27 edits)"
    assert str(HeldOut(0.5, None, None)) == "0.50"
