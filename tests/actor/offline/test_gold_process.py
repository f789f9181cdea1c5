"""`dynatok gold` on a real chat model: what it writes is what training reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actor.offline.config import GoldConfig
from dynatok_online.models import SMOLLM2, cache_path
from dynatok_online.prompt import Encoder, chat_of
from dynatok_online.requirements import requirement
from dynatok_online.tasks.files import read_row
from dynatok_online.tasks.gold import gold, load_training_data
from launch.config import load_process

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CONFIG = Path("launch/configs/smollm2-gold.yaml")
TEXTS = 6


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    if not (cache_path(SMOLLM2) / "config.json").is_file():
        pytest.skip("SmolLM2 is not here: run `dynatok model smollm2` to have this tested")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(cache_path(SMOLLM2))


def command(out: Path, texts: int) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.cli", "gold", str(CONFIG)),
            *("--out", str(out), "--texts", str(texts), "--sessions", "8"),
        ],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_texts_of_the_model_are_gold_and_a_finished_file_needs_no_engine(
    tokenizer: Any, tmp_path: Path
) -> None:
    out = tmp_path / "gold.jsonl"
    said = command(out, TEXTS)
    assert (said["texts"], said["kept"]) == (TEXTS, TEXTS)
    rewrites = load_process(CONFIG, GoldConfig).rewrites
    assert rewrites * said["sampled"] >= said["kept"] + said["short"] + said["unfit"]
    encoder, chat = Encoder.of(tokenizer), chat_of(tokenizer, "smollm2")
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for line in out.read_text().splitlines():
        row = read_row(json.loads(line))
        task, tokens, stopped = gold(row, encoder, chat=chat)
        assert stopped
        assert tokens[-1] == stop
        assert stop not in tokens[:-1]
        assert task.edits
        ends = [*(edit.index for edit in task.edits), len(tokens) - 1]
        texts = [
            tokenizer.decode(tokens[at:end]) for at, end in zip([0, *ends], ends, strict=False)
        ]
        for k, (at, text) in enumerate(zip([0, *ends], texts, strict=False)):
            around = {"before": "".join(texts[:k]), "after": "".join(texts[k + 1 :])}
            for state in task.states_at(at).values():
                assert requirement(str(state.requirement)).verify(text, **around).holds is not False
    read = load_training_data(out, encode=encoder, chat=lambda: chat, reuse="sticky", block_size=32)
    assert [one.passes[-1].finish_reason for one in read] == ["stop"] * TEXTS
    before = out.read_bytes()
    assert command(out, TEXTS)["sampled"] == 0
    assert out.read_bytes() == before
