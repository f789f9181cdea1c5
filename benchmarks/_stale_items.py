"""Edits as trajectories: what a cache holds after one, and after full recomputation.

An item is a text with a slot that was edited, and the answers that its states ask for. Each way to
answer it is a `Trajectory` whose passes say which KV they reused, so what is measured is what the
learner trains on: spans, then rows. Texts that items share are computed once in a row.

    unedited   one pass, the slot as it was before its last edit
    exact      one pass, the slot as it is: full recomputation
    sticky     a pass per state; a pass computes the slot, and all that follows the last token
               before its edit; everything else keeps its KV, whatever it was computed under
    lastM      sticky, but the last M tokens before an edit are computed anew
    restated   sticky, and the new state is said again before the answer
    says       sticky; not the answer, but the sentence that says the state again

KV is replaced token by token here (an engine's block size would round the slot up).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from benchmarks._stale_families import Family, Template
from benchmarks._stale_texts import HELDOUT_SENTENCES, TRAIN_SENTENCES
from dynatok_online.rows.plan import plan_rows
from dynatok_online.rows.row import Row
from dynatok_online.trajectory import RESPONSE, Pass, Reuse, Trajectory

EDITS = ("ab", "aba", "abc")
"""One edit; an edit taken back; two edits."""
CONDITIONS = ("unedited", "exact", "sticky")
REPAIRS = ("last8", "last32", "last128", "restated", "says")
MAX_ROW_TOKENS = 3072


class Encoder:
    """Text to tokens, piece by piece, never other than as a whole."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Token ids of one piece, without special tokens."""
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]

    def check(self, *pieces: str) -> None:
        """ValueError where the pieces have other tokens than the text that they make."""
        apart = [token for piece in pieces for token in self(piece)]
        if apart != self._tokenizer.encode("".join(pieces), add_special_tokens=False):
            raise ValueError(
                f"{pieces} have other tokens than the text that they make: move a blank from one "
                "piece to the next, or leave this model's tokenizer out"
            )


@dataclass(frozen=True)
class Scene:
    """A template with the text in between, before anybody says what the slot holds."""

    family: Family
    template: Template
    encode: Encoder
    sentences: tuple[str, ...]

    def parts(self, written: Sequence[str]) -> list[str]:
        """The text in between, in one part for each state that it was written under."""
        cuts = [round(i * len(self.sentences) / len(written)) for i in range(len(written) + 1)]
        return [
            "".join(_line(self.family, state, one) for one in self.sentences[a:b])
            for state, (a, b) in zip(written, pairwise(cuts), strict=True)
        ]

    def trajectory(
        self, states: Sequence[str], written: Sequence[str], cue: str, answer: str, last: int = 1
    ) -> Trajectory:
        """The scene under its `states`, a pass each, ending with `cue` and `answer`.

        `written`: the states that the parts of the text in between were written under; the last
        pass begins behind it. A single state is one pass over everything. `last`: how many tokens
        before its edit a pass computes.
        """
        encode, template = self.encode, self.template
        parts = self.parts(written)
        encode.check(template.head, states[-1], template.tail, *parts, cue, answer)
        head, tail, *slots = (
            np.array(encode(one), np.int32) for one in (template.head, template.tail, *states)
        )
        width = len(slots[0])
        if any(len(one) != width for one in slots):
            raise ValueError(f"the states {states} have different numbers of tokens")
        behind = [encode(part) for part in parts]
        response = [token for one in (*behind, encode(cue), encode(answer)) for token in one]
        ends = np.cumsum([len(one) for one in behind]).tolist() if len(states) > 1 else []
        passes: list[Pass] = []
        origin = np.zeros(0, np.int64)
        after = len(head) + width
        for k, (start, stop) in enumerate(pairwise([0, *ends, len(response)])):
            fed = after + len(tail) + start
            held = np.full(fed, k)
            if k:
                kept = max(after, fed - last)
                held[: len(head)] = origin[: len(head)]
                held[after:kept] = origin[after:kept]
            reuse = _runs(held, k)
            passes.append(
                Pass(
                    layout=(0, 2 + k, 1, RESPONSE),
                    states={"slot": states[k]},
                    start=start,
                    stop=stop,
                    num_cached_tokens=sum(run.stop - run.start for run in reuse),
                    reuse=reuse,
                )
            )
            origin = np.concatenate([held, np.full(stop - start, k)])
        return Trajectory(
            trajectory_id=f"{self.family.name}: {' '.join(states)}",
            pieces=(head, tail, *slots),
            response=np.array(response, np.int32),
            logprobs=np.full(len(response), np.nan, np.float32),
            passes=tuple(passes),
            policy="exact" if len(states) == 1 else "sticky",
        )


def _runs(origin: np.ndarray, k: int) -> tuple[Reuse, ...]:
    edges = [0, *(np.flatnonzero(np.diff(origin)) + 1).tolist(), len(origin)]
    return tuple(
        Reuse(int(origin[a]), a, b) for a, b in pairwise(edges) if b > a and origin[a] != k
    )


def _line(family: Family, state: str, sentence: str) -> str:
    return f"\n{state.strip()}: {sentence}" if family.carried else f" {sentence}"


