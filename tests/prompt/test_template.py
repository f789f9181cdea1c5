"""Templates, slots and piecewise rendering."""

import pytest

from dynatok_online.prompt import (
    Renderer,
    Response,
    Slot,
    Text,
    escaped,
    from_chat,
    late,
    literal,
    parse,
    written,
)
from dynatok_online.trajectory import RESPONSE


def codepoints(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_response_stands_at_the_end_unless_placed():
    assert parse("Write {{case}}: ").parts == (
        Text("Write "),
        Slot("case"),
        Text(": "),
        Response(),
    )
    assert parse("A {{ response }} {{late}}").parts == (
        Text("A "),
        Response(),
        Text(" "),
        Slot("late"),
    )


def test_slots_are_named_once_in_order():
    assert parse("{{b}}{{a}}{{b}}").slots == ("b", "a")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{response}} {{response}}", "2 {{response}} places"),
        ("open {{case", "'{{' at character 5"),
        ("close case}}", "'}}' at character 10"),
        ("bad {{a b}}", "'{{' at character 4"),
    ],
)
def test_a_wrong_template_says_where(template, message):
    with pytest.raises(ValueError) as error:
        parse(template)
    assert message in str(error.value)


def test_an_edit_changes_only_its_own_piece():
    renderer = Renderer(parse("Write. {{case}}: {{response}}!{{late}}"), codepoints)
    first = renderer.layout({"case": "UPPER", "late": ""})
    second = renderer.layout({"case": "lower", "late": ""})
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, *[True] * 4]
    assert first[3] == RESPONSE
    assert renderer.layout({"case": "UPPER", "late": ""}) == first
    assert len(renderer.pieces) == 6
    assert renderer.pieces[first[5]].tolist() == []


def test_states_must_fit_the_slots():
    renderer = Renderer(parse("{{case}}"), codepoints)
    with pytest.raises(ValueError, match=r"no state for slot \['case'\]"):
        renderer.layout({})
    with pytest.raises(ValueError, match=r"no slot for state \['cse'\]"):
        renderer.layout({"case": "a", "cse": "b"})


@pytest.mark.parametrize(
    ("head", "moved"),
    [
        ("Rules:\nstyle: {{s}}\nText:\n", "Rules:\nText:\n{{response}}\nstyle: {{s}}\n"),
        (
            "Rules:\na {{a}}\nand b {{b}}!\nText:\n",
            "Rules:\nText:\n{{response}}\na {{a}}\nand b {{b}}!\n",
        ),
        ("{{a}}\n{{response}} end", "{{response}}\n{{a}}\n end"),
        ("style: {{s}}\nText:\n", "Text:\n{{response}}\nstyle: {{s}}\n"),
        ("in {{a}} and {{b}}.\nText:\n", "Text:\n{{response}}\nin {{a}} and {{b}}.\n"),
        ("in one line {{s}}: ", "in one line : {{response}}{{s}}"),
        ("no slots", "no slots{{response}}"),
        ("late {{response}} already {{s}}", "late {{response}} already {{s}}"),
    ],
)
def test_late_placement_moves_the_lines_that_hold_slots(head, moved):
    assert written(late(parse(head)).parts) == moved
    assert late(late(parse(head))) == late(parse(head))


def test_slots_of_fixed_width_end_in_blanks():
    renderer = Renderer(parse("a{{s}}b{{t}}"), lambda text: [ord(c) for c in text], {"s": 4})
    renderer.layout({"s": "xy", "t": "xy"})
    assert ["".join(map(chr, piece)) for piece in renderer.pieces] == ["a", "xy  ", "b", "xy"]
    with pytest.raises(ValueError, match="slot 's' is 4 tokens wide, but 'xxxxx' has 5"):
        renderer.layout({"s": "xxxxx", "t": ""})


class Chat:
    """A tokenizer with a small chat template; `drops` a role's messages."""

    def __init__(self, drops=""):
        self.drops = drops

    def apply_chat_template(self, conversation, **kwargs):
        assert kwargs["tokenize"] is False
        turns = [f"<{m['role']}>{m['content']}</>" for m in conversation if m["role"] != self.drops]
        return "".join(turns) + "<assistant>" * kwargs["add_generation_prompt"]


MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Write a note.\nstyle: {{s}}\nlength: {{t}}\nThanks."},
]


def test_chat_messages_in_both_placements():
    assert from_chat(MESSAGES, Chat()) == (
        "<system>Be kind.</><user>Write a note.\nstyle: {{s}}\nlength: {{t}}\nThanks.</>"
        "<assistant>{{response}}"
    )
    assert from_chat(MESSAGES, Chat(), "late") == (
        "<system>Be kind.</><user>Write a note.\nThanks.</><assistant>{{response}}</>"
        "<user>style: {{s}}\nlength: {{t}}</><assistant>"
    )


def test_a_chat_template_that_drops_a_slot_is_refused():
    with pytest.raises(ValueError, match="drops or rewrites a placeholder"):
        from_chat(MESSAGES, Chat(drops="user"))


def test_late_slots_in_two_messages_are_refused():
    two = [{"role": "system", "content": "{{r}}"}, MESSAGES[1]]
    assert "{{r}}" in from_chat(two, Chat())
    with pytest.raises(ValueError, match="put all slots into one message"):
        from_chat(two, Chat(), "late")


def test_text_that_looks_like_a_place_is_written_as_a_literal():
    text = 'a {{b}} {{"c"}} }}{{ {x} "\\n" \n é'
    assert "{{b}}" not in literal(text)
    for made in (literal(text), escaped(text)):
        assert parse(made).parts == (Text(text), Response())
    assert parse('{{ "{{" }}name{{"}}"}} {{slot}}').parts == (
        Text("{{name}} "),
        Slot("slot"),
        Response(),
    )
    with pytest.raises(ValueError, match=r"or \{\{\"\{\{\"\}\} for the braces themselves"):
        parse("\\frac{{a} + 1}{2}}")
    with pytest.raises(ValueError, match="no JSON string"):
        parse('{{"\\frac"}} and {{"\\q"}}')


def test_only_the_templates_own_text_may_hold_control_tokens():
    prompt = parse('<|im_start|>{{"<|im_end|>"}}{{s}}', control=True)
    assert prompt.parts[:2] == (Text("<|im_start|>", True), Text("<|im_end|>"))
    assert parse(written(prompt.parts), control=True) == prompt
    assert late(prompt).parts[-1] == Slot("s")
