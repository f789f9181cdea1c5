"""KV that has moved: losses and all gradients against decoding step by step over turned keys."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from dynatok_online import attention
from dynatok_online.attention.turning import frequencies, turning_of, why_not_turned
from dynatok_online.rows.plan import plan_rows
from dynatok_online.spans.audit import audit
from dynatok_online.spans.build import build_spans
from dynatok_online.trajectory import Trajectory
from tests.attention.test_exactness import compare
from tests.attention.test_leaks import logits_of, reach
from tests.models import make
from tests.oracle import sticky_logits, without_edit
from tests.simulate import World, simulate_moved
from tests.training.test_ghosts import run

WORLD = World(slots=(1, 2), slot=(0, 6), passes=(2, 4), sampled=(0, 5))


def batch(seed: int) -> tuple[list[Trajectory], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, 23, 4).astype(np.int32)
    many = [
        simulate_moved(rng, world=WORLD, prefix=prefix if i else None, name=f"{seed}.{i}")
        for i in range(2)
    ]
    assert [str(m) for one in many for m in audit(one)] == []
    return many, [rng.random(len(one.response)).astype(np.float32) for one in many]


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3", "concat"),
        ("qwen2", "concat"),
        ("llama", "concat"),
        ("mistral", "concat"),
        ("mistral", "dense"),
    ],
)
def test_moved_kv_equals_the_oracle(name: str, kind: str, parts: bool) -> None:
    plain = make(name)
    model = copy.deepcopy(plain)
    attention.prepare(model, kind)
    moved = 0
    for seed in range(4):
        many, weights = batch(seed)
        moved += build_spans(many).seen_shifts is not None
        budget = 10_000 if seed % 2 else 60
        try:
            compare(plain, model, many, weights, 1e-11, parts=parts, max_tokens=budget)
        except ValueError as error:
            if "tokens, but a row holds" not in str(error):
                raise
            compare(plain, model, many, weights, 1e-11, parts=parts)
    assert moved >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "qwen2", "llama", "mistral"])
def test_many_moved(name: str) -> None:
    plain = make(name)
    model = copy.deepcopy(plain)
    attention.prepare(model)
    for seed in range(10, 40):
        many, weights = batch(seed)
        compare(plain, model, many, weights, 1e-11, parts=bool(seed % 2))


def test_flex_forward() -> None:
    plain = make("llama", torch.float32)
    flex, dense = copy.deepcopy(plain), copy.deepcopy(plain)
    attention.prepare(flex, "flex")
    attention.prepare(dense, "dense")
    many, _ = batch(1)
    for row in plan_rows(many):
        assert row.shifts is not None
        assert torch.allclose(logits_of(flex, row), logits_of(dense, row), atol=1e-4)


def test_moved_rows_leak_nothing() -> None:
    model = make("llama")
    attention.prepare(model)
    for seed in range(2):
        many, _ = batch(seed)
        (row,) = plan_rows(many)
        depends = reach(row, [None, None])[row.loss_positions]
        before = logits_of(model, row)
        for i in np.random.default_rng(seed).choice(row.tokens, 6, replace=False):
            ids = row.input_ids.copy()
            ids[i] = (ids[i] + 1) % 23
            changed = (
                logits_of(model, type(row)(**{**vars(row), "input_ids": ids})) != before
            ).any(1)
            assert (changed.numpy() == depends[:, i]).all()


def test_the_shift_matters() -> None:
    """The same records with keys left as they were are another model."""
    model = make("llama")
    attention.prepare(model)
    many, _ = batch(0)
    for row in plan_rows(many):
        as_computed = type(row)(**{**vars(row), "shifts": None})
        assert (logits_of(model, row) - logits_of(model, as_computed)).abs().max() > 1e-3


def test_a_turned_key_is_the_key_of_where_it_stands() -> None:
    """The rule itself, against the models' own embeddings: every layer, static scaling too."""
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    scaled = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    settings: list[tuple[str, dict[str, Any]]] = [
        ("llama", {}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("llama", {"rope_parameters": {**yarn, "original_max_position_embeddings": 64}}),
        ("qwen3", {"rope_parameters": scaled}),
    ]
    for name, changes in settings:
        model = make(name, **changes)
        ids = torch.tensor([[3, 1, 4]])

        def keys(shift: int, model: Any = model, ids: torch.Tensor = ids) -> list[torch.Tensor]:
            at = torch.arange(3)[None] + shift
            with torch.no_grad():
                cache = model(input_ids=ids, position_ids=at, use_cache=True).past_key_values
            return [layer.keys for layer in cache.layers]

        turning = turning_of(model)
        for here, there in zip(keys(2), keys(9), strict=True):
            turned = turning.turn(here, torch.full((3,), 7))
            assert (turned - there).abs().max() <= 1e-5 * there.abs().max()
            back = turning.turn(there, torch.full((3,), -7))
            assert (back - here).abs().max() <= 1e-5 * here.abs().max()
        assert why_not_turned(model.config) == ""
        assert torch.equal(frequencies(model.config), turning.rotary.inv_freq.float())


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("gpt2", {}, "gpt2"),
        ("gemma3", {}, "gemma3_text"),
        ("gpt_oss", {}, "gpt_oss"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "'dynamic'",
        ),
    ],
)
def test_models_whose_keys_cannot_be_turned_are_refused(
    name: str, changes: dict[str, Any], says: str
) -> None:
    model = make(name, **changes)
    with pytest.raises(ValueError, match=says):
        turning_of(model).check()
    assert says in why_not_turned(model.config)
    attention.prepare(model)
    many, _ = batch(0)
    with pytest.raises(ValueError, match="cannot be kept"):
        logits_of(model, plan_rows(many)[0])


