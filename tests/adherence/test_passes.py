"""Which text of a response belongs to which pass, and which is judged at all."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from dynatok_online.adherence.outcomes import judge
from dynatok_online.adherence.passes import PassTexts, begins_thinking, thought_end
from dynatok_online.adherence.scoring import score_passes
from dynatok_online.prompt import Encoder, parse
from dynatok_online.requirements import requirement
from dynatok_online.tasks.scripted import scripted_trajectory
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task
from dynatok_online.view.texts import TokenTexts
from dynatok_online.view.verdicts import verdict
from tests.prompt.tokenizers import build

UPPER, LOWER = SlotState("UPPER", "upper"), SlotState("lower", "lower")


@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece"])
def test_a_character_belongs_to_the_pass_of_the_token_that_completes_it(kind: str) -> None:
    """Its bytes are tokens of their own; every place where a pass may end inside it."""
    tokenizer = build(kind)
    text = "one 😀ü two"
    tokens = tokenizer.encode(text)
    cut_inside = 0
    for at in range(1, len(tokens)):
        texts = PassTexts(tokens, [(0, at), (at, len(tokens))], tokenizer.decode)
        parts = texts.parts(0), texts.parts(1)
        assert parts[0]
        assert parts[1]
        (_, first, _), (before, second, _) = parts[0], parts[1]
        assert before == first
        assert first + second == texts.text
        assert "\ufffd" not in first + second
        cut_inside += "\ufffd" in tokenizer.decode(tokens[:at])
        shown = TokenTexts(tokenizer.decode)
        shown.extend(tokens)
        assert shown.text(0, at) == first, "the page says the same"
    assert cut_inside >= 2


def test_scores_of_a_cut_character_count_once() -> None:
    tokenizer = build("gpt2")
    tokens = tokenizer.encode("É É é é")
    # After "É " and the first byte of the second É.
    at = next(i for i in range(3, 9) if tokenizer.decode(tokens[:i]).endswith("\ufffd"))
    bounds = [(0, at), (at, len(tokens))]
    texts = PassTexts(tokens, bounds, tokenizer.decode)
    first, second = score_passes(texts, [{"s": UPPER}, {"s": LOWER}])
    assert first == {"s": 1.0}
    assert second == {"s": 2 / 3}


def test_latency_is_not_shifted_by_a_cut_character() -> None:
    tokenizer = build("gpt2")
    encoder = Encoder.of(tokenizer)
    tokens = encoder("é é. é IS. É")
    task = Task("t", "{{s}}: ", {"s": UPPER}, max_tokens=99)
    (one,) = judge(task, scripted_trajectory(task, tokens, encoder), tokenizer.decode)
    assert one.latency is not None
    assert tokenizer.decode(tokens[: one.latency]).endswith(". \ufffd")
    assert tokenizer.decode(tokens[: one.latency + 1]).endswith(". É"), "completed by this token"


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>\nHM\n</think>\n\nowls", False, "owls"),
        ("HM </think> owls", True, "owls"),
        ("HM </think>\nowls", False, "owls"),
        ("\n<think> HM", False, ""),
        ("HM", True, ""),
        ("owls <think>", False, "owls <think>"),
        ("owls", False, "owls"),
    ],
)
def test_where_the_answer_begins(text: str, thinking: bool, answer: str) -> None:
    assert text[thought_end(text, thinking) :] == answer


def test_thoughts_are_not_judged_in_any_place_that_judges() -> None:
    text = "<think>ONE two</think>\n\nthree FOUR five"
    response = [ord(c) for c in text]
    cuts = [0, 10, 15, text.index("FOUR"), len(text)]
    bounds = list(pairwise(cuts))
    states = [{"s": LOWER, "n": SlotState("", "max_words:3")}] * 4

    def decode(ids: list[int]) -> str:
        return "".join(map(chr, ids))

    scores = score_passes(PassTexts(response, bounds, decode), states)  # type: ignore[arg-type]
    assert scores == [{}, {}, {"s": 1.0, "n": 1.0}, {"s": 0.5, "n": 1.0}]
    shown = TokenTexts(decode)  # type: ignore[arg-type]
    shown.extend(response)
    told = [verdict(shown, bounds, k, states[k]) for k in range(4)]
    assert [one["scores"] for one in told] == scores
    (word, *_), *_ = [one["units"] for one in told if one["units"]]
    assert text[word[1] : word[2] + 1] == "three"


def test_a_thought_may_begin_in_the_prompt() -> None:
    opened = parse("<|im_start|>assistant\n<think>\n{{response}}", control=True)
    assert begins_thinking(opened)
    assert not begins_thinking(parse("<think>\n\n</think>\n\n{{response}}", control=True))
    assert not begins_thinking(parse("say <think> {{response}}"))
    task = Task("t", "<think>{{s}}", {"s": LOWER}, control_tokens=True, max_tokens=99)
    task = msgspec.structs.replace(task, edits=(ScheduledEdit(3, "s", UPPER),))

    def encode(text: str) -> list[int]:
        return [ord(c) for c in text]

    one = scripted_trajectory(task, encode("never ends"), encode)
    assert judge(task, one, lambda ids: "".join(map(chr, ids))) == []
    assert requirement("upper").verify("never").score == 0.0
