"""Inputs that `masked` hides: which ones, and behind which token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dynatok_online.objectives.masked import Masked
from dynatok_online.rows.apart import draws
from dynatok_online.rows.row import Row


def masking_token(objective: Masked, tokenizer: Any, vocabulary: int) -> int:
    """The token that stands for what is hidden. Raises ValueError where there is none."""
    found = objective.token
    if found < 0:
        names = ("mask_token_id", "unk_token_id", "pad_token_id")
        known = [getattr(tokenizer, name, None) for name in names]
        found = next((int(one) for one in known if one is not None), -1)
    if not 0 <= found < vocabulary:
        what = "there is none" if found < 0 else f"{found} is not in a vocabulary of {vocabulary}"
        raise ValueError(
            f"objective masked needs a token to hide others behind, and {what}; write one that "
            "texts do without ({name: masked, token: 0})"
        )
    return found


def hide(row: Row, chance: float, token: int, seed: int) -> Row:
    """`row`, which was planned `apart`, with `token` in place of some response tokens."""
    if len(row.written) < row.tokens:  # one of nothing, for a rank that has nothing to do
        return row
    ids = np.where(draws(row.written, seed) < chance, np.int32(token), row.input_ids)
    ghosts = row.ghosts
    if ghosts is not None:
        ghosts = replace(ghosts, row=hide(ghosts.row, chance, token, seed))
    return replace(row, input_ids=ids, ghosts=ghosts)
