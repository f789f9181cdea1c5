"""Chat templates, piece by piece: an edit never moves a token outside its slot."""

from __future__ import annotations

from typing import Any

import pytest

from dynatok_online.prompt import Renderer, from_chat, parse
from dynatok_online.trajectory import RESPONSE

# The shape of each family's own template: markers, turns, what is trimmed, what the end looks like.
QWEN3 = (
    "{%- for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{%- endif %}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{%- endif %}"
)
MISTRAL = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message.role == 'system' %}[SYSTEM_PROMPT]{{ message.content }}[/SYSTEM_PROMPT]"
    "{%- elif message.role == 'user' %}[INST]{{ message.content }}[/INST]"
    "{%- else %}{{ message.content }}{{ eos_token }}{%- endif %}"
    "{%- endfor %}"
)
GEMMA = (
    "{{ bos_token }}{%- for message in messages %}"
    "{%- set role = 'model' if message.role == 'assistant' else message.role %}"
    "<start_of_turn>{{ role }}\n{{ message.content | trim }}<end_of_turn>\n"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<start_of_turn>model\n{%- endif %}"
)
STYLES = {"qwen3": QWEN3, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA}
MARKERS = (
    *("<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "<think>"),
    *("</think>", "<start_of_turn>", "<end_of_turn>"),
)
MESSAGES = [
    {"role": "user", "content": "Write a note. \nletters: {{case}}\nwords: {{words}} "},
    {"role": "assistant", "content": "about what?"},
    {"role": "user", "content": "the harbor"},
]
STATES = [
    {"case": "UPPER CASE", "words": "the sea"},
    {"case": "lower case", "words": "the sea"},
    {"case": "a", "words": "the city of Rome, at night"},
    {"case": "", "words": " "},
]


@pytest.fixture(scope="module", params=STYLES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Byte-level BPE that merges across words and blanks, with the family's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    text = [one["content"] for one in MESSAGES] + [v for s in STATES for v in s.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(MARKERS), initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([f"user\n{one}\nassistant\n" for one in text] * 4, trainer)
    built = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>")
    built.chat_template = STYLES[request.param]
    return built


def renderer(tokenizer: Any, placement: Any) -> Renderer:
    template = from_chat(MESSAGES, tokenizer, placement)
    return Renderer(
        parse(template), lambda text: list(tokenizer.encode(text, add_special_tokens=False))
    )


@pytest.mark.parametrize("placement", ["head", "late"])
def test_an_edit_changes_the_tokens_of_its_slot_alone(tokenizer: Any, placement: str) -> None:
    one = renderer(tokenizer, placement)
    slots = [getattr(part, "name", None) for part in one.prompt.parts]
    assert sorted(name for name in slots if name) == ["case", "words"]
    first = one.layout(STATES[0])
    for states in STATES[1:]:
        layout = one.layout(states)
        changed = {slot for slot, a, b in zip(slots, first, layout, strict=True) if a != b}
        assert changed == {name for name in states if states[name] != STATES[0][name]}
        assert layout.index(RESPONSE) == first.index(RESPONSE)


@pytest.mark.parametrize("placement", ["head", "late"])
def test_the_text_is_what_the_template_itself_writes(tokenizer: Any, placement: str) -> None:
    """Head: put the states into the messages and apply the template. Markers are single tokens."""
    one = renderer(tokenizer, placement)
    states = STATES[0]
    ids = [
        i for index in one.layout(states) if index != RESPONSE for i in one.pieces[index].tolist()
    ]
    if placement == "head":
        filled = [
            {
                "role": message["role"],
                "content": message["content"]
                .replace("{{case}}", states["case"])
                .replace("{{words}}", states["words"]),
            }
            for message in MESSAGES
        ]
        wanted = tokenizer.apply_chat_template(filled, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(ids) == wanted
    markers = {tokenizer.convert_tokens_to_ids(one) for one in MARKERS}
    assert sum(i in markers for i in ids) >= 5
    assert ids.count(tokenizer.bos_token_id) <= 1


def test_late_slots_stand_behind_the_response(tokenizer: Any) -> None:
    one = renderer(tokenizer, "late")
    names = [getattr(part, "name", type(part).__name__) for part in one.prompt.parts]
    assert names.index("Response") < names.index("case") < names.index("words")
