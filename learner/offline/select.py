"""`dynatok select`: writes a data file with less in it, and more to learn from every token.

Reads what `dynatok train` reads, scores it with a model, and writes the trajectories that are kept
as JSON Lines, those whose tokens were pruned with `weights`. `dynatok train` takes the file as it
is. Weights of kept tokens are 1 over the share that was kept: the loss is divided by the number of
all tokens, and would be smaller by that share.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynatok_online import tiny
from dynatok_online.data.storage import write_trajectories
from dynatok_online.select import qtuning, tshirt
from dynatok_online.select.scoring import Scorer, without_prompt
from dynatok_online.trajectory import Selected, Trajectory, selected
from learner.offline.config import SelectConfig
from protocol.run.progress import progress_bar


def run(config: SelectConfig) -> int:
    """Score, choose, write; the exit code. Raises ValueError for data that cannot be used."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from learner.offline.train import read_data

    logging.disable_progress_bar()
    model = tiny.resolve(config.model)
    bad: list[str] = []
    data = [one for one in read_data(config, model, bad) if len(one.response)]
    scorer = Scorer(AutoModelForCausalLM.from_pretrained(model))
    kept, counts = METHODS[config.method](config, scorer, data)
    write_trajectories(Path(config.out), kept)
    tokens = sum(len(one.response) for one in data)
    trained = sum(
        int((one.weights > 0).sum()) if isinstance(one, Selected) else len(one.response)
        for one in kept
    )
    result = {
        "out": config.out,
        "method": config.method,
        "trajectories": len(data),
        "kept": len(kept),
        **counts,
        "tokens": tokens,
        "tokens_kept": trained,
        "share_of_tokens": round(trained / tokens, 4) if tokens else 0.0,
        "bad_rows": len(bad),
    }
    print(json.dumps(result), flush=True)
    return 0


def select_tshirt(
    config: SelectConfig, scorer: Scorer, data: Sequence[Trajectory]
) -> tuple[list[Trajectory], dict[str, Any]]:
    """Whole responses, by T-SHIRT."""
    alone = [without_prompt(one) for one in data]
    with progress_bar("select", len(data) * (1 + config.noises)) as bar:

        def difference(at: int) -> np.ndarray:
            found = scorer.score(data[at]).nll - scorer.score(alone[at]).nll
            bar.advance()
            return np.asarray(found)

        plain = [difference(at) for at in range(len(data))]
        tokens = tshirt.informative(plain)
        scores = np.empty((len(data), config.noises))
        for at, one in enumerate(data):
            length = max(one.kv_length(k) for k in range(len(one.passes)))
            for draw in range(config.noises):
                seed = (config.seed * 1_000_003 + at) * 1_009 + draw
                with scorer.shaken(config.alpha, length, seed):
                    scores[at, draw] = tshirt.score(difference(at), tokens[at])
    kept = tshirt.chosen(scores, config.keep)
    return [data[at] for at in kept], {"informative_tokens": int(sum(map(np.sum, tokens)))}


def select_qtuning(
    config: SelectConfig, scorer: Scorer, data: Sequence[Trajectory]
) -> tuple[list[Trajectory], dict[str, Any]]:
    """Responses and tokens, by Q-Tuning."""
    nlls, entropies = [], []
    with progress_bar("select", len(data)) as bar:
        for one in data:
            found = scorer.score(one)
            nlls.append(found.nll)
            entropies.append(found.entropy.mean())
            bar.advance()
    perplexity = np.exp([one.mean() for one in nlls])
    chosen = qtuning.quadrants(perplexity, np.array(entropies), config.keep)
    masks = {at: np.ones(len(nlls[at]), bool) for at in chosen.whole}
    for at in chosen.pruned:
        scores = qtuning.token_scores(np.exp(nlls[at]), config.neighbours)
        masks[at] = qtuning.kept_tokens(scores, config.tokens, config.drop)
    share = sum(int(one.sum()) for one in masks.values()) / max(1, sum(map(len, masks.values())))
    kept: list[Trajectory] = [
        selected(data[at], mask.astype(np.float32) / share) for at, mask in sorted(masks.items())
    ]
    return kept, {"pruned": len(chosen.pruned), "whole": len(chosen.whole)}


METHODS = {"tshirt": select_tshirt, "qtuning": select_qtuning}
