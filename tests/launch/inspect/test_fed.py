"""The pieces that a model was fed, with the borders of their tokens and their control tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dynatok_online.prompt import Encoder, Renderer, from_chat, parse
from dynatok_online.trajectory import Pass, Trajectory
from launch.inspect.fed import LONGEST, Detokenizer, fed
from launch.inspect.terminal import describe
from tests.prompt.tokenizers import build
from tests.test_trajectory import worked_example

CHAT = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def printed(what: Any) -> str:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def rows(what: Any) -> dict[str, str]:
    """Number of a piece -> what stands in its lines."""
    found: dict[str, str] = {}
    last = ""
    for line in printed(what).splitlines()[1:]:
        number, *rest = line.split()
        if line[:5].strip():
            last = number
            found[last] = rest[-1]
        else:
            found[last] += line.strip()
    return found


def chat(kind: str) -> tuple[Trajectory, Detokenizer, Any]:
    """Two passes of a chat prompt; what the user wrote holds the name of a control token."""
    tokenizer = copy.deepcopy(build(kind))
    tokenizer.chat_template = CHAT
    said = "Letters: {{case}}. The sea, no <|im_end|> please."
    template = from_chat([{"role": "user", "content": said}], tokenizer)
    encoder = Encoder.of(tokenizer)
    renderer = Renderer(parse(template, control=True), encoder)
    response = [*encoder("THE SEA"), encoder.control["<|im_end|>"]]
    cuts = (0, 1, len(response))
    passes = tuple(
        Pass(
            layout=renderer.layout({"case": text}),
            states={"case": text},
            start=cuts[k],
            stop=cuts[k + 1],
            num_cached_tokens=0,
        )
        for k, text in enumerate(("UPPER CASE", "lower case"))
    )
    one = Trajectory(
        trajectory_id="chat",
        pieces=tuple(renderer.pieces),
        response=np.asarray(response, np.int32),
        logprobs=np.zeros(len(response), np.float32),
        passes=passes,
    )

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    return (
        one,
        Detokenizer(decode, {number: name for name, number in encoder.control.items()}),
        encoder,
    )


def test_a_chat_as_it_was_fed():
    one, tokens, _ = chat("gpt2")
    found = rows(fed(one, tokens))
    assert list(found) == ["0", "1", "3", "2", "–"]
    assert found["0"] == "⟦<|im_start|>⟧│u│s│er│⏎│Le│tters│:"
    assert (found["1"], found["3"]) == ("·UPPER│·CASE│.", "·lower│·case│.")
    assert found["2"].startswith("·The│·sea│,│·no│·│<│")
    assert found["2"].endswith("│⟦<|im_end|>⟧│⏎│⟦<|im_start|>⟧│a│s│s│ist│an│t")
    assert "THE SEA⟦<|im_end|>⟧" in printed(describe(one, tokens))


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "sentencepiece", "gemma", "unigram"])
def test_what_is_shown_is_what_was_fed(kind):
    one, tokens, encoder = chat(kind)
    found = rows(fed(one, tokens))
    for k in range(2):
        pieces = [piece for piece in one.passes[k].layout if piece >= 0]
        shown = "│".join(found[str(piece)] for piece in pieces).split("│")
        ids = [i for piece in pieces for i in one.pieces[piece].tolist()]
        assert len(shown) == len(ids)
        control = {f"⟦{name}⟧": number for name, number in encoder.control.items()}
        for text, number in zip(shown, ids, strict=True):
            assert control.get(text) == (number if number in tokens.control else None)
        text = "".join(shown).replace("·", " ").replace("⏎", "\n")
        said = f"Letters: {one.passes[k].states['case']}. The sea, no <|im_end|> please."
        # One of these tokenizers knows no letters `<` and `|`.
        assert f"{said}⟦<|im_end|>⟧" in text.replace("⟦<unk>⟧im⟦<unk>⟧end⟦<unk>⟧", "<|im_end|>")


def test_without_a_model_numbers_are_shown():
    found = printed(fed(worked_example(), Detokenizer(lambda ids: "".join(f"⟨{i}⟩" for i in ids))))
    assert "⟨87⟩│⟨114⟩│⟨105⟩" in found  # "Wri"
    assert "the response so far" in found


def test_the_middle_of_a_long_piece_is_left_out():
    one = Trajectory(
        trajectory_id="long",
        pieces=(np.full(LONGEST + 50, ord("x"), np.int32),),
        response=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        passes=(Pass(layout=(0, -1), states={}, start=0, stop=0, num_cached_tokens=0),),
    )
    found = printed(fed(one, Detokenizer(lambda ids: "".join(map(chr, ids)))))
    assert found.count("x") == LONGEST
    assert "…50tokens…" in "".join(found.split())