def test_shifts_travel_and_their_absence_costs_nothing() -> None:
    from dynatok_online.trajectory import from_row, to_row

    many, _ = batch(0)
    again = from_row(to_row(many[0]))
    assert [one.shifts for one in again.passes] == [one.shifts for one in many[0].passes]
    fixed = many[0].passes[0]
    assert fixed.shifts is msgspec.UNSET
    assert b"shifts" not in msgspec.msgpack.encode(fixed)


def test_the_audit_compares_moved_tokens() -> None:
    many, _ = batch(0)
    one = many[0]
    k = next(k for k, p in enumerate(one.passes) if p.shifts is not msgspec.UNSET)
    passes = list(one.passes)
    wrong = tuple(shift + 1 for _, shift in passes[k].moved_reuse())
    passes[k] = msgspec.structs.replace(passes[k], shifts=wrong)
    assert any(
        "moved by" in str(m) for m in audit(msgspec.structs.replace(one, passes=tuple(passes)))
    )
    exact = msgspec.structs.replace(one, policy="exact")
    assert any("policy exact never does" in str(m) for m in audit(exact))


def test_ghosts_of_moved_passes() -> None:
    """What tokens would have been without the edit that moved what stands behind it."""
    plain = make("qwen3")
    model = copy.deepcopy(plain)
    attention.prepare(model)
    compared = 0
    for seed in range(3):
        many, _ = batch(seed)
        right = [without_edit(plain, one) for one in many]
        for row in plan_rows(many, ghosts=True):
            wanted = np.array(
                [right[t][i] for t, i in zip(row.trajectory, row.response_index, strict=True)]
            )
            for shared in (True, False):
                found = run(model, row, shared=shared)[1].numpy()
                there = ~np.isnan(found)
                assert (there == ~np.isnan(wanted)).all()
                assert np.abs(found - wanted)[there].max(initial=0) < 1e-10
                compared += int(there.sum())
    assert compared > 20


def test_a_moved_pass_predicts_what_decoding_does() -> None:
    plain = make("qwen3")
    model = copy.deepcopy(plain)
    attention.prepare(model)
    many, _ = batch(2)
    for one in many:
        found = {int(i): row for row in plan_rows([one]) for i in row.response_index}
        assert len(found) == len(one.response)
        with torch.no_grad():
            wanted = torch.cat([logits for _, logits in sticky_logits(plain, one)])
        (row,) = plan_rows([one])
        assert (logits_of(model, row) - wanted[row.response_index]).abs().max() < 1e-11
