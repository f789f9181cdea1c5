"""One character, one token, whatever stands beside it, from the saved folder too."""

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynatok_online.tiny import tokenizer, world

transformers = pytest.importorskip("transformers")
TOKENIZER = tokenizer.build()


@given(st.text(alphabet=tokenizer.CHARACTERS, max_size=200).filter(lambda t: "<" not in t))
def test_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == [tokenizer.VOCAB[c] for c in text]
    assert TOKENIZER.decode(ids) == text


def test_special_and_unknown() -> None:
    assert TOKENIZER.encode("<eos>") == [tokenizer.EOS_ID] == [TOKENIZER.eos_token_id]
    assert TOKENIZER.pad_token_id == tokenizer.PAD_ID
    assert TOKENIZER.encode("é") == [tokenizer.UNK_ID]
    assert TOKENIZER.bos_token_id is None


def test_saved_and_loaded(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    task = next(islice(world.tasks(), 1))
    prompt = task.render(task.states)
    assert loaded.encode(prompt) == TOKENIZER.encode(prompt)
    assert loaded.decode(loaded.encode(prompt)) == prompt
    assert len(loaded) == len(tokenizer.VOCAB)
