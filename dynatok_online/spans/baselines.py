"""The known ways to train on the same trajectories, listed as spans.

Invariant: each text is one span that sees only itself, nothing is merged, and every response
token is a target once. Because rows, attention and logits are then the same code as for spans,
a comparison of speed compares the methods.

    truncated   one text per prompt state, prompt and response up to the end of its last pass
    snapshot    one text per prompt state with the whole response; loss on its own passes only
    static      one text: the last state with the whole response, loss on all of it
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynatok_online.spans.build import Spans
from dynatok_online.trajectory import RESPONSE, TokenIds, Trajectory


def truncated_spans(trajectories: Sequence[Trajectory]) -> Spans:
    """One truncated pass per prompt state: `sum(S + D + e_k)` tokens for K states."""
    return _list_texts(trajectories, whole=False)


def snapshot_spans(trajectories: Sequence[Trajectory]) -> Spans:
    """Snapshot masking: the whole text in each state, `K (S + D + R)` tokens for K states."""
    return _list_texts(trajectories, whole=True)


def static_spans(trajectories: Sequence[Trajectory]) -> Spans:
    """Plain SFT on the text that was left in the end: its prompt, then the whole response."""
    texts, losses, names, responses = [], [], [], []
    for t, trajectory in enumerate(trajectories):
        total = len(trajectory.response)
        sampled = [k for k, one in enumerate(trajectory.passes) if one.stop > one.start]
        if not sampled:
            continue
        layout = trajectory.passes[sampled[-1]].layout
        prompt = [trajectory.pieces[i] for i in layout if i != RESPONSE]
        text = np.concatenate([*prompt, trajectory.response])[:-1]
        texts.append(text)
        losses.append([np.arange(len(text) - total, len(text))])
        responses.append([np.arange(total)])
        names.append((t, sampled[-1]))
    return _spans(texts, losses, responses, names)


def _list_texts(trajectories: Sequence[Trajectory], *, whole: bool) -> Spans:
    texts, losses, names, responses = [], [], [], []
    for t, trajectory in enumerate(trajectories):
        for group in _same_text(trajectory):
            last = trajectory.passes[group[-1]]
            stop = len(trajectory.response) if whole else last.stop
            fed = trajectory.fed(group[-1])
            texts.append(np.concatenate([fed, trajectory.response[last.start : stop]])[:-1])
            names.append((t, group[-1]))
            index = [
                np.arange(trajectory.passes[k].start, trajectory.passes[k].stop) for k in group
            ]
            responses.append(index)
            # All passes of a group feed the response at the same place.
            losses.append([one + len(fed) - last.start - 1 for one in index])
    return _spans(texts, losses, responses, names)


def _same_text(trajectory: Trajectory) -> list[list[int]]:
    """Passes in one prompt state, whose texts are prefixes of each other: a toggle pays once.

    Where something stands after the response so far, passes at different places of the response
    are different texts even in one state.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for k, one in enumerate(trajectory.passes):
        if one.stop == one.start:
            continue
        after = one.layout[one.layout.index(RESPONSE) + 1 :]
        late = any(len(trajectory.pieces[i]) for i in after)
        groups.setdefault((one.layout, k if late else None), []).append(k)
    return list(groups.values())


def _spans(
    texts: list[TokenIds],
    losses: list[list[np.ndarray]],
    responses: list[list[np.ndarray]],
    names: list[tuple[int, int]],
) -> Spans:
    lengths = np.array([len(text) for text in texts], np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    count = len(texts)
    counts = [sum(len(one) for one in group) for group in losses]
    offsets = np.repeat(bounds[:-1], counts)
    none = np.zeros(0, np.int64)
    flat = [one for group in losses for one in group]
    index = [one for group in responses for one in group]
    return Spans(
        input_ids=np.concatenate([np.zeros(0, np.int32), *texts]),
        position_ids=np.concatenate([none, *(np.arange(n) for n in lengths)]).astype(np.int32),
        bounds=bounds,
        seen_bounds=np.zeros(count + 1, np.int64),
        seen=none,
        reader_bounds=np.arange(count + 1),
        reader_spans=np.arange(count),
        reader_trajectory=np.array([t for t, _ in names], np.int64),
        reader_pass=np.array([k for _, k in names], np.int64),
        loss_positions=np.concatenate([none, *flat]) + offsets,
        loss_reader=np.repeat(np.arange(count), counts),
        response_index=np.concatenate([none, *index]),
    )
