"""Random responses whose slot changes while they are written, and a tiny model that reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from dynatok_online.trajectory import RESPONSE, Earlier, Pass, Trajectory, VersionRun

VOCAB = 50


def tiny_model(vocabulary: int = VOCAB) -> Any:
    """The same Qwen3 of 30k parameters at every call."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=True,
        )
    )


def task(
    rng: np.random.Generator, states: int, *, prompt: int = 12, slot: int = 4, vocab: int = VOCAB
) -> list[np.ndarray]:
    """A prompt's text, and what stands in its slot in each state."""
    return [rng.integers(0, vocab, n).astype(np.int32) for n in (prompt, *[slot] * states)]


def edited(
    rng: np.random.Generator,
    name: str,
    pieces: Sequence[np.ndarray],
    *,
    sampled: tuple[int, int] = (3, 25),
    version: int | None = None,
    score: float | None = None,
    logprobs: Callable[[int], np.ndarray] | None = None,
    vocab: int = VOCAB,
) -> Trajectory:
    """A response to a `task`: one pass a state, each of `sampled` tokens (the second is not
    reached). `score`: of every pass; None: drawn. `logprobs`: of so many tokens; None: drawn."""
    passes: list[Pass] = []
    at = 0
    for state in range(len(pieces) - 1):
        stop = at + int(rng.integers(*sampled))
        passes.append(
            Pass(
                layout=(0, state + 1, RESPONSE),
                states={"slot": str(state)},
                start=at,
                stop=stop,
                num_cached_tokens=0,
                weight_versions=() if version is None else (VersionRun(version, stop - at),),
                scores={"slot": float(rng.random()) if score is None else score},
            )
        )
        at = stop
    response = rng.integers(0, vocab, at).astype(np.int32)
    passes = [msgspec.structs.replace(one, earlier=judged(one.start)) for one in passes]
    drawn = rng.normal(-math.log(vocab), 0.2, at).astype(np.float32)
    return Trajectory(
        trajectory_id=name,
        pieces=tuple(pieces),
        response=response,
        logprobs=drawn if logprobs is None else logprobs(at),
        passes=tuple(passes),
    )


def judged(stop: int) -> tuple[Earlier, ...]:
    """Of what was written before: 4 tokens that obey, 2 about which nothing is known, 2 that half
    obey, and so on."""
    starts = range(0, stop, 8)
    whole = [Earlier(at, min(at + 4, stop), 1.0) for at in starts]
    half = [Earlier(at + 6, min(at + 8, stop), 0.5) for at in starts if at + 6 < stop]
    return tuple(sorted([*whole, *half], key=lambda one: one.start))


def trajectories(count: int) -> list[Trajectory]:
    """Each to a task of its own."""
    rng = np.random.default_rng(0)
    return [edited(rng, str(i), task(rng, 3)) for i in range(count)]


def responses(count: int = 8) -> list[Trajectory]:
    """Four responses to each of `count // 4` tasks, the tasks in turn."""
    rng = np.random.default_rng(0)
    tasks = [task(rng, 3) for _ in range(count // 4)]
    return [edited(rng, str(i), tasks[i % len(tasks)]) for i in range(count)]
