"""A character tokenizer: one printable ASCII character or line break is one token.

Token boundaries therefore never depend on what stands beside them. It is an ordinary fast
tokenizer, so transformers and vLLM load it from the model's folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL: tuple[str, ...] = ("<pad>", "<eos>", "<unk>")
CHARACTERS: str = "\n" + "".join(chr(code) for code in range(32, 127))
VOCAB: dict[str, int] = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
PAD_ID, EOS_ID, UNK_ID = (VOCAB[token] for token in SPECIAL)


def build() -> PreTrainedTokenizerFast:
    """The tokenizer, ready for `save_pretrained`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocab=VOCAB, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
