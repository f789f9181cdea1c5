"""T-SHIRT: responses that their prompt explains well, and go on to when the input is shaken.

    m_t = NLL(y_t | prompt, y_<t) - NLL(y_t | y_<t)      informative where |m_t| > median |m|
    score = mean of m over a response's informative tokens, for every draw of noise
    keep the 2k of the highest mean score, of these the k of the least deviation

After Y. Fu et al., "T-SHIRT: Token-Selective Hierarchical Data Selection for Instruction Tuning",
2025 (arXiv 2506.01317). exp(score) is IFD over informative tokens: high where the prompt helps
little, so that there is something to learn. Noise is NEFTune's, on the embeddings: uniform in
-a .. a, a = alpha / sqrt(tokens * width), alpha 5; 30 draws. The median is that of the whole file
without noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dynatok_online.arrays import Flags, Floats


def informative(differences: Sequence[Floats]) -> list[Flags]:
    """Which tokens of each response ([R] each) are; a NaN (nothing stands before it) is not."""
    known = np.concatenate([one[np.isfinite(one)] for one in differences])
    if not len(known):
        return [np.zeros(len(one), bool) for one in differences]
    border = np.median(np.abs(known))
    return [np.nan_to_num(np.abs(one), nan=-1.0) > border for one in differences]


def score(difference: Floats, tokens: Flags) -> float:
    """Of one response under one draw; -inf where none of its tokens is informative."""
    known = difference[tokens & np.isfinite(difference)]
    return float(known.mean()) if len(known) else -math.inf


def chosen(scores: Floats, keep: float) -> list[int]:
    """Indices of the responses to keep, ascending. `scores`: [responses, draws]."""
    count = min(len(scores), max(1, round(keep * len(scores))))
    usable = np.flatnonzero(np.isfinite(scores).all(1))
    mean, deviation = scores[usable].mean(1), scores[usable].std(1)
    first = np.argsort(-mean, kind="stable")[: 2 * count]
    second = first[np.argsort(deviation[first], kind="stable")[:count]]
    return sorted(usable[second].tolist())
