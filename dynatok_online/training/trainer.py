"""TRL's `SFTTrainer` on trajectories: prompts that changed while the response was written.

The loss of an optimizer step is one sum over all loss tokens of the global batch, weight times
cross-entropy, divided by their number: over every row, micro step and rank alike. So neither
gradient accumulation, nor the number of ranks, nor the way trajectories are packed into rows
changes it. Only the balance loss of a mixture of experts (`router_aux_loss_coef`, by default the
model's own; 0 turns it off) depends on rows: it is about the tokens that were routed together, all
of them real, and counts by a row's share of the loss tokens.

A *micro batch* (`per_device_train_batch_size` trajectories) becomes one or more rows of at most
`max_row_tokens`. Each row runs forward and backward alone, so a row's length bounds the memory;
with `memory="pass"` its longest pass does, whatever else is in the row: see `parts`.

    trainer = DynamicSFTTrainer(
        model="Qwen/Qwen3-0.6B",
        args=DynamicSFTConfig(output_dir="out", max_steps=100),
        train_dataset=load_dataset("json", data_files="trajectories.jsonl", split="train"),
    )
    trainer.train()

Rows of the dataset are what `dynatok_online.trajectory.to_row` writes. A list, or any other
iterable, of `Trajectory` objects does as well.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parallel import DistributedDataParallel
from trl import SFTTrainer

from dynatok_online import attention
from dynatok_online.memory import peak_memory
from dynatok_online.objectives.lagged import Lagged
from dynatok_online.objectives.targets import Need, Targets
from dynatok_online.rows.parts import Part, cut_row
from dynatok_online.rows.row import Row, empty_row
from dynatok_online.training.by_lag import ByLag, numbers
from dynatok_online.training.chunk import Chunk
from dynatok_online.training.collator import TrajectoryCollator
from dynatok_online.training.config import DynamicSFTConfig
from dynatok_online.training.ghosts import Shared, context_logprobs
from dynatok_online.training.groups import advantages, with_advantages
from dynatok_online.training.halves import SHARDED, Halves, draw
from dynatok_online.training.head import ChunkedHead
from dynatok_online.training.lagged import LaggedCallback
from dynatok_online.training.masked import hide, masking_token
from dynatok_online.training.providers import Provider, complete
from dynatok_online.training.reference import AT, Reference
from dynatok_online.training.scored import Scoring
from dynatok_online.training.sources import (
    as_dataset,
    no_tokenizer,
    placeholder,
    thought_marks,
    tokenizer_of,
)

__all__ = ["DynamicSFTConfig", "DynamicSFTTrainer"]

Batch = dict[str, Any]

_SUMS = (
    *("loss_tokens", "weight", "drift", "drift_tokens", "tokens", "truncated_tokens", "rows"),
    *("aux_loss", "entropy"),
)


class DynamicSFTTrainer(SFTTrainer):
    """Supervised fine-tuning on trajectories; see the module's docstring.

    Logged with the loss: `packing_ratio` (tokens run against one truncated pass per state),
    `logprob_drift` (mean absolute difference to the recorded log-probabilities, over tokens of
    every weight version), `weight_mean`, `tokens_per_second`, `loss_tokens_per_second`, `entropy`
    (of the model's distribution at the targets, in nats, a mean), `importance_ratio` and
    `policy_kl` against who sampled the targets (`by_lag`), `peak_memory_mb` and, on a GPU,
    `peak_gpu_memory_mb` (of the rank with most); for a mixture of experts `aux_loss`, its balance
    loss.
    """

    _tag_names = ("trl", "dynatok-online")
    loss_is_scaled_for_ga = True
    _publishes = False
    """Whether actors get the weights while they are trained."""

    def __init__(
        self,
        model: Any,
        args: DynamicSFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        for name in ("data_collator", "formatting_func", "compute_loss_func", "compute_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"DynamicSFTTrainer takes no {name}: trajectories are collated, and their "
                    "loss is computed, by the trainer itself"
                )
        if args is None:
            args = DynamicSFTConfig("trainer_output")
        if not isinstance(args, DynamicSFTConfig):
            raise ValueError(
                f"args must be a DynamicSFTConfig, got {type(args).__name__}; it takes every "
                "argument of SFTConfig"
            )
        if processing_class is None:
            processing_class = tokenizer_of(model)
        train = as_dataset(train_dataset, "train_dataset")
        if not hasattr(train, "__len__") and args.max_steps <= 0:
            raise ValueError(
                "train_dataset has no length, so the trainer cannot know when to stop; set "
                "max_steps in DynamicSFTConfig"
            )
        self.objective = args.make_objective()
        # accelerate would send batches of an iterable from rank 0, which only works for tensors.
        args.accelerator_config.dispatch_batches = False
        super().__init__(
            model=model,
            args=args,
            data_collator=TrajectoryCollator(
                args.strategy,
                args.max_row_tokens,
                self.objective,
                thought_marks(processing_class) if args.skip_thoughts else None,
            ),
            # TRL looks at the first row before training. A stream may have none yet.
            train_dataset=train if isinstance(train, datasets.Dataset) else placeholder(),
            eval_dataset=None,
            processing_class=processing_class or no_tokenizer(),
            **kwargs,
        )
        self.train_dataset = train
        if eval_dataset is not None:
            self.eval_dataset = as_dataset(eval_dataset, "eval_dataset")
        if processing_class is None:
            self.processing_class = None  # nothing to save beside the model
        base = self.accelerator.unwrap_model(self.model)
        base = base.get_base_model() if hasattr(base, "get_base_model") else base
        if "logits_to_keep" not in inspect.signature(type(base).forward).parameters:
            raise ValueError(
                f"{type(base).__name__} does not take logits_to_keep, so its logits cannot be "
                "computed at loss positions only; use a causal language model of transformers "
                "that does"
            )
        attention.prepare(base, args.attention)
        plugin = self.accelerator.state.deepspeed_plugin
        self._sharded = self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
        self._base = base
        self._head = ChunkedHead(base)
        self._reference: Reference | None = None
        self.providers = self.make_providers()
        """What brings the columns that an objective needs and a model computes."""
        shared: list[Need] = ["context"] if self._has_ghosts else []
        if args.strategy == "packed":
            shared.append("verdicts")
        self.objective.check((*self.providers, *shared, "recorded", "groups"))
        if self.objective.masked is not None:
            vocabulary = base.get_input_embeddings().weight.shape[0]
            self._mask = masking_token(self.objective.masked, processing_class, vocabulary)
        self.past = Lagged(self.objective.watches, self.args.device)
        self.add_callback(LaggedCallback(self.past, self._total))
        if args.memory == "pass" and self._sharded:
            raise ValueError(
                "memory='pass' cannot be combined with weights that are sharded over ranks (ZeRO 3 "
                "or FSDP): ranks would gather them in different orders, and wait for each other "
                "for ever; use ZeRO 2, or leave memory at row and lower max_row_tokens"
            )
        if args.halves:
            if self._sharded:
                raise ValueError(SHARDED)
            draw(base, "0")  # or say what is wrong before anything starts
            self.add_callback(Halves(args.halves, args.seed))
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=self.args.device)
        self._by_lag = ByLag(self.args.device)
        self.newest: int | None = None
        """The weight version that was published last, where weights are."""
        self.timings = {"plan": 0.0, "forward_backward": 0.0}
        """Seconds spent on each since the trainer was made."""
        self._logged_at = 0.0

    def make_providers(self) -> dict[Need, Provider]:
        """What brings each need of `self.objective` that a model computes."""
        needed = "context" in self.objective.needs and self._has_ghosts
        found: dict[Need, Provider] = {}
        if needed and not self._shares:
            found["context"] = self.context
        if "reference" in self.objective.needs:
            name = self.objective.of_need("reference")
            if self._sharded:
                raise ValueError(
                    f"objective {name} needs a reference, which cannot be run beside weights that "
                    "are sharded over ranks (ZeRO 3 or FSDP); use ZeRO 2"
                )
            model = self.accelerator.unwrap_model(self.model)
            self._reference = Reference(
                self.args.reference, model, self.args.attention, self._publishes
            )
            found["reference"] = self._reference
        if self.objective.whole() and not self.is_fsdp_enabled:
            of = None if self._reference is None else self._reference.logprobs
            found["attention"] = Scoring(self.objective, self._base, self._head, of)
        return found

    @property
    def _has_ghosts(self) -> bool:
        """Only spans have ghosts; and FSDP's weights are there in a forward of its own alone."""
        return self.args.strategy == "packed" and not self.is_fsdp_enabled

    @property
    def _shares(self) -> bool:
        """Whether ghosts run in the middle of a row's forward, on its KV: not where the weights
        are in parts, or the row is run in parts."""
        return self.args.memory == "row" and not self._sharded and self._head.chunked

    def context(self, model: torch.nn.Module, row: Row) -> dict[str, npt.NDArray[np.float32]]:
        """[M] log-probability of each target under the prompt before the last edit (ghosts)."""
        if self._sharded and row.ghosts is None:
            # Ranks gather weights together, so all must run equally often.
            self._base(**attention.inputs(empty_row(), self.args.device), use_cache=False)
        found = context_logprobs(self._base, self._head, row)
        return {"context": found.float().cpu().numpy()}

    # ---- batches ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The micro batches of one optimizer step, and their number of loss tokens, globally.

        Under ZeRO every backward is a round of collectives, so all ranks must run equally many:
        ranks with fewer add rows of one token and no target.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:  # or transformers asks again, up to max_steps times
            self.control.should_epoch_stop = True
        else:
            if "groups" in self.objective.needs:
                self._compare_groups(batches, device)
            self._fill(batches)
        return batches, count

    def _fill(self, batches: list[Batch]) -> None:
        """All ranks: rows of nothing where another rank has more of them."""
        if self.args.world_size == 1:
            return
        counts = torch.tensor([self._backwards(batch) for batch in batches])
        most = self.accelerator.gather(counts[None].to(self.args.device)).amax(0).tolist()
        for batch, want in zip(batches, most, strict=True):
            batch["rows"] += [empty_row()] * (want - self._backwards(batch))

    def _compare_groups(self, batches: list[Batch], device: torch.device) -> None:
        """Advantages of all passes of one optimizer step into their rows."""
        keys = torch.tensor([key for one in batches for key in one["groups"]], device=device)
        scores = torch.tensor([score for one in batches for score in one["scores"]], device=device)
        every = [keys, scores]
        if self.args.world_size > 1:
            pad = self.accelerator.pad_across_processes
            every = [
                self.accelerator.gather(pad(one, pad_index=empty))
                for one, empty in ((keys, 0), (scores, float("nan")))
            ]
        found = advantages(keys, scores, every[0], every[1])
        pieces = found.split([len(one["groups"]) for one in batches])
        for batch, piece in zip(batches, pieces, strict=True):
            batch["rows"] = [with_advantages(row, piece) for row in batch["rows"]]

    def _get_num_items_in_batch(
        self, batch_samples: list[Batch], device: torch.device
    ) -> torch.Tensor | None:
        if not batch_samples:
            return None
        count = torch.tensor(sum(batch["loss_tokens"] for batch in batch_samples), device=device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def _parts(self, batch: Batch) -> list[Part]:
        rows = batch["rows"]
        if self.args.memory == "row":
            return [Part(row) for row in rows]
        return [part for row in rows for part in cut_row(row)]

    def _backwards(self, batch: Batch) -> int:
        return sum(part.count for part in self._parts(batch))

    # ---- loss ----

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Forward and backward of every part of one micro batch; gradients meet at the last."""
        began = time.perf_counter()
        model.train()
        inputs = {**inputs, "rows": self._completed(model, inputs["rows"])}
        parts = self._parts(inputs)
        nested = self.args.memory == "pass"
        total = torch.zeros((), device=self.args.device)

        def forward(part: Part, layout: attention.Layout) -> torch.Tensor:
            with self._gradients_stay_here(model, nested or part is not parts[-1]):
                loss = self._row_loss(model, part.row, num_items_in_batch, layout)
            total.add_(loss.detach())
            return loss

        def backward(part: Part, loss: torch.Tensor) -> None:
            last = part is parts[-1]
            meet = nested and last and self.accelerator.sync_gradients
            if meet and isinstance(model, DistributedDataParallel):
                # DDP expects that gradients meet in the backward right after a forward.
                model.reducer.prepare_for_backward([loss])
            scale = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
            with self._gradients_stay_here(model, not last):
                self.accelerator.backward(loss, **scale)

        with self.maybe_activation_offload_context:
            for part in parts:
                attention.run_part(part, forward, backward)
        self._count(inputs)
        self.timings["plan"] += inputs["plan_seconds"]
        self.timings["forward_backward"] += time.perf_counter() - began
        return total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Sum over the rows of one micro batch, divided by `num_items_in_batch`.

        Without it, by the number of the micro batch's own loss tokens.
        """
        if return_outputs:
            raise ValueError("DynamicSFTTrainer returns losses only; logits are never all built")
        count = inputs["loss_tokens"] if num_items_in_batch is None else num_items_in_batch
        globally = num_items_in_batch is not None
        rows = self._completed(model, inputs["rows"])
        return sum(self._row_loss(model, row, count, globally=globally) for row in rows)

    def _row_loss(
        self,
        model: torch.nn.Module,
        row: Row,
        count: torch.Tensor | int | None,
        layout: attention.Layout | None = None,
        *,
        globally: bool = True,
    ) -> torch.Tensor:
        """Weighted cross-entropy of one row over `count`, scaled for the average over ranks."""
        device = self.args.device
        ids = attention.to_device(row.targets, device, torch.long)
        columns = self._columns(row)
        self.past.listening = model.training
        shared = None
        if "context" in self.objective.needs and "context" not in self.providers:
            shared = Shared(self._base, self._head, row)
            layout = shared.layout

        def losses(logits: Chunk, piece: slice) -> torch.Tensor:
            known = {name: one[piece] for name, one in columns.items()}
            if shared is not None:
                known["context"] = shared.found[piece]
            targets = Targets(logits, ids[piece], known, lambda: self._reference_logits(known))
            out, weights = self.objective.weighted(targets, self.past)
            if model.training:
                self._watch(targets, weights)
            return out

        # One forward, logits at the M loss positions only, some at a time.
        given = attention.inputs(row, device, layout)
        with shared or nullcontext():
            loss, out = self._head.run(lambda: model(**given, use_cache=False), losses)
        if self.aux_loss_enabled:
            balance = out.aux_loss * len(row.targets)
            loss = loss + self.router_aux_loss_coef * balance
            if model.training:
                self._sums[_SUMS.index("aux_loss")] += balance.detach()
        loss = loss / torch.as_tensor(count, device=device).clamp(min=1)
        # DDP and DeepSpeed average gradients over ranks; the count is already the global one.
        return loss * self.accelerator.num_processes if globally else loss

    @contextmanager
    def _gradients_stay_here(self, model: torch.nn.Module, stay: bool) -> Iterator[None]:
        """While `stay`, backward adds to the gradients, and ranks exchange nothing they can
        exchange later; DeepSpeed takes no step."""
        if not stay:
            yield
            return
        state = self.accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(before)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Loss only."""
        with torch.no_grad():
            return self.compute_loss(model, inputs), None, None

    # ---- numbers ----

    def _completed(self, model: torch.nn.Module, rows: list[Row]) -> list[Row]:
        """Rows of one micro batch, with what the objective needs."""
        masked = self.objective.masked
        if masked is not None and model.training:
            done = self.state.global_step / max(1, self.state.max_steps)
            seed = self.args.seed * 1_000_003 + self.state.global_step
            rows = [hide(row, masked.chance(done), self._mask, seed) for row in rows]
        if self._reference is not None:
            self._reference.begin()
        with self.accelerator.autocast():
            return [complete(model, row, self.providers) for row in rows]

    def _total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its sum over ranks."""
        if self.args.world_size == 1:
            return tensor
        total: torch.Tensor = self.accelerator.reduce(tensor, "sum")
        return total

    def _columns(self, row: Row) -> dict[str, torch.Tensor]:
        """[M] each: what `Targets` reads."""
        own: dict[str, npt.NDArray[Any]] = {
            "weight": row.weights,
            "recorded": row.logprobs,
            "version": row.versions,
            "trajectory": row.trajectory,
            "index": row.response_index,
        }
        device = self.args.device
        return {
            name: attention.to_device(one, device) for name, one in {**own, **row.columns}.items()
        }

    def _reference_logits(self, known: dict[str, torch.Tensor]) -> torch.Tensor:
        assert self._reference is not None
        return self._reference.logits(known[AT])

    def _watch(self, targets: Targets, weights: torch.Tensor) -> None:
        recorded = targets.recorded
        known = recorded.isfinite()
        drift = (targets.logp.detach() - recorded).abs().where(known, 0).sum()
        add = {"weight": weights.sum(), "drift": drift, "drift_tokens": known.sum()}
        add["entropy"] = targets.entropy.sum()
        for name, value in add.items():
            self._sums[_SUMS.index(name)] += value
        self._by_lag.watch(targets.logp.detach(), recorded, targets.version, self.newest)

    def _count(self, inputs: Batch) -> None:
        for name in ("loss_tokens", "tokens", "truncated_tokens"):
            self._sums[_SUMS.index(name)] += inputs[name]
        self._sums[_SUMS.index("rows")] += len(inputs["rows"])
        self._total_train_tokens += inputs["tokens"]

    def floating_point_ops(self, inputs: Batch) -> int:
        """6 per parameter and token: linear layers, forward and backward."""
        return int(6 * inputs["tokens"] * self.model.num_parameters(exclude_embeddings=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was counted since the last log; sums go over all ranks."""
        seconds = self.timings["forward_backward"] - self._logged_at
        if "loss" in logs and seconds > 0:
            mine = [self._sums, self._by_lag.sums.flatten()]
            every = self._total(torch.cat(mine)).tolist()
            at = dict(zip(_SUMS, every[: len(_SUMS)], strict=True))
            logs["packing_ratio"] = at["tokens"] / max(1.0, at["truncated_tokens"])
            logs["weight_mean"] = at["weight"] / max(1.0, at["loss_tokens"])
            if self.aux_loss_enabled:
                logs["aux_loss"] = at["aux_loss"] / max(1.0, at["loss_tokens"])
            if at["drift_tokens"]:
                logs["logprob_drift"] = at["drift"] / at["drift_tokens"]
            logs["entropy"] = at["entropy"] / max(1.0, at["loss_tokens"])
            logs |= self._largest(every[len(_SUMS) :])
            logs["tokens_per_second"] = at["tokens"] / seconds
            logs["loss_tokens_per_second"] = at["loss_tokens"] / seconds
            self._sums.zero_()
            self._by_lag.clear()
            self._logged_at += seconds
        super().log(logs, start_time)

    def _largest(self, by_lag: list[float]) -> dict[str, float]:
        """The numbers by lag, and those that are the largest of any rank."""
        device = self.args.device
        gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        peaks = [float(self._by_lag.most), peak_memory() / 2**20, gpu / 2**20]
        if self.args.world_size > 1:
            mine = torch.tensor([peaks], dtype=torch.float64, device=device)
            peaks = self.accelerator.gather(mine).amax(0).tolist()
        most, host, gpu = peaks
        width = self._by_lag.sums.shape[1]
        rows = [by_lag[at : at + width] for at in range(0, len(by_lag), width)]
        memory = {"peak_memory_mb": host, "peak_gpu_memory_mb": gpu}
        return numbers(rows, most) | {name: value for name, value in memory.items() if value}
