"""The account of a run, from events in every order that crashes can make."""

from __future__ import annotations

from pathlib import Path

from protocol.run.trace import FILE, Traces, account


def test_what_was_undone_by_a_crash_did_not_happen(tmp_path: Path) -> None:
    actor, learner = Traces(tmp_path, "actor"), Traces(tmp_path, "learner")
    for name in "abcdefg":
        actor.write("sent", trace=name)
    learner.write("trained", step=1, traces=["a", "b"])
    learner.write("trained", step=2, traces=["c", "d"])
    learner.write("dropped", cause="waited_stale", traces=["e"])
    learner.write("resumed", step=1)
    learner.write("trained", step=2, traces=["c", "e"])
    learner.write("dropped", cause="empty", traces=["f"])
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"torn\n')
    found = account(tmp_path)
    assert found.sent == set("abcdefg")
    assert found.trained == {"a": 1, "b": 1, "c": 2, "e": 2}
    assert found.twice == []
    assert found.causes() == {"empty": 1}
    assert found.open == {"d", "g"}
    actor.close()
    actor.write("sent", trace="late")
    assert "late" not in account(tmp_path).sent


def test_twice_is_seen(tmp_path: Path) -> None:
    learner = Traces(tmp_path, "learner")
    learner.write("trained", step=1, traces=["a"])
    learner.write("trained", step=2, traces=["a"])
    assert account(tmp_path).twice == ["a"]
    learner.write("dropped", cause="arrived_stale", traces=["a"])
    assert account(tmp_path).twice == ["a", "a"], "it should not have come again"
