"""Gold responses measured as an evaluation measures a model's own: what there is to reach.

A figure such as the NLL under the base model means little alone: text in capitals is unlikely to
it, however well it reads. Gold on the same kind of tasks says what following costs at least.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actor.offline.alone import chat_from
from actor.offline.config import EvalConfig
from actor.offline.eval_stored import sample_of, unwatched
from actor.offline.eval_summary import over_seeds, summary
from actor.tokenizer import load_tokenizer
from dynatok_online import tiny
from dynatok_online.data.storage import read_rows
from dynatok_online.tasks.files import read_row
from dynatok_online.tasks.gold import gold
from dynatok_online.tasks.scripted import scripted_trajectory


def gold_report(config: EvalConfig) -> dict[str, Any]:
    """The measures of `config.gold`, in the shape of those of one reuse policy.

    ValueError where the file cannot be used.
    """
    encode, decode = load_tokenizer(tiny.resolve(config.model))
    encoder, chat = encode, None
    samples = []
    for raw, where in read_rows(Path(config.gold)):
        try:
            row = read_row(raw)
            if row.messages and chat is None:
                chat = chat_from(config)
            task, tokens, stopped = gold(row, encoder, placement=config.placement, chat=chat)
            one = scripted_trajectory(
                task, tokens, encoder, placement=config.placement, stopped=stopped
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        samples.append(sample_of(task, unwatched(one), decode))
    if not samples:
        raise ValueError(f"gold: {config.gold} holds no gold response")
    found = summary(samples, config.base_model)
    return {"by_seed": {0: found}, "mean": over_seeds([found])}
