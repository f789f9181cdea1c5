"""Sample tasks under edits with a plain loop and a real KV cache: any causal model, no engine.

The rows of a batch step together, one token at a time; a row's KV lies at the column that is its
position. An edit computes the positions that `scripted.Script` names and puts their keys and
values into the row's columns, so what is left there is what an engine with this reuse policy would
hold: log-probabilities are those of the trajectory's spans. Rows that are edited at one index are
computed together.

    encode = Encoder.of(tokenizer)
    sample_trajectories(model, tasks, encode, stop={encode.turn_stop}, reuse="sticky")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynatok_online.attention.turning import turning_of
from dynatok_online.policy import parse_policy
from dynatok_online.tasks.rendering import renderer_of
from dynatok_online.tasks.scripted import Script
from dynatok_online.tasks.task import Task
from dynatok_online.trajectory import RESPONSE, TokenIds, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECK_EVERY = 8
"""Tokens between two looks at whether every row has ended: a look waits for the device."""


def sample_trajectories(
    model: PreTrainedModel,
    tasks: Sequence[Task],
    encode: Callable[[str], list[int]],
    *,
    stop: Collection[int] = (),
    reuse: str | Sequence[str] = "exact",
    block_size: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    forced: Sequence[Mapping[int, Sequence[int]]] = (),
    say: Callable[[int, int], None] = lambda index, length: None,
) -> list[Trajectory]:
    """One response per task, in one batch, with what each pass reused and computed.

    A response ends with the first token of `stop` (which it keeps), or after `task.max_tokens`;
    edits that lie behind its end are left out. Log-probabilities are the model's own, whatever the
    temperature. `reuse`: one for all, or one for each task. `forced`: for each task, response index
    -> token ids that stand there instead of sampled ones. `say` is told every index. Raises
    ValueError for a model whose layers have sliding windows shorter than the texts.
    """
    each = [reuse] * len(tasks) if isinstance(reuse, str) else reuse
    scripts = [
        Script(task, encode, reuse=one, block_size=block_size)
        for task, one in zip(tasks, each, strict=True)
    ]
    length = max(task.max_tokens for task in tasks)
    prompts = [script.begin(np.zeros(0, np.int32))[0] for script in scripts]
    columns = max(_room(*one, encode) for one in zip(tasks, each, strict=True)) + length
    loop = _Loop(model, len(tasks), columns)
    if any(parse_policy(one).turns for one in each):
        loop.turning.check()
    device = loop.device
    given = torch.full((len(tasks), length), -1)
    for row, texts in enumerate(forced):
        for index, tokens in texts.items():
            given[row, index : index + len(tokens)] = torch.as_tensor(tokens)[: length - index]
    given = given.to(device)
    edits: dict[int, list[int]] = {}
    for row, task in enumerate(tasks):
        for at in {edit.index for edit in task.edits}:
            edits.setdefault(at, []).append(row)
    limits = torch.tensor([task.max_tokens for task in tasks], device=device)
    stops = torch.tensor(sorted(stop), device=device)
    generator = torch.Generator(device).manual_seed(seed)
    response = torch.zeros((len(tasks), length), dtype=torch.long, device=device)
    logprobs = torch.zeros((len(tasks), length), device=device)
    lengths = limits.clone()

    with torch.inference_mode():
        everything = list(range(len(tasks)))
        loop.compute(everything, prompts, [[(0, len(prompt))] for prompt in prompts])
        for index in range(length):
            if index % CHECK_EVERY == 0 and bool((lengths <= index).all()):
                break
            if rows := edits.get(index, []):
                ended = (lengths[rows] <= index).tolist()
                if rows := [row for row, over in zip(rows, ended, strict=True) if not over]:
                    written = response[rows, :index].cpu().numpy().astype(np.int32)
                    begun = [scripts[r].begin(w) for r, w in zip(rows, written, strict=True)]
                    for row in rows:
                        loop.move(row, scripts[row].moves)
                    loop.compute(rows, [fed for fed, _ in begun], [runs for _, runs in begun])
            logits = loop.logits.float()
            drawn = torch.multinomial(
                (logits / temperature).softmax(-1), 1, generator=generator
            ).squeeze(1)
            drawn = torch.where(given[:, index] >= 0, given[:, index], drawn)
            logprobs[:, index] = logits.log_softmax(-1).gather(1, drawn[:, None]).squeeze(1)
            response[:, index] = drawn
            ends = torch.isin(drawn, stops) & (lengths > index)
            lengths = torch.where(ends, torch.full_like(lengths, index + 1), lengths)
            loop.step(drawn)
            say(index, length)
    return [
        script.finish(tokens[:n], scores[:n], stopped=tokens[n - 1] in stop)
        for script, tokens, scores, n in zip(
            scripts, response.tolist(), logprobs.tolist(), lengths.tolist(), strict=True
        )
    ]


def _room(task: Task, reuse: str, encode: Callable[[str], list[int]]) -> int:
    """Tokens of the longest prompt that the task can have: every slot in its longest state."""
    renderer = renderer_of(task, encode, fixed_width=parse_policy(reuse).fixed_width)
    longest: dict[str, str] = {}
    for slot, state in task.all_states():
        if slot not in longest or renderer.length(slot, state.text) > renderer.length(
            slot, longest[slot]
        ):
            longest[slot] = state.text
    return sum(len(renderer.pieces[i]) for i in renderer.layout(longest) if i != RESPONSE)


class _Loop:
    """The cache of a batch of rows, and the logits of the token that each row samples next."""

    def __init__(self, model: PreTrainedModel, rows: int, columns: int) -> None:
        _refuse_windows(model, columns)
        self._model = model
        self.turning = turning_of(model)
        self.device = model.device
        self._cache = _columns(model, rows, columns)
        self._dump = columns
        self._recorded: Any = None
        self._at = torch.zeros(rows, dtype=torch.long, device=self.device)
        """[rows] the column of the next token."""
        self.logits = torch.zeros(
            (rows, model.config.vocab_size), dtype=model.dtype, device=self.device
        )

    def move(self, row: int, moves: Sequence[tuple[int, int, int]]) -> None:
        """Bring what a row keeps to the columns where it stands now: (start, stop, by)."""
        if not moves:
            return
        to = np.concatenate([np.arange(start, stop) for start, stop, _ in moves])
        by = np.concatenate([np.full(stop - start, shift) for start, stop, shift in moves])
        columns, shifts = (torch.from_numpy(one).to(self.device) for one in (to, by))
        for key, value in self._cache.held.values():
            # [columns, G, D]; read as a whole before anything is written
            turned = self.turning.turn(key[row, columns - shifts].transpose(0, 1), shifts)
            key[row, columns] = turned.transpose(0, 1)
            value[row, columns] = value[row, columns - shifts]

    def compute(
        self,
        rows: Sequence[int],
        fed: Sequence[TokenIds],
        runs: Sequence[Sequence[tuple[int, int]]],
    ) -> None:
        """Compute these positions of what each row was fed; the last one gives its logits."""
        which = [np.concatenate([np.arange(*run) for run in one]) for one in runs]
        width = max(map(len, which))
        ids = np.zeros((len(rows), width), np.int64)
        columns = np.full((len(rows), width), self._dump, np.int64)
        for i, (tokens, at) in enumerate(zip(fed, which, strict=True)):
            ids[i, : len(at)], columns[i, : len(at)] = tokens[at], at
        chosen = torch.tensor(rows, device=self.device)
        last = torch.tensor([len(at) - 1 for at in which], device=self.device)
        self.logits[chosen] = self._forward(
            torch.from_numpy(ids).to(self.device),
            torch.from_numpy(columns).to(self.device),
            None if len(rows) == len(self._at) else chosen,
            last,
        )
        self._at[chosen] = torch.tensor([len(tokens) for tokens in fed], device=self.device)

    def step(self, tokens: torch.Tensor) -> None:
        """Feed one more token to every row."""
        if self._recorded is None:
            self.logits = self._forward(tokens[:, None], self._at[:, None], None, None)
            self._recorded = self._record(tokens) if self.device.type == "cuda" else False
        elif self._recorded is False:
            self.logits = self._forward(tokens[:, None], self._at[:, None], None, None)
        else:
            graph, ids, at, out = self._recorded
            ids.copy_(tokens[:, None])
            at.copy_(self._at[:, None])
            graph.replay()
            self.logits = out.clone()
        self._at = (self._at + 1).clamp(max=self._dump)

    def _record(self, tokens: torch.Tensor) -> Any:
        """The step that was just made as a CUDA graph (with its inputs and its output), which
        launches hundreds of kernels at once; False where that gives other logits, or an error."""
        ids, at = tokens[:, None].clone(), self._at[:, None].clone()
        try:
            graph = torch.cuda.CUDAGraph()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._forward(ids, at, None, None)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                out = self._forward(ids, at, None, None)
            graph.replay()
            apart = float((out.float() - self.logits.float()).abs().max())
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph, step by step instead: {error}", stacklevel=2)
            return False
        if not apart <= 0.05 * float(self.logits.float().abs().max()):
            warnings.warn(f"a CUDA graph gave other logits, {apart} apart", stacklevel=2)
            return False
        return graph, ids, at, out

    def _forward(
        self,
        ids: torch.Tensor,
        columns: torch.Tensor,
        rows: torch.Tensor | None,
        last: torch.Tensor | None,
    ) -> torch.Tensor:
        """[R, Q] tokens at their columns -> [R, V] logits of query `last` of each row.

        A query sees its row's columns up to its own. Filling goes to the dump column, which no
        token sees.
        """
        stop = self._dump + 1
        self._cache.rows, self._cache.columns = rows, columns
        seen = torch.arange(stop, device=self.device) <= columns[:, :, None]
        hidden = self._model.base_model(
            input_ids=ids,
            attention_mask=seen[:, None],
            position_ids=columns,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        if last is None:
            hidden = hidden[:, -1]
        else:
            hidden = hidden[torch.arange(len(hidden), device=self.device), last]
        head: Any = self._model.get_output_embeddings()
        logits: torch.Tensor = head(hidden)
        return logits


def _columns(model: PreTrainedModel, rows: int, columns: int) -> Any:
    """A cache whose writes go to `columns` of `rows` (all rows for None), and whose reads give
    these rows' columns, all of them."""
    from transformers import DynamicCache

    class Columns(DynamicCache):
        rows: torch.Tensor | None
        columns: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
            self._all = torch.arange(rows, device=model.device)

        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 0

        def update(
            self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if layer not in self.held:
                # One column more than positions: the dump.
                shape = (rows, columns + 1, key.shape[1], key.shape[3])
                self.held[layer] = (key.new_zeros(shape), value.new_zeros(shape))
            which = self._all if self.rows is None else self.rows
            out = []
            for held, new in zip(self.held[layer], (key, value), strict=True):
                held[which[:, None], self.columns] = new.transpose(1, 2)
                out.append((held if self.rows is None else held[which]).transpose(1, 2))
            return out[0], out[1]

    return Columns()


def _refuse_windows(model: PreTrainedModel, columns: int) -> None:
    config = model.config
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ()
    if window and window < columns and (not layers or "sliding_attention" in layers):
        raise ValueError(
            f"{type(model).__name__} has windows of {window} tokens, but the texts have up to "
            f"{columns}; sample shorter texts, or use the engine"
        )
