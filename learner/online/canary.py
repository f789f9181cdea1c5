"""Texts that tell whether an engine holds exactly the weights that were published.

Token ids are drawn once per run, spread over the vocabulary: a tensor that was not applied, or
was applied to the wrong layer, changes their log-probabilities by far more than the tolerance.
"""

from __future__ import annotations

import random

from learner.online.shadow import Shadow
from protocol.wire.messages import Canary

Texts = tuple[tuple[int, ...], ...]


def canary_texts(vocab_size: int, texts: int, tokens: int, seed: int) -> Texts:
    """`texts` sequences of `tokens` ids below `vocab_size`."""
    rng = random.Random(seed)
    return tuple(tuple(rng.randrange(vocab_size) for _ in range(tokens)) for _ in range(texts))


def canary(shadow: Shadow, texts: Texts, tolerance: float) -> Canary:
    """The canary of the weights that the shadow holds now."""
    return Canary(texts, tuple(shadow.text_logprobs(text) for text in texts), tolerance)
