"""The loss of a row without the row's logits: a model's head, a few targets at a time.

`ChunkedHead.run` calls a causal language model whose head is held back. Where the head would make
logits of M hidden states, it makes those of some, asks for their losses, takes their gradients at
once, and forgets them: [m, V] at a time, never [M, V]. Nothing is computed twice, and the result
is the loss as a scalar whose backward hands out the gradients that were taken.

    head = ChunkedHead(model)                     # once
    loss, out = head.run(lambda: model(**inputs), lambda c, piece: -c.log_prob(ids[piece]))
    loss.backward()

Every chunk reads the whole head, so chunks may not be small: from 220 targets on (a vocabulary of
150,000), larger ones are no quicker.

What a family does to logits behind its head (soft-capping, scaling) is its own code: its
`forward`, run on the logits of a chunk in the place of its backbone's and head's work.

A head is `nn.Linear` (its weight's gradient is added up in place, in float32 at least), or any
other module that maps each position by itself, such as a head with an adapter. Two kinds are left
to the model, which then makes all logits at once: a head that is not the model's own child, and
one with parts under ZeRO 3, where each part comes and goes by itself.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from dynatok_online.training.chunk import Chunk

ChunkLoss = Callable[[Chunk, slice], torch.Tensor]
"""(logits of m targets, which targets of the row these are) -> [m] losses."""

MOST_TARGETS = 1024
MOST_LOGITS = 2**25
"""Of one chunk: 128 MiB in float32, and several times that where more than log p is asked for."""

Gradients = list[torch.Tensor | None]


class ChunkedHead:
    """The head of one model; see the module's docstring. `model`: the causal language model
    itself, inside whatever wraps it (peft, DDP, DeepSpeed)."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._head = model.get_output_embeddings()
        self._name = next((n for n, one in model.named_children() if one is self._head), None)
        self._takes = inspect.signature(type(model).forward).parameters

    @property
    def chunked(self) -> bool:
        """Whether the head can be held back; otherwise the model makes all logits at once."""
        if self._name is None:
            return False
        sharded = any(hasattr(one, "ds_id") for one in self._head.parameters())
        return not sharded or self._linear

    @property
    def _linear(self) -> bool:
        return type(self._head) is torch.nn.Linear

    def run(self, call: Callable[[], Any], loss_of: ChunkLoss) -> tuple[torch.Tensor, Any]:
        """The sum of all losses, [] in float32 at least, and what `call` (the model, through its
        wrappers, with `logits_to_keep`) returned. Its logits are none where `chunked`."""
        if not self.chunked:
            out = call()
            return _all_at_once(out.logits[0], loss_of), out
        with self._held_back(loss_of) as found:
            out = call()
        if len(found) != 1:
            name = type(self._model).__name__
            raise ValueError(f"{name} called its head {len(found)} times in one forward, not once")
        return found[0], out

    @torch.no_grad()
    def log_probs(self, call: Callable[[], Any], ids: torch.Tensor) -> torch.Tensor:
        """[M] log-probability of each of a row's targets `ids`, where `call` runs the model."""
        return self._each(call, ids, lambda logits, piece: logits.log_prob(ids[piece]))[0]

    @torch.no_grad()
    def scores(
        self, call: Callable[[], Any], ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`log_probs`, and [M] the entropy of each distribution, in nats."""
        first, second = self._each(
            call,
            ids,
            lambda logits, piece: logits.log_prob(ids[piece]),
            lambda logits, _: logits.entropy(),
        )
        return first, second

    def _each(
        self,
        call: Callable[[], Any],
        ids: torch.Tensor,
        *asked: Callable[[Chunk, slice], torch.Tensor],
    ) -> list[torch.Tensor]:
        """[M] of each that is asked of the logits of a row."""
        found: list[list[torch.Tensor]] = []

        def keep(logits: Chunk, piece: slice) -> torch.Tensor:
            found.append([one(logits, piece) for one in asked])
            return found[-1][0]

        self.run(call, keep)
        if not found:
            return [torch.zeros(0, device=ids.device) for _ in asked]
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    def of_hidden(self, hidden: torch.Tensor, loss_of: ChunkLoss) -> torch.Tensor:
        """The sum of the losses of [1, M, H] hidden states that the backbone has made."""
        return self._losses(type(self._head).forward.__get__(self._head), hidden, loss_of)

    @contextlib.contextmanager
    def before(self, call: Callable[[], None]) -> Iterator[None]:
        """While open, `call` is called when the backbone has run and the head has not."""
        hook = self._head.register_forward_pre_hook(lambda *_: call())
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def hidden(self, call: Callable[[], Any]) -> torch.Tensor:
        """[M, H] what the head gets when `call` runs the model; nothing is made of it."""
        found: list[torch.Tensor] = []

        def keep(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            found.append(given[0][0])
            return (given[0][:, :0],)

        hook = self._head.register_forward_pre_hook(keep)
        try:
            call()
        finally:
            hook.remove()
        (hidden,) = found
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[m, V] logits of some of `hidden`, in float32 at least."""
        own = type(self._head).forward  # the head may be held back just now
        dtype = next(self._head.parameters()).dtype
        return _wide(self._finish(own(self._head, hidden[None].to(dtype))[0]))

    @contextlib.contextmanager
    def _held_back(self, loss_of: ChunkLoss) -> Iterator[list[torch.Tensor]]:
        """While open, the head makes losses, which go into the list, and the model no logits."""
        found: list[torch.Tensor] = []
        head = self._head
        own, before = head.forward, vars(head).get("forward")

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            return self._losses(own, hidden, loss_of)

        def pass_on(_: Any, __: Any, loss: torch.Tensor) -> torch.Tensor:
            found.append(loss)
            # No logits, but a graph: DDP looks from here for the parameters that were used.
            return loss.expand(1, 1, self._model.config.get_text_config().vocab_size)[:, :0]

        # A hook, because those of DeepSpeed, which gathers the weight, must be around the loss.
        hook = head.register_forward_hook(pass_on)
        head.forward = forward
        try:
            yield found
        finally:
            hook.remove()
            del head.forward
            if before is not None:
                head.forward = before

    def _losses(
        self, own: Callable[..., Any], hidden: torch.Tensor, loss_of: ChunkLoss
    ) -> torch.Tensor:
        parameters = list(self._head.parameters()) if self._linear else _trained(self._head)
        kind = _Linear if self._linear else _Module
        run = kind(own, self._finish, loss_of)
        if not torch.is_grad_enabled():
            return run(hidden, parameters, [False] * (1 + len(parameters)))[0]
        out: torch.Tensor = _Taken.apply(run, hidden, *parameters)
        return out

    def _finish(self, raw: torch.Tensor) -> torch.Tensor:
        """[m, V] logits of what the head made ([m, V]): what the model does behind its head.
        Nothing, for most: `raw` itself then."""
        options: dict[str, Any] = {"output_router_logits": False, "use_cache": False}
        given = {name: value for name, value in options.items() if name in self._takes}
        stand = _Stand(self._model, self._name, raw[None])
        ids = torch.zeros(1, len(raw), dtype=torch.long, device=raw.device)
        out = type(self._model).forward(stand, input_ids=ids, **given)
        logits: torch.Tensor = out.logits[0]
        same = (logits.data_ptr(), logits.dtype) == (raw.data_ptr(), raw.dtype)
        return raw if same and logits.shape == raw.shape else logits


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [one for one in module.parameters() if one.requires_grad]


def chunk_size(vocabulary: int) -> int:
    """Of how many targets there are logits at a time."""
    return max(1, min(MOST_TARGETS, MOST_LOGITS // vocabulary))


def _pieces(count: int, vocabulary: int) -> Iterator[slice]:
    size = chunk_size(vocabulary)
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _all_at_once(logits: torch.Tensor, loss_of: ChunkLoss) -> torch.Tensor:
    """The sum of the losses of [M, V] logits, which hang in the model's own graph."""
    wide = _wide(logits)
    chunk = Chunk(wide.detach())
    loss = loss_of(chunk, slice(0, len(wide))).sum()
    if not torch.is_grad_enabled():
        return loss
    grad = chunk.gradient(loss)
    total: torch.Tensor = _Given.apply(wide, loss.detach(), grad)
    return total


class _Given(torch.autograd.Function):
    """A loss whose gradient by logits is known."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, loss: torch.Tensor, grad: Any) -> torch.Tensor:
        ctx.gradient = torch.zeros_like(logits) if grad is None else grad
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return ctx.gradient * grad.to(ctx.gradient.dtype), None, None


class _Taken(torch.autograd.Function):
    """A loss whose gradients were taken while it was computed."""

    @staticmethod
    def forward(ctx: Any, run: Any, hidden: torch.Tensor, *parameters: Any) -> torch.Tensor:
        total, ctx.gradients = run(hidden, parameters, ctx.needs_input_grad[1:])
        out: torch.Tensor = total
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        # In place: a head's gradient may be the largest tensor of all.
        return None, *(None if one is None else one.mul_(grad.to(one.dtype)) for one in gradients)


class _Losses:
    """Of the two kinds of heads: what runs the head, what is done behind it, and the loss."""

    def __init__(
        self,
        forward: Callable[..., Any],
        finish: Callable[[torch.Tensor], torch.Tensor],
        loss_of: ChunkLoss,
    ) -> None:
        self._forward = forward
        self._finish = finish
        self._loss_of = loss_of

    def _chunk(
        self, raw: torch.Tensor, piece: slice, wanted: bool, *, spare: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The sum of the losses of a chunk, and its gradient by `raw`, [m, V], which the head made.
        `raw` has no graph; `spare`: it is needed no more."""
        raw.requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            finished = self._finish(raw)
            logits = _wide(finished.detach())
            # What is done behind the head may need its logits, to go back through it.
            copied, same = logits.dtype != finished.dtype, finished is raw
            chunk = Chunk(logits, spare=copied or (same and spare))
            loss = self._loss_of(chunk, piece).sum()
        if not wanted:
            return loss, None
        grad = chunk.gradient(loss)
        if grad is not None:
            grad = grad.to(finished.dtype)
            if not same:
                (grad,) = torch.autograd.grad(finished, raw, grad)
        return loss.detach(), grad


class _Linear(_Losses):
    """Losses and gradients of a head that is one matrix."""

    def __call__(
        self, hidden: torch.Tensor, parameters: Sequence[torch.Tensor], needed: Sequence[bool]
    ) -> tuple[torch.Tensor, Gradients]:
        kind = hidden.device.type
        given = parameters
        with torch.no_grad():
            if torch.is_autocast_enabled(kind):
                lower = torch.get_autocast_dtype(kind)
                parameters = [one.to(lower) for one in given]
            # What autocast would do at every chunk is done.
            with torch.autocast(kind, enabled=False):
                total, gradients = self._run(hidden, parameters, needed)
        return total, [
            None if grad is None else grad.to(one.dtype)
            for grad, one in zip(gradients, [hidden, *given], strict=True)
        ]

    def _run(
        self, hidden: torch.Tensor, parameters: Sequence[torch.Tensor], needed: Sequence[bool]
    ) -> tuple[torch.Tensor, Gradients]:
        weight = parameters[0]
        bias = parameters[1] if len(parameters) > 1 else None
        h = hidden[0].to(weight.dtype)
        exact = torch.promote_types(weight.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=h.device)
        gradients: Gradients = [torch.zeros_like(hidden) if needed[0] else None]
        gradients += [
            torch.zeros_like(one, dtype=exact) if wanted else None
            for one, wanted in zip(parameters, needed[1:], strict=True)
        ]
        room = h.new_empty(0)  # memory that comes anew from the system costs a tenth of the time
        for piece in _pieces(len(h), len(weight)):
            count = piece.stop - piece.start
            if len(room) < count:
                room = h.new_empty(0)
                room = h.new_empty(count, len(weight))
            raw = torch.mm(h[piece], weight.T, out=room[:count])
            if bias is not None:
                raw += bias
            loss, grad = self._chunk(raw.detach(), piece, any(needed), spare=True)
            del raw
            total += loss
            if grad is None:
                continue
            if gradients[0] is not None:
                gradients[0][0, piece] = grad @ weight
            if len(gradients) > 1 and gradients[1] is not None:
                _add_product(gradients[1], grad, h[piece])
            if len(gradients) > 2 and gradients[2] is not None:
                gradients[2] += grad.sum(0, dtype=exact)
            del grad  # or it is there beside the next one
        return total, gradients


def _add_product(out: torch.Tensor, grad: torch.Tensor, hidden: torch.Tensor) -> None:
    """out += grad.T @ hidden: [V, H] += [m, V] and [m, H]."""
    if out.dtype == grad.dtype:
        out.addmm_(grad.T, hidden)
        return
    # Half precision: each product is rounded once, and sums are wide. In stripes, for memory.
    for start in range(0, len(out), 16384):
        stripe = slice(start, start + 16384)
        out[stripe] += grad[:, stripe].T @ hidden


class _Module(_Losses):
    """Losses and gradients of a head that is any module of one position at a time."""

    def __call__(
        self, hidden: torch.Tensor, parameters: Sequence[torch.Tensor], needed: Sequence[bool]
    ) -> tuple[torch.Tensor, Gradients]:
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        total = total.to(hidden.device)
        given = [hidden, *parameters]
        gradients: Gradients = [
            torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32))
            if wanted
            else None
            for one, wanted in zip(given, needed, strict=True)
        ]
        wanted = any(needed)
        vocabulary = self._vocabulary(hidden)
        for piece in _pieces(hidden.shape[1], vocabulary):
            h = hidden[:, piece].detach().requires_grad_(needed[0])
            with torch.set_grad_enabled(wanted):
                raw = self._forward(h)[0]
            loss, by_raw = self._chunk(raw.detach(), piece, wanted, spare=False)
            total += loss
            if by_raw is None:
                continue
            inputs = [one for one, n in zip([h, *parameters], needed, strict=True) if n]
            found = iter(torch.autograd.grad(raw, inputs, by_raw, allow_unused=True))
            for at, n in enumerate(needed):
                grad = next(found) if n else None
                sums = gradients[at]
                if grad is None or sums is None:
                    continue
                if at:
                    sums += grad
                else:
                    sums[:, piece] = grad
        return total, [
            None if sums is None else sums.to(one.dtype)
            for sums, one in zip(gradients, given, strict=True)
        ]

    def _vocabulary(self, hidden: torch.Tensor) -> int:
        with torch.no_grad():
            return int(self._forward(hidden[:, :0]).shape[-1])


class _Stand:
    """A model in whose forward the backbone does nothing and the head returns `raw`."""

    def __init__(self, model: Any, head: str | None, raw: torch.Tensor) -> None:
        self._model = model
        self._instead: dict[str | None, Any] = {
            model.base_model_prefix: _Backbone(getattr(model, model.base_model_prefix), raw),
            head: _Head(getattr(model, head or ""), raw),
        }

    def __getattr__(self, name: str) -> Any:
        instead = self._instead
        return instead[name] if name in instead else getattr(self._model, name)


class _Head:
    def __init__(self, head: Any, raw: torch.Tensor) -> None:
        self._head, self._raw = head, raw

    def __call__(self, *_: Any, **__: Any) -> torch.Tensor:
        return self._raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)


class _Backbone:
    def __init__(self, backbone: Any, raw: torch.Tensor) -> None:
        self._backbone, self._raw = backbone, raw

    def __call__(self, *_: Any, **__: Any) -> _Nothing:
        return _Nothing(self._raw)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backbone, name)
        return _Backbone(found, self._raw) if isinstance(found, torch.nn.Module) else found


class _Nothing:
    """The output of a backbone, without anything in it."""

    def __init__(self, raw: torch.Tensor) -> None:
        self.last_hidden_state = raw

    def __getattr__(self, _: str) -> None:
        return None

    def __getitem__(self, at: Any) -> Any:
        return self.last_hidden_state if at == 0 else ()
