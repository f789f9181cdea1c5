"""The engine that all tests marked `engine` share: vLLM takes long to start."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from actor.engine import VllmEngine

T = TypeVar("T")
RUN_ID = f"engine-tests-{os.getpid()}"


@dataclass
class SharedEngine:
    """A running vLLM, the event loop that it lives in, and the folder of its model."""

    engine: VllmEngine
    loop: asyncio.AbstractEventLoop
    model: Path
    run_id: str = RUN_ID

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = 120) -> T:
        """Run a coroutine in the engine's loop."""
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, timeout))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Qwen3 (untied, so that every kind of tensor occurs)."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from dynatok_online.tiny import tokenizer

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer.VOCAB),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # vLLM's CPU attention takes multiples of 32
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.2,  # flat distributions would hide mistakes
        eos_token_id=tokenizer.EOS_ID,
        pad_token_id=tokenizer.PAD_ID,
        bos_token_id=None,
        dtype="float32",
    )
    folder = tmp_path_factory.mktemp("random-model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm(random_model: Path) -> Iterator[SharedEngine]:
    """The shared engine, at weight label `default`; tests use cache salts of their own."""
    pytest.importorskip("vllm")
    from actor.engine import VllmEngine

    loop = asyncio.new_event_loop()
    engine = VllmEngine.start(str(random_model), {"max_num_seqs": 32}, run_id=RUN_ID)
    try:
        yield SharedEngine(engine, loop, random_model)
    finally:
        engine.shutdown()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
