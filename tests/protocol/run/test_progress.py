"""One progress bar, on stderr, that says how far it is."""

from __future__ import annotations

import pytest

from protocol.run.progress import progress_bar


def test_it_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("collect", 300, done=100, more="the engine is starting") as bar:
        bar.move(199, "7 edits")
        bar.advance()
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("collect ")
    assert "200/300" in last
    assert last.rstrip().endswith("7 edits")


def test_a_rank_that_is_not_the_first_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("train", 3, shown=False) as bar:
        bar.move(1, "loss 0.1")
        bar.name("other")
    assert capsys.readouterr() == ("", "")
