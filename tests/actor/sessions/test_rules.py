"""Edits that the text gives rise to, on an engine that writes a given text."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actor.config import SamplingConfig
from actor.sessions.rules import RuleWatcher, open_session
from actor.sessions.serving import Serving
from dynatok_online.tasks.task import EditRule, SlotState, Task
from dynatok_online.trajectory import Trajectory
from tests.actor.fake import FakeEngine
from tests.actor.sessions.test_live_session import decode, encode

UPPER, LOWER = SlotState("UPPER", "upper"), SlotState("lower", "lower")
PROMPT = "Write {{case}}: "


def write(text: str, *rules: EditRule) -> Trajectory:
    engine = FakeEngine()
    length = len(PROMPT.replace("{{case}}", UPPER.text))
    engine.next_token = lambda whole: ord(text[len(whole) - length])
    serving = Serving(engine, "run")
    serving.open(0, serving.new_salt(0))
    task = Task("t", PROMPT, {"case": UPPER}, max_tokens=len(text), rules=rules)
    session = open_session(task, serving, encode=encode, decode=decode, sampling=SamplingConfig())
    one = asyncio.run(session.run()).trajectory
    assert decode(one.response.tolist()) == text
    return one


def test_after_so_many_sentences() -> None:
    text = "WE SAW OWLS. THEY SLEPT. ALL NIGHT. WE WENT HOME. IT WAS LATE. VERY LATE."
    one = write(text, *(EditRule("case", state, count=2) for state in (LOWER, UPPER)))
    first, second = one.edits
    assert text.index("ALL") <= first.effective_at <= text.index("ALL") + 4
    # Two whole sentences after the first edit: what was left of the third counts as one.
    assert text.index("IT") - 2 <= second.effective_at <= text.index("IT") + 4
    assert (first.source, first.text, second.text) == ("schedule", "lower", "UPPER")


def test_when_the_verifier_is_satisfied() -> None:
    text = "we saw OWLS THERE IN trees BY THE RIVER at night"
    one = write(text, EditRule("case", LOWER, when="satisfied", count=3))
    (edit,) = one.edits
    assert edit.source == "verifier"
    assert text.index("IN") + 2 < edit.effective_at <= text.index("IN") + 8


@pytest.mark.parametrize("when", ["after_sentences", "satisfied"])
def test_a_reason_that_never_comes_edits_nothing(when: str) -> None:
    rule = EditRule("case", LOWER, when, 9)  # type: ignore[arg-type]
    assert write("we saw owls. then none", rule).edits == ()


@pytest.mark.parametrize("when", ["after_sentences", "satisfied"])
def test_reading_along_costs_what_the_text_is_long(when: str) -> None:
    decoded = 0

    def counting(token_ids: Any) -> str:
        nonlocal decoded
        decoded += len(token_ids)
        return decode(token_ids)

    rule = EditRule("case", LOWER, when, 10_000)  # type: ignore[arg-type]
    watcher = RuleWatcher([rule], counting)
    watcher.session = cast(Any, SimpleNamespace(states={"case": UPPER}))
    text = "we saw OWLS. " * 200
    for token in encode(text):
        watcher.read([token])
    assert watcher._text == text
    assert decoded < 20 * len(text)


def test_a_text_without_blanks_is_judged_too() -> None:
    text = "WE-SAW-OWLS-THERE-" * 6
    (edit,) = write(text, EditRule("case", LOWER, when="satisfied", count=3)).edits
    assert edit.effective_at < 60


def test_rules_wait_for_the_answer_and_do_not_read_thoughts() -> None:
    thought = "<think>ONE. TWO. THREE. FOUR.</think>\n\n"
    text = thought + "WE SAW OWLS. THEY SLEPT. ALL NIGHT. WE WENT HOME."
    (edit,) = write(text, EditRule("case", LOWER, count=2)).edits
    assert text.index("ALL") <= edit.effective_at <= text.index("ALL") + 4
