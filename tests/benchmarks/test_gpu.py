"""The GPU report, on whatever device there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import main


def test_the_report_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(str(tmp_path / "new")) == 0
    text = (tmp_path / "new" / "report.md").read_text()
    assert f"written: {tmp_path}/new/report.md" in capsys.readouterr().out
    for part in ("| Qwen3 | concat | float32 |", "| Mistral | dense | bfloat16 |", "exact_by_pass"):
        assert part in text
