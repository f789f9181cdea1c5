"""Model names that need no path."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynatok_online import tiny
from dynatok_online.models import cache_path, resolve


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert resolve("tiny") == str(tiny.model_path()) == tiny.resolve("tiny")
    assert resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    with pytest.raises(ValueError, match="run: dynatok model smollm2"):
        resolve("smollm2")
    folder = cache_path("smollm2")
    assert folder == tmp_path / "dynatok" / "models" / "smollm2"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="not on this machine"):  # a folder without a model
        resolve("smollm2")
    (folder / "config.json").write_text("{}")
    assert resolve("smollm2") == str(folder)


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert str(cache_path("smollm2")) == "/home/me/.cache/dynatok/models/smollm2"