def make_scene(family: Family, split: str, at: int, distance: int, encode: Encoder) -> Scene:
    """The scene of template `at`, with about `distance` tokens of text in between.

    Whole sentences, as many as come nearest to it; templates begin at different ones.
    """
    template = family.templates(split)[at]
    pool = TRAIN_SENTENCES if split == "train" else HELDOUT_SENTENCES
    entity = template.entity
    texts = [one.format(e=entity, E=entity[0].upper() + entity[1:]) for one in pool]
    first = 7 * at % len(texts)
    texts = texts[first:] + texts[:first]
    state = next(iter(family.values(split)))
    ends = np.cumsum([0, *(len(encode(_line(family, state, one))) for one in texts)])
    count = int(np.abs(ends - distance).argmin())
    if distance > ends[-1] + 20:
        raise ValueError(f"there is text for {ends[-1]} tokens, not for {distance}")
    return Scene(family, template, encode, tuple(texts[:count]))


def draw_states(scene: Scene, split: str, edits: str, count: int, seed: int) -> list[list[str]]:
    """Up to `count` different sequences of states, each step between two answers.

    Only states of one number of tokens meet, as a slot keeps its width: nothing is filled up.
    """
    family, encode = scene.family, scene.encode
    values = list(family.values(split))
    found = []
    for states in permutations(values, 3 if edits == "abc" else 2):
        widths = {len(encode(one)) for one in states}
        answers = [family.answer(scene.template, one) for one in states]
        if len(widths) == 1 and all(a != b for a, b in pairwise(answers)):
            found.append([*states, states[0]] if edits == "aba" else list(states))
    rng = random.Random(zlib.crc32(f"{family.name} {scene.template.head} {edits} {seed}".encode()))
    rng.shuffle(found)
    return found[:count]


@dataclass(frozen=True)
class Way:
    """One way to answer an item: its trajectories, by what is answered."""

    new: int
    """Index of the trajectory that answers what the last state asks for."""
    old: tuple[int, ...]
    """Those that answer what earlier states asked for, the one before the last edit first."""


@dataclass(frozen=True)
class Group:
    """Items of one family, distance and number of edits, as rows ready to run."""

    family: str
    distance: int
    edits: str
    states: tuple[tuple[str, ...], ...]
    """[n] the states of each item."""
    between: float
    """Mean number of tokens between the slot and the cue."""
    ways: dict[str, list[Way]]
    """Condition -> [n] how each item is answered under it."""
    rows: list[Row]
    """Targets are the tokens of answers alone."""
    count: int
    """Trajectories."""

    @property
    def tokens(self) -> int:
        """How many tokens the rows run."""
        return sum(row.tokens for row in self.rows)


def make_group(
    family: Family,
    distance: int,
    edits: str,
    encode: Encoder,
    conditions: Sequence[str],
    *,
    count: int,
    split: str = "heldout",
    templates: int = 3,
) -> Group:
    """`count` items of each of the first `templates` templates."""
    known: dict[tuple[object, ...], int] = {}
    trajectories: list[Trajectory] = []
    weights: list[np.ndarray] = []
    ways: dict[str, list[Way]] = {name: [] for name in conditions}
    items: list[tuple[str, ...]] = []
    between: list[int] = []

    def index(scene: Scene, *how: Any) -> int:
        key = (id(scene.template), *how)
        if key not in known:
            known[key] = len(trajectories)
            trajectories.append(scene.trajectory(*how))
            weights.append(answer_weights(trajectories[-1], len(encode(how[3]))))
        return known[key]

    for at in range(min(templates, len(family.templates(split)))):
        scene = make_scene(family, split, at, distance, encode)
        template = scene.template
        for states in draw_states(scene, split, edits, count, seed=0):
            *written, new = states
            answers = [family.answer(template, one) for one in reversed(states)]
            wrong = tuple(dict.fromkeys(one for one in answers[1:] if one != answers[0]))
            items.append(tuple(states))
            between.append(
                len(encode(template.tail)) + sum(map(len, map(encode, scene.parts(written))))
            )
            for name in conditions:
                cue, last, passes = template.cue, 1, tuple(states)
                texts = (answers[0], *wrong)
                if name in ("unedited", "exact"):
                    passes = (states[-2],) if name == "unedited" else (new,)
                elif name.startswith("last"):
                    last = int(name.removeprefix("last"))
                elif name == "restated":
                    cue = template.recall + new + template.recall_end + template.cue
                elif name == "says":
                    cue = template.recall
                    texts = tuple(dict.fromkeys(s + template.recall_end for s in reversed(states)))
                first, *others = (
                    index(scene, passes, tuple(written), cue, text, last) for text in texts
                )
                ways[name].append(Way(first, tuple(others)))
    return Group(
        family=family.name,
        distance=distance,
        edits=edits,
        states=tuple(items),
        between=float(np.mean(between)),
        ways=ways,
        rows=[keep_targets(row) for row in plan_rows(trajectories, weights, MAX_ROW_TOKENS)],
        count=len(trajectories),
    )


def answer_weights(trajectory: Trajectory, tokens: int) -> np.ndarray:
    """[R] 1 for the last `tokens` of the response, 0 before."""
    weights = np.zeros(len(trajectory.response), np.float32)
    weights[len(weights) - tokens :] = 1
    return weights


def keep_targets(row: Row) -> Row:
    """The row without targets of weight 0: no logits are made for them."""
    kept = np.flatnonzero(row.weights > 0)
    return replace(
        row,
        loss_positions=row.loss_positions[kept],
        **row.of_targets(kept),
    )
