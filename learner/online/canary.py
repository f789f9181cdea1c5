"""Texts that tell whether an engine computes what the model in training computes.

Token ids are drawn once per run, spread over the vocabulary: a tensor that was not applied, was
applied to the wrong layer, or is not what is trained (an adapter that was left out), changes their
log-probabilities by far more than the tolerance.
"""

from __future__ import annotations

import random

from learner.online.scorer import Scorer
from protocol.wire.messages import Canary

Texts = tuple[tuple[int, ...], ...]


def canary_texts(vocab_size: int, texts: int, tokens: int, seed: int) -> Texts:
    """`texts` sequences of `tokens` ids below `vocab_size`."""
    rng = random.Random(seed)
    return tuple(tuple(rng.randrange(vocab_size) for _ in range(tokens)) for _ in range(texts))


def canary(scorer: Scorer, texts: Texts, tolerance: float) -> Canary:
    """The canary of the model in training, as it is now. Under ZeRO-3 every rank asks for it."""
    return Canary(texts, scorer.texts(texts), tolerance)
