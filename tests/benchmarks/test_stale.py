"""The stale map: its caches against a KV cache of transformers, its numbers against hand counts."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import stale
from benchmarks._stale_check import response_logps
from benchmarks._stale_families import FAMILIES, HALVES
from benchmarks._stale_items import (
    CONDITIONS,
    REPAIRS,
    Encoder,
    answer_weights,
    draw_states,
    keep_targets,
    make_group,
    make_scene,
)
from benchmarks._stale_measure import Prose, measure, ready, score
from benchmarks._stale_numbers import Results, gather, over_seeds
from benchmarks._stale_texts import HELDOUT_SENTENCES, STATIC_PROSE, TRAIN_SENTENCES
from benchmarks._stale_training import ARMS, Training, trajectories
from dynatok_online import attention
from dynatok_online.rows.plan import plan_rows
from dynatok_online.spans.build import build_spans
from dynatok_online.tasks.scripted import Script
from dynatok_online.tasks.task import ScheduledEdit, SlotState, Task


@cache
def tokenizer() -> Any:
    """A byte-level BPE of the map's own texts, in which most words are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    texts = [*TRAIN_SENTENCES, *HELDOUT_SENTENCES, *STATIC_PROSE]
    for family in FAMILIES.values():
        for split in ("train", "heldout"):
            for template in family.templates(split):
                for value in family.values(split):
                    answer = family.answer(template, value)
                    texts += [f"{template.head}{value}{template.tail}{template.cue}{answer}"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


@pytest.fixture(scope="module")
def encode() -> Encoder:
    return Encoder(tokenizer())


@cache
def plain() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    import copy

    one = copy.deepcopy(plain())
    attention.prepare(one, "concat")
    return one


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_family_is_large_enough_and_holds_nothing_out_twice(
    name: str, encode: Encoder
) -> None:
    family = FAMILIES[name]
    assert len(family.train) + len(family.heldout) >= 12
    assert not family.train.keys() & family.heldout.keys()
    assert len(family.train_templates) + len(family.heldout_templates) >= 5
    heads = [one.head for split in ("train", "heldout") for one in family.templates(split)]
    assert len(set(heads)) == len(heads)
    for split in ("train", "heldout"):
        assert all(value.startswith(" ") for value in family.values(split))
        for at in range(3):
            scene = make_scene(family, split, at, 400, encode)
            for edits in stale_edits():
                for states in draw_states(scene, split, edits, 4, seed=0):
                    answers = [family.answer(scene.template, one) for one in states]
                    assert all(a != b for a, b in itertools.pairwise(answers))
                    assert edits != "aba" or states[0] == states[2]


def stale_edits() -> tuple[str, ...]:
    return ("ab", "aba", "abc")


def test_halves_are_all_families_once() -> None:
    assert sorted(sum(HALVES.values(), ())) == sorted(FAMILIES)


@pytest.mark.parametrize(
    ("name", "edits", "last"),
    [
        ("copy", "ab", 1),
        ("copy", "aba", 32),
        ("carried", "ab", 8),
        ("carried", "abc", 1),
        ("style", "aba", 1),
        ("style", "ab", 128),
    ],
)
def test_mixed_caches_equal_those_of_transformers(
    name: str, edits: str, last: int, encode: Encoder, model: Any
) -> None:
    scene = make_scene(FAMILIES[name], "heldout", 1, 50, encode)
    (states,) = draw_states(scene, "heldout", edits, 1, seed=0)
    answer = scene.family.answer(scene.template, states[-1])
    one = scene.trajectory(states, states[:-1], scene.template.cue, answer, last)
    weights = answer_weights(one, len(one.response))
    rows = plan_rows([one], [weights])
    found = np.zeros(len(one.response))
    for row in rows:
        with torch.no_grad():
            given = attention.inputs(row, "cpu")
            logp = model(**given, use_cache=False).logits[0].log_softmax(-1)
        targets = torch.as_tensor(row.targets, dtype=torch.long)
        found[row.response_index] = logp.gather(1, targets[:, None])[:, 0].numpy()
    wanted = response_logps(plain(), one)
    assert np.abs(found - wanted).max() < 1e-4
    # And the caches matter: with everything recomputed it is another number.
    whole = scene.trajectory(states[-1:], states[:-1], scene.template.cue, answer)
    after = response_logps(plain(), whole)[-1]
    assert last == 128 or abs(after - wanted[-1]) > 1e-3


def test_no_text_in_between(encode: Encoder, model: Any) -> None:
    scene = make_scene(FAMILIES["copy"], "heldout", 0, 0, encode)
    (states,) = draw_states(scene, "heldout", "ab", 1, seed=0)
    one = scene.trajectory(states, states[:1], scene.template.cue, states[1])
    assert next((p.start, p.stop) for p in one.passes) == (0, 0)
    rows = [keep_targets(row) for row in plan_rows([one], [answer_weights(one, 1)])]
    assert score(model, ready(rows), 1)[0] == pytest.approx(
        response_logps(plain(), one)[-1], abs=1e-4
    )


def test_the_passes_are_those_that_a_sticky_cache_runs(encode: Encoder) -> None:
    scene = make_scene(FAMILIES["language"], "heldout", 0, 50, encode)
    (states,) = draw_states(scene, "heldout", "abc", 1, seed=0)
    answer = scene.family.answer(scene.template, states[-1])
    mine = scene.trajectory(states, states[:-1], scene.template.cue, answer)
    cuts = [one.start for one in mine.passes]
    template = f"{scene.template.head}{{{{slot}}}}{scene.template.tail}{{{{response}}}}"
    task = Task(
        task_id="t",
        template=template,
        states={"slot": SlotState(states[0])},
        edits=tuple(
            ScheduledEdit(at, "slot", SlotState(state))
            for at, state in zip(cuts[1:], states[1:], strict=True)
        ),
        max_tokens=len(mine.response),
        widths={"slot": len(encode(states[0]))},
        seed=0,
    )
    script = Script(task, encode, reuse="sticky")
    for at in cuts:
        script.begin(mine.response[:at])
    theirs = script.finish(mine.response.tolist())
    assert [one.reuse for one in theirs.passes] == [one.reuse for one in mine.passes]
    a, b = build_spans([mine]), build_spans([theirs])
    assert a.input_ids.tolist() == b.input_ids.tolist()
    assert a.seen.tolist() == b.seen.tolist()


def test_one_pass_is_what_exact_reuse_computes(encode: Encoder) -> None:
    """After the edit, that is: so exact training needs no forward under the old state."""
    scene = make_scene(FAMILIES["plan"], "train", 0, 25, encode)
    (states,) = draw_states(scene, "train", "ab", 1, seed=0)
    answer = scene.family.answer(scene.template, states[-1])
    cue = scene.template.cue
    whole = scene.trajectory(states[-1:], states[:-1], cue, answer)
    # Everything behind the slot computed anew: the mixed cache is no mixed cache any more.
    refreshed = scene.trajectory(states, states[:-1], cue, answer, last=10_000)
    assert np.allclose(
        response_logps(plain(), whole)[-2:], response_logps(plain(), refreshed)[-2:], atol=1e-5
    )
    assert refreshed.passes[1].num_cached_tokens == len(encode(scene.template.head))


def test_a_group_measures_every_item_under_every_condition(encode: Encoder, model: Any) -> None:
    group = make_group(
        FAMILIES["pronoun"], 25, "ab", encode, CONDITIONS + REPAIRS, count=3, templates=2
    )
    line = measure(model, group, ready(group.rows))
    assert line["odds"].keys() == set(CONDITIONS + REPAIRS)
    assert {len(one) for one in line["odds"].values()} == {len(group.states)} == {6}
    assert line["odds"]["last128"] == pytest.approx(line["odds"]["exact"], abs=2e-3)
    assert line["odds"]["sticky"] != pytest.approx(line["odds"]["exact"], abs=1e-2)
    # The same items one by one, by the other way to compute them.
    scene = make_scene(FAMILIES["pronoun"], "heldout", 0, 25, encode)
    old, new = group.states[0]
    logps = [
        response_logps(
            plain(),
            scene.trajectory(
                (old, new), (old,), scene.template.cue, scene.family.answer(scene.template, one)
            ),
        )[-1]
        for one in (new, old)
    ]
    assert line["odds"]["sticky"][0] == pytest.approx(logps[0] - logps[1], abs=1e-3)


def test_pieces_with_other_tokens_than_the_text_are_refused(encode: Encoder) -> None:
    with pytest.raises(ValueError, match="other tokens"):
        encode.check("The pass", "word is")


def test_arms_of_one_seed_see_the_same_texts(encode: Encoder) -> None:
    def texts(name: str, seed: int) -> list[list[int]]:
        stream = trajectories(ARMS[name], encode, seed)
        return [next(stream)[0].response.tolist() for _ in range(12)]

    assert texts("sticky", 0) == texts("exact", 0) == texts("mixture", 0) == texts("refresh", 0)
    assert texts("sticky", 0) != texts("sticky", 1)
    kinds = [len(one.passes) for one, _ in take(trajectories(ARMS["mixture"], encode, 0), 40)]
    assert {1, 2} == set(kinds)


def take(stream: Any, count: int) -> list[Any]:
    return [next(stream) for _ in range(count)]


def test_training_lowers_the_loss_and_counts_what_it_runs(encode: Encoder) -> None:
    import copy

    one = copy.deepcopy(plain())
    attention.prepare(one, "concat")
    prose = Prose(one, encode)
    assert prose.measure(one)["kl"] == pytest.approx(0, abs=1e-6)
    training = Training(one, ARMS["sticky"], encode, 0)
    losses = []
    for _ in range(6):
        training.advance()
        losses.append(training.loss)
    assert losses[-1] < losses[0]
    assert training.tokens > training.loss_tokens > 0
    assert prose.measure(one)["kl"] > 0


def test_numbers_by_hand() -> None:
    line: dict[str, Any] = {
        "kind": "cell",
        "seed": 0,
        "odds": {
            "unedited": [-2.0] * 9 + [0.0],
            "exact": [2.0] * 9 + [0.1],
            "sticky": [1.0] * 5 + [-1.0] * 4 + [0.0],
        },
        "right": {"exact": [1] * 10, "sticky": [1] * 5 + [0] * 5},
    }
    odds = gather([line])
    assert odds.kept.sum() == 9  # the last item's edit has no effect
    assert odds.median == pytest.approx(0.25)
    assert odds.ratio == pytest.approx((5 * 1 + 4 * 3) / 36)
    assert odds.lost == (5, 10)
    low, high = odds.between()
    assert low == pytest.approx(0.25)
    assert high == pytest.approx(0.75)
    two = over_seeds([line, {**line, "seed": 1}])
    assert two.value == pytest.approx(0.25)
    assert (two.seeds, two.kept, two.items) == (2, 18, 20)
    few = {**line, "odds": {k: v[:5] for k, v in line["odds"].items()}}
    few["right"] = {k: v[:5] for k, v in line["right"].items()}
    assert math.isnan(over_seeds([few]).value)


def test_what_is_there_is_not_run_again() -> None:
    lines = [{"kind": "finished", "arm": "sticky", "seed": 0}]
    todo = stale.units(stale.FULL, None, (0, 1), lines)
    assert todo[0] == ("untrained", 0)
    assert ("sticky", 0) not in todo
    assert ("sticky", 1) in todo
    assert len(todo) == len(set(todo))
    assert todo.index(("sticky", 1)) < todo.index(("mixture", 0)) < todo.index(("sticky@copy", 0))
    with pytest.raises(SystemExit, match="no arm 'stiky'"):
        stale.units(stale.FULL, ["stiky"], (0,), lines)


@pytest.mark.engine
def test_bench_from_a_folder_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    plain().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    small = stale.Size(
        distances=(0, 50),
        several=(),
        between=(50,),
        items=4,
        templates=2,
        steps=10,
        seeds=(0,),
        arms=("untrained", "exact"),
    )
    monkeypatch.setattr(stale, "QUICK", small)
    monkeypatch.setattr("benchmarks._stale_training.BATCH", 2)
    raw, report = tmp_path / "raw.jsonl", tmp_path / "out.md"
    arguments = ["--quick", "--model", str(folder), "--raw", str(raw), "--report", str(report)]
    assert stale.main(arguments) == 0
    before = raw.read_text()
    lines = [json.loads(text) for text in before.splitlines()]
    (check,) = [one for one in lines if one["kind"] == "check"]
    assert check["largest_difference"] < 1e-3
    cells = Results(lines).cells("exact", 10)
    assert {(one["family"], one["distance"]) for one in cells} == {
        (name, at) for name in FAMILIES for at in (0, 50)
    }
    prose = [one for one in lines if one["kind"] == "prose" and one["arm"] == "exact"]
    assert all(one["tokens"] > one["loss_tokens"] > 0 for one in prose)
    text = report.read_text()
    assert "## What training repairs" in text
    assert report.with_suffix(".png").exists()
    assert stale.main(arguments) == 0  # resumed: nothing to do
    assert raw.read_text() == before
    with pytest.raises(SystemExit, match="untrained model"):
        stale.main(["--report-only", "--raw", str(tmp_path / "none"), "--report", str(report)])


@pytest.mark.engine
def test_no_engine_and_no_trainer_is_imported() -> None:
    script = (
        "import sys; from benchmarks import stale, _stale_training, _stale_report, _stale_check;"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM;"
        "print([m for m in ('vllm', 'trl', 'datasets', 'deepspeed', 'zmq') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(stale.__file__).parent.parent,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[]"
