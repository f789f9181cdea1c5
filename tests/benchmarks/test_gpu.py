"""The GPU report, on whatever device there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks._edited_response import edited_response
from benchmarks._gpu_exactness import REUSED, against_truncated
from benchmarks._gpu_report import Report, short
from benchmarks._gpu_shapes import SMALL, make
from dynatok_online.spans.audit import audit
from launch.cli import main as dynatok


@pytest.mark.engine
def test_a_part_writes_its_lines(tmp_path: Path) -> None:
    assert gpu.main([str(tmp_path), "--part", "exactness"]) == 0
    text = (tmp_path / "report.md").read_text()
    for line in ("| Qwen3 | concat | float32 |", "| Mistral | dense | bfloat16 |"):
        assert line in text
    assert "flash_attention" in text
    assert text.count("| yes |") == 2
    for reuse in REUSED:
        assert f"| {reuse} | concat | float32 |" in text


@pytest.mark.engine
def test_packing_is_a_part(tmp_path: Path) -> None:
    assert gpu.main([str(tmp_path), "--part", "pack"]) == 0
    assert "exact_by_pass" in (tmp_path / "report.md").read_text()


def test_a_wrong_attention_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynatok_online.attention.layout import Layout

    seen = Layout.__init__

    def blind(self: Layout, *args: object, **kwargs: object) -> None:
        seen(self, *args, **kwargs)  # type: ignore[arg-type]
        if len(self.bounds) > 3:
            self.visible = self.visible.copy()
            self.visible[-1, 0] = False

    monkeypatch.setattr(Layout, "__init__", blind)
    assert not against_truncated(Report(tmp_path / "report.md"), "cpu")
    assert "| NO |" in (tmp_path / "report.md").read_text()


def test_a_part_that_hangs_or_dies_loses_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts are other programs here: what they do does not matter to who calls them."""
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *pack*) exit 9;; *flex*) exec sleep 60;; esac\n'
        'echo "| found |" >> "$3/report.md"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0)
    monkeypatch.setitem(gpu.PARTS, "flex", (1, "hangs"))
    assert dynatok(["bench", "gpu", str(tmp_path), "--parts", "pack", "flex", "step"]) == 1
    text = (tmp_path / "report.md").read_text()
    assert "| found |" in text
    assert "DIED (9)" in text
    assert "STOPPED after 1 s" in text
    assert "| well, " in text
    assert "written:" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["exact", *REUSED])
def test_edited_responses_are_what_an_engine_could_have_done(policy: str) -> None:
    one = edited_response(policy, 20, 4, 60, 3, 100)
    assert audit(one) == []
    moved = [shift for done in one.passes for _, shift in done.moved_reuse()]
    assert (set(moved) == {0}) == (policy != "turned")
    last = one.passes[-1]
    kept = {"exact": 20, "sticky": 20 + 39, "refresh:16": 20 + 24, "turned": 20 + 39}
    assert last.num_cached_tokens == kept[policy]


def test_a_step_keeps_its_activations_where_it_is_told_to() -> None:
    for checkpointing in (True, False):
        model = make(SMALL, "cpu", torch.float32, checkpointing=checkpointing)
        assert model.is_gradient_checkpointing == checkpointing


def test_what_went_wrong_fits_a_cell() -> None:
    assert short(RuntimeError("a | b\nc")) == "RuntimeError: a / b"
    assert short(ValueError()) == "ValueError: "
