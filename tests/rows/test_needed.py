"""Part of a row: some targets, and exactly what they stand on."""

import numpy as np
import pytest
import torch

from benchmarks._edited_response import edited_response
from dynatok_online import attention
from dynatok_online.rows.needed import needed
from dynatok_online.rows.plan import plan_rows
from tests.models import make


def logits(model, row):
    with torch.no_grad():
        return model(**attention.inputs(row, "cpu"), use_cache=False).logits[0]


def row_of(reuse):
    (row,) = plan_rows(
        [edited_response(reuse, 13, 3, 18, 3, 23), edited_response(reuse, 9, 3, 8, 2, 23)]
    )
    return row


@pytest.mark.parametrize("reuse", ["exact", "sticky"])
def test_every_choice_of_targets_is_predicted_as_in_the_whole_row(reuse):
    model = make("qwen3")
    attention.prepare(model)
    row = row_of(reuse)
    every = logits(model, row)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.3, 1.0):
        wanted = rng.random(len(row.targets)) < share
        wanted[rng.integers(len(wanted))] = True
        also = rng.random(len(row.targets)) < 0.5
        part = needed(row, wanted, also)
        key = part.trajectory * 1000 + part.response_index
        at = np.array(
            [
                {k: i for i, k in enumerate(row.trajectory * 1000 + row.response_index)}[k]
                for k in key
            ]
        )
        assert set(np.flatnonzero(wanted)) <= set(at)
        assert set(at) <= set(np.flatnonzero(wanted | also))
        assert part.targets.tolist() == row.targets[at].tolist()
        torch.testing.assert_close(logits(model, part), every[at], atol=1e-12, rtol=0)


def test_one_pass_of_three_takes_what_it_takes_alone():
    """Exact reuse: the last pass stands on the prompt's beginning and on itself."""
    one = edited_response("exact", 13, 3, 18, 3, 23)
    (row,) = plan_rows([one])
    last = one.passes[-1]
    wanted = row.response_index >= last.start
    part = needed(row, wanted, np.ones(len(row.targets), bool))
    assert part.tokens == one.fed_length(2) + (last.stop - last.start) - 1
    assert part.tokens < row.tokens
    assert wanted.sum() <= len(part.targets) < len(row.targets)
