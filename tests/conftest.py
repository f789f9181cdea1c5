"""The engine that all tests marked `engine` share: vLLM takes long to start.

Beside each other (`pytest -n 2`) tests compute on one thread each: their tensors are small, and
threads of several workers would wait for each other's cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import zmq
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from actor.engine.engine import VllmEngine
    from actor.sessions.serving import Serving
    from protocol.wire.messages import WeightManifest

if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported, which is later
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test is timed: an example that is slow on a busy machine is no fault.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell starts what it puts in the background with interrupts ignored; some tests are about them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A test that fails leaves sockets open. Where they are collected together with their context, its
# finalizer no longer finds them, and waits for them for ever.
zmq.Context.__del__ = lambda self: None  # type: ignore[method-assign]

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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A tiny model: threads only get in each other's way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


STEP_TOKENS = 128
"""Of a step of the shared engine: prompts of more are computed in parts."""


@contextlib.contextmanager
def small_engine(
    model: Path, run_id: str, arguments: Mapping[str, Any] | None = None, **more: Any
) -> Iterator[SharedEngine]:
    """An engine with room for six contexts of 512 tokens: where many sessions run, blocks are
    evicted, requests preempted, and prompts computed in parts. `more`: of `VllmEngine.start`."""
    pytest.importorskip("vllm")
    from actor.engine.engine import VllmEngine

    loop = asyncio.new_event_loop()
    room = {"max_num_seqs": 32, "kv_cache_memory_bytes": 3 << 20}
    room["max_num_batched_tokens"] = STEP_TOKENS
    engine = VllmEngine.start(str(model), room | dict(arguments or {}), run_id=run_id, **more)
    try:
        yield SharedEngine(engine, loop, model, run_id)
    finally:
        engine.shutdown()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.fixture(scope="session")
def vllm(random_model: Path) -> Iterator[SharedEngine]:
    """The shared engine, at weight label `default`; tests use cache salts of their own."""
    # oneDNN keeps a kernel per shape, up to 1024 of them: as much growth as a leak would be.
    environment = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}
    with small_engine(random_model, RUN_ID, environment=environment) as shared:
        yield shared


@pytest.fixture(scope="session")
def reference(random_model: Path) -> PreTrainedModel:
    """The engines' model in transformers, float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(random_model, dtype="float32").eval()


@pytest.fixture
def ring(vllm: SharedEngine, reference: PreTrainedModel) -> Iterator[Callable[..., WeightManifest]]:
    """`publish(version, model, ...)` into the ring that the engine's worker reads."""
    from protocol.weights.payload import as_tensor, payload_bytes
    from protocol.weights.shm import ShmSender
    from protocol.wire.messages import Canary
    from tests.actor.models import full_forward

    layout = {n: ("F32", tuple(t.shape)) for n, t in reference.state_dict().items()}
    sender = ShmSender(vllm.run_id, payload_bytes(layout), slots=3)

    def publish(
        version: int,
        model: PreTrainedModel,
        canary_of: PreTrainedModel | None = None,
        tamper: Callable[[dict[str, Any]], None] = lambda state: None,
    ) -> WeightManifest:
        state = {n: t.detach().clone() for n, t in model.state_dict().items()}
        tamper(state)
        texts = (tuple(range(5, 45)), tuple(range(60, 10, -1)))
        expected = tuple(
            tuple(map(float, full_forward(canary_of or model, text))) for text in texts
        )
        tensors = ((n, as_tensor("F32", t.shape, t.numpy())) for n, t in state.items())
        return sender.publish(version, tensors, Canary(texts, expected, 1e-4))

    yield publish
    sender.close()


@pytest.fixture
def serving(vllm: SharedEngine, request: pytest.FixtureRequest) -> Serving:
    """A gate that is open, with a cache salt that no other test uses."""
    from actor.sessions.serving import Serving

    vllm.run(vllm.engine.set_weight_label("default"))
    serving = Serving(vllm.engine, request.node.name)
    serving.open(0, serving.new_salt(0))
    return serving
