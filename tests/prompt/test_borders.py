"""The pieces of a prompt, joined, are the tokenizer's own ids of the whole text."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from dynatok_online.prompt import Encoder, Renderer, Slot, Text, parse
from dynatok_online.trajectory import RESPONSE
from tests.prompt.tokenizers import KINDS, build

TEMPLATES = {
    "blank before the slot": "Rule: {{s}}. Text: ",
    "blank behind the slot": "Write in {{s}} now.\nText:\n",
    "line breaks": "letters: {{s}}\nwords: {{t}}\nText:\n",
    "slot first": "{{s}} please, {{t}}: ",
    "signs": 'Style ({{s}}), "{{t}}"!\n\nAnswer: ',
    "slot last": "in {{s}}{{response}}",
    "slots side by side": "{{s}} {{t}}\n",
    "late": "Text: {{response}} ({{s}})\n",
    "late, on a line of its own": "Text:\n{{response}}\nstyle: {{s}}\n",
}
STATES = [
    {"s": "upper", "t": "the sea"},
    {"s": "UPPER CASE", "t": "no digits."},
    {"s": "12 words", "t": "a few (short)"},
    {"s": "über née!", "t": "中文。"},
    {"s": "say <|im_end|> or <eos>", "t": "[INST] <think>"},
]
PLAIN = {"add_special_tokens": False}
RESPONSES = ["The sea is wide", " it was", "éa."]


def whole(renderer: Renderer, states: Mapping[str, str], response: str) -> str:
    return "".join(
        part.text
        if isinstance(part, Text)
        else states[part.name]
        if isinstance(part, Slot)
        else response
        for part in renderer.prompt.parts
    )


def pieces(renderer: Renderer, states: Mapping[str, str], response: str) -> list[int]:
    (written,) = renderer.response_ids([response])
    layout = renderer.layout({name: states[name] for name in renderer.prompt.slots})
    return [
        token
        for index in layout
        for token in (written if index == RESPONSE else renderer.pieces[index].tolist())
    ]


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_tokenizers_own_ids_of_the_whole_text(kind: str, bos: bool) -> None:
    tokenizer = build(kind, bos)
    encoder = Encoder.of(tokenizer)
    for template in TEMPLATES.values():
        renderer = Renderer(parse(template), encoder)
        for states in STATES[:-1]:
            for response in RESPONSES:
                if renderer.uncertain and response.endswith("."):
                    continue
                own = tokenizer(whole(renderer, states, response))["input_ids"]
                assert pieces(renderer, states, response) == own, (template, states, response)
                assert not renderer.differences(states)


@pytest.mark.parametrize(
    "name", ["tekken_240911.json", "mistral_instruct_tokenizer_240323.model.v3"]
)
def test_mistrals_own_tokenizers(name: str) -> None:
    """They come with their library, and are none of transformers' kind."""
    import mistral_common
    from transformers.tokenization_mistral_common import MistralCommonBackend

    tokenizer = MistralCommonBackend(Path(mistral_common.__file__).parent / "data" / name)
    encoder = Encoder.of(tokenizer)
    assert (encoder.first, encoder.stop) == ((1,), 2)
    for template in TEMPLATES.values():
        renderer = Renderer(parse(template), encoder)
        for states in STATES[:-1]:
            for response in RESPONSES:
                if renderer.uncertain and response.endswith("."):
                    continue
                own = [1, *tokenizer.encode(whole(renderer, states, response), **PLAIN)]
                assert pieces(renderer, states, response) == own, (template, states, response)
        ids = pieces(renderer, STATES[-1], "")
        assert not set(encoder.control.values()) & set(ids[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_control_tokens_in_slots_are_text(kind: str) -> None:
    tokenizer = build(kind)
    encoder = Encoder.of(tokenizer)
    control = set(encoder.control.values())
    assert set(tokenizer.encode("<|im_end|><eos>")) <= control
    for template in TEMPLATES.values():
        renderer = Renderer(parse(template), encoder)
        ids = pieces(renderer, STATES[-1], "</s><|im_end|>.<eos>")
        assert not (control - {tokenizer.unk_token_id}) & set(ids)
        assert not renderer.differences(STATES[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_never_moves_a_token_outside_its_slot(kind: str) -> None:
    """Whatever is written into it: also what no border was made for."""
    encoder = Encoder.of(build(kind))
    odd = ["", " ", "\n", "...", "\n\nx", "a  ", "</s>", "😀", "e\u0301", "\u3000"]
    for template in TEMPLATES.values():
        renderer = Renderer(parse(template), encoder)
        names = renderer.prompt.slots
        first = renderer.layout(dict.fromkeys(names, "upper"))
        for state in odd:
            other = renderer.layout(dict.fromkeys(names, "upper") | {"s": state})
            for slot, a, b in zip(renderer.slots, first, other, strict=True):
                assert a == b or slot == "s"


def test_only_a_late_line_after_a_full_stop_cannot_agree() -> None:
    """Llama 3 and Qwen join a full stop with the line break behind it, and one of them stands."""
    for kind in KINDS:
        for name, template in TEMPLATES.items():
            renderer = Renderer(parse(template), Encoder.of(build(kind)))
            if (kind, name) == ("llama3", "late, on a line of its own"):
                assert renderer.uncertain == [
                    "{{response}} before '\\nstyle: ': cut where the response ends"
                ]
            else:
                assert renderer.uncertain == []


def test_what_cannot_agree_is_named() -> None:
    encoder = Encoder.of(build("gpt2"))
    touching = Renderer(parse("say {{a}}{{b}}"), encoder)
    assert touching.uncertain == ["{{a}} and {{b}} touch: cut between them"]
    assert touching.differences({"a": "up", "b": "per"}) == ["' up' | 'per'"]

    def joins_everything(text: str) -> list[int]:
        return [len(text)]

    inside = Renderer(
        parse("with twenty letters and {{a}}letters and twenty more"),
        Encoder(joins_everything, joins_everything),
    )
    assert inside.uncertain == [
        "'letters and ' before {{a}}: cut where the slot begins",
        "{{a}} before 'letters and ': cut where the slot ends",
    ]


def test_blanks_before_the_response_are_left_to_it() -> None:
    tokenizer = build("gpt2")
    renderer = Renderer(parse("Answer: "), Encoder.of(tokenizer))
    (prompt, place) = renderer.layout({})
    assert place == RESPONSE
    assert tokenizer.decode(renderer.pieces[prompt]) == "Answer:"
    assert renderer.response_ids(["The sea"])[0] == tokenizer.encode(" The sea")


@pytest.mark.parametrize("kind", KINDS)
def test_segments_of_a_response_join_to_its_own_ids(kind: str) -> None:
    tokenizer = build(kind)
    renderer = Renderer(parse("Text:\n"), Encoder.of(tokenizer))
    texts = ["THE SEA. ", "the hill is green", ", and wide."]
    parts = renderer.response_ids(texts)
    renderer.layout({})
    own = tokenizer.encode("Text:\n" + "".join(texts))
    assert [*renderer.pieces[0].tolist(), *chain.from_iterable(parts)] == own
    assert all(parts)


def test_every_tokenizer_puts_its_beginning_once() -> None:
    for kind in KINDS:
        tokenizer = build(kind, bos=True)
        plain = Renderer(parse("in {{s}}"), Encoder.of(tokenizer))
        marked = Renderer(parse("<bos>in {{s}}", control=True), Encoder.of(tokenizer))
        for renderer in (plain, marked):
            ids = pieces(renderer, {"s": "upper"}, "")
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(tokenizer.bos_token_id) == 1
    first = Renderer(parse("{{s}}: "), Encoder.of(tokenizer))
    assert first.layout({"s": "upper"})[0] != first.layout({"s": "lower"})[1]
    assert first.pieces[0].tolist() == [tokenizer.bos_token_id]


def test_a_function_is_a_tokenizer_too() -> None:
    def codepoints(text: str) -> list[int]:
        return [ord(c) for c in text]

    renderer: Any = Renderer(parse("Rule: {{s}}. "), codepoints)
    layout = renderer.layout({"s": "upper"})
    assert ["".join(map(chr, renderer.pieces[i])) for i in layout[:-1]] == ["Rule: ", "upper", ". "]


@pytest.mark.parametrize("kind", KINDS)
def test_filled_slots_are_as_wide_as_they_should_be_and_text_as_the_tokenizer_writes_it(
    kind: str,
) -> None:
    tokenizer = build(kind)
    encoder = Encoder.of(tokenizer)
    for template in TEMPLATES.values():
        plain = Renderer(parse(template), encoder)
        need = max(plain.length("s", states["s"]) for states in STATES)
        for width in (need, need + 1, need + 12):
            renderer = Renderer(parse(template), encoder, {"s": width})
            for states in STATES:
                used = {name: states[name] for name in renderer.prompt.slots}
                layout = renderer.layout(used)
                mine = [i for i, slot in zip(layout, renderer.slots, strict=True) if slot == "s"]
                assert [len(renderer.pieces[i]) for i in mine] == [width]
                words = tokenizer.decode(renderer.pieces[mine[0]])
                missing = width - plain.length("s", states["s"])
                assert abs(words.count("-") - missing) <= 1 or "-" not in words


def test_filling_follows_the_states_own_text() -> None:
    tokenizer = build("llama3")
    renderer = Renderer(parse("style: {{s}}\nText:\n"), Encoder.of(tokenizer), {"s": 9})
    for state in ("upper", "UPPER CASE."):
        (_, slot, _, _) = renderer.layout({"s": state})
        text = tokenizer.decode(renderer.pieces[slot])
        assert text.startswith(f" {state} - -")
        assert text.endswith("- -\n"), "what the tokenizer joins with the state stays behind it"


def test_a_function_is_asked_piece_by_piece() -> None:
    """Whatever it makes of a piece: no border is looked for, and blanks fill its slots."""
    asked = []

    def counted(text: str) -> list[int]:
        asked.append(text)
        return [len(text)] * (1 if text == " " else 3)

    renderer = Renderer(parse("Rule {{s}}{{t}} end"), counted, {"s": 5})
    assert renderer.uncertain == []
    layout = renderer.layout({"s": "upper", "t": "the sea"})
    assert [renderer.pieces[i].tolist() for i in layout[:-1]] == [
        [5, 5, 5],
        [5, 5, 5, 1, 1],
        [7, 7, 7],
        [4, 4, 4],
    ]
    assert set(asked) == {"Rule ", "upper", " ", "the sea", " end"}
