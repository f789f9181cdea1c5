"""Small tokenizers of every kind that language models come with, trained here in milliseconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

CORPUS = [
    "Write a note in upper case. Letters: UPPER CASE, lower case; words: the sea, the city.\n",
    "Rule: upper. Text: The sea is wide.\nRule: lower. Text: the hill is green!\n\nThe END.",
    "style: no digits\nstyle: 12 words\nlength: short (a few words)\n\tText:\n  two  blanks",
    "\\frac{a}{b} \"quoted\", 'single'... and - a list: * one * two * three?! é über née 中文。",
    "In upper, please: Answer: Yes. No. Maybe, maybe not; who knows? Text.\nText.\nText:\n",
] * 4
MARKERS = (
    *("<unk>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]"),
    *("[/INST]", "<start_of_turn>", "<end_of_turn>"),
)
THINK = ("<think>", "</think>", "<table>", "\n\n\n")
"""Added tokens that are not special: a template writes the first two, text holds the others."""

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gpt2() -> Any:
    """Byte-level BPE, words cut as GPT-2 does (SmolLM2 cuts digits as well)."""
    from tokenizers import pre_tokenizers as pre

    return _byte_level(pre.Sequence([pre.Digits(True), pre.ByteLevel(add_prefix_space=False)]))


def llama3() -> Any:
    """Byte-level BPE, words cut as Llama 3 and Qwen do: a line break joins the full stop."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as pre

    words = pre.Split(Regex(LLAMA3_WORDS), "isolated")
    return _byte_level(
        pre.Sequence([words, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    )


def sentencepiece() -> Any:
    """SentencePiece BPE with a blank before every text, and bytes for what it lacks (Llama 2)."""
    from tokenizers import normalizers as norm

    prefix = norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])
    return _sentencepiece(prefix, None)


def sentencepiece_first() -> Any:
    """The same with the blank before the first text alone (Llama 2, not legacy)."""
    from tokenizers import pre_tokenizers as pre

    return _sentencepiece(None, pre.Metaspace(prepend_scheme="first", split=False))


def gemma() -> Any:
    """SentencePiece BPE without a blank put in front."""
    from tokenizers import normalizers as norm
    from tokenizers import pre_tokenizers as pre

    return _sentencepiece(norm.Replace(" ", "▁"), pre.Split("▁", "merged_with_next"))


def unigram() -> Any:
    """SentencePiece Unigram, a blank before every text (T5, XLNet)."""
    from tokenizers import Tokenizer, decoders, models, trainers
    from tokenizers import pre_tokenizers as pre

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=list(MARKERS), unk_token="<unk>", show_progress=False
    )
    learner = Tokenizer(made.model)
    learner.train_from_iterator([*_words(), "\n"], trainer)
    made.model = learner.model
    return made


def _byte_level(words: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = words
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def _sentencepiece(normalizer: Any, words: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        made.normalizer = normalizer
    if words is not None:
        made.pre_tokenizer = words
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*MARKERS, *(f"<0x{i:02X}>" for i in range(256))],
        show_progress=False,
        limit_alphabet=70,
    )
    learner = Tokenizer(made.model)
    learner.train_from_iterator(_words(), trainer)
    made.model = learner.model
    return made


def _words() -> list[str]:
    """As SentencePiece learns: no piece holds a blank but in front, or letters and signs."""
    return [w for one in CORPUS for w in re.findall(r"▁?\w+|▁?[^\w\s▁]+|▁", one.replace(" ", "▁"))]


KINDS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "llama3": llama3,
    "sentencepiece": sentencepiece,
    "sentencepiece_first": sentencepiece_first,
    "gemma": gemma,
    "unigram": unigram,
}


@cache
def build(kind: str, bos: bool = False) -> Any:
    """The transformers tokenizer; with `bos` it puts `<bos>` in front of every text."""
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer.from_str(_trained(kind))
    made.add_special_tokens([AddedToken(one, normalized=False) for one in MARKERS])
    made.add_tokens([AddedToken(one, normalized=False) for one in THINK])
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<bos> $A",
            pair="<bos> $A $B",
            special_tokens=[("<bos>", made.token_to_id("<bos>"))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained(kind: str) -> str:
    return str(KINDS[kind]().to_str())
