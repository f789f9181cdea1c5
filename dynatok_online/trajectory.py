"""What happened while one response was written: its passes, its edits, its scores.

A trajectory stores every token once. The prompt is a table of token `pieces`; each pass
lists, in order, the pieces that its prompt was made of (`Pass.layout`), with `RESPONSE` in
the place of the response so far. A state that comes back points at the piece it used before.

Worked example: the template ``"Write. {{case}}: {{response}}"``, one edit at response index 3,
one character per token:

    pieces    ["Write. ", "UPPER", ": ", "lower"]
    response  "ABcde"
    passes    layout (0, 1, 2, RESPONSE), start 0, stop 2   fed "Write. UPPER: "     sampled "AB"
              layout (0, 3, 2, RESPONSE), start 2, stop 5   fed "Write. lower: AB"   sampled "cde"

Positions count from 0 at the first token that a pass feeds to the engine. The KV of a pass
exists at positions `0 .. kv_length(k)`: everything it fed and everything it sampled, except
its last sampled token, whose KV is computed in the next pass, under the next state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Never

import msgspec
import numpy as np
import numpy.typing as npt

RESPONSE = -1
"""In `Pass.layout`: the place of the response so far."""

OUTSIDE = -1
"""In `Reuse.origin`: cached blocks that no pass of this trajectory computed."""

_INT32: Final = np.dtype(np.int32)
_FLOAT32: Final = np.dtype(np.float32)

TokenIds = npt.NDArray[np.int32]
Logprobs = npt.NDArray[np.float32]


class Edit(msgspec.Struct, frozen=True):
    """A change of one slot's state.

    `requested_at` and `effective_at` are response indices: the number of tokens that existed
    when the edit was asked for, and when the first pass in the new state began.
    """

    slot: str
    text: str
    requested_at: int
    effective_at: int
    source: str
    """Who decided: `human`, `schedule`, `policy` or `verifier`."""


class Reuse(msgspec.Struct, frozen=True, array_like=True):
    """Positions `start .. stop` of a pass took their KV from the same positions of pass `origin`.

    `origin` is the index of the earlier pass that *computed* the KV, or `OUTSIDE`. Keys are
    rotated by their position: what is reused at another one has moved (`Pass.shifts`).
    """

    origin: int
    start: int
    stop: int


class VersionRun(msgspec.Struct, frozen=True, array_like=True):
    """The next `length` tokens of a pass were sampled by weights of `version`."""

    version: int
    length: int


class Earlier(msgspec.Struct, frozen=True):
    """Response tokens `start .. stop` were written before a pass, under other states, and satisfy
    those of the pass to a `score` of 0 to 1, or would have."""

    start: int
    stop: int
    score: float
    """Of the requirement that they satisfy least."""


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """One engine request: a rendered prompt and the response so far went in, tokens came out."""

    layout: tuple[int, ...]
    """Indices into `Trajectory.pieces`, in order, with `RESPONSE` exactly once."""
    states: dict[str, str]
    """Slot name -> its text in this pass."""
    start: int
    """Response index of the first token sampled here."""
    stop: int
    """One past the response index of the last token sampled here."""
    num_cached_tokens: int
    """Tokens that the engine says it took from its cache."""
    reuse: tuple[Reuse, ...] = ()
    """Where they came from; ascending, not overlapping."""
    weight_versions: tuple[VersionRun, ...] = ()
    """Which weights sampled `start .. stop`; lengths add up to `stop - start`."""
    finish_reason: str = "stop"
    """`edit`, `weights` (restarted for new weights), `stop` or `length`."""
    scores: dict[str, float] = {}
    """Slot name -> share of the text sampled here that satisfies its requirement, 0 to 1.
    A slot whose requirement found nothing to judge is absent."""
    earlier: tuple[Earlier, ...] | msgspec.UnsetType = msgspec.UNSET
    """What earlier text is worth under the states of this pass; ascending, not overlapping, and
    where there was nothing to judge, nothing. Unset: nobody judged it."""
    shifts: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    """How far each run of `reuse` has moved, where a slot before it grew or shrank: its KV was
    computed at positions `start - shift .. stop - shift` of its origin, and its keys were turned on
    to where they stand now. Absent: nothing has."""

    def moved_reuse(self) -> list[tuple[Reuse, int]]:
        """Each run of `reuse`, and how far it has moved."""
        if self.shifts is msgspec.UNSET:
            return [(run, 0) for run in self.reuse]
        return list(zip(self.reuse, self.shifts, strict=True))

    def __post_init__(self) -> None:
        if self.layout.count(RESPONSE) != 1:
            raise ValueError(
                f"a pass's layout holds the response's place (RESPONSE = {RESPONSE}) exactly once, "
                f"but it is {self.layout}"
            )
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a pass needs 0 <= start <= stop, got {self.start} .. {self.stop}")
        if self.earlier:
            at = 0
            for one in self.earlier:
                if not at <= one.start < one.stop <= self.start:
                    raise ValueError(
                        f"a pass that starts at {self.start} judges earlier text, in ascending "
                        f"pieces, but {one.start} .. {one.stop} is none"
                    )
                at = one.stop
        if self.shifts is not msgspec.UNSET and len(self.shifts) != len(self.reuse):
            raise ValueError(
                f"a pass has one shift for each run of reuse, got {len(self.shifts)} for "
                f"{len(self.reuse)}"
            )


class Trajectory(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One response, from its first token to its last, under a prompt that was edited."""

    trajectory_id: str
    pieces: tuple[np.ndarray, ...]
    """int32 token ids of the pieces that prompts are made of."""
    response: np.ndarray
    """[R] int32: every sampled token, in order."""
    logprobs: np.ndarray
    """[R] float32: log-probability of each sampled token when it was sampled."""
    passes: tuple[Pass, ...]
    edits: tuple[Edit, ...] = ()
    policy: str = "exact"
    """Reuse policy of the engine: `exact` or `sticky`."""
    block_size: int = 1
    """Tokens per KV block of the engine that generated it."""
    info: dict[str, str] = {}
    """Free text for people: task, seed, model. Never read by the learner."""

    def __post_init__(self) -> None:
        # Runs for every trajectory that is received: texts are made only where one is due.
        for piece in self.pieces:
            if piece.dtype != _INT32 or piece.ndim != 1:
                self._refuse_arrays()
        response, logprobs = self.response, self.logprobs
        if response.dtype != _INT32 or response.ndim != 1:
            self._refuse_arrays()
        if logprobs.dtype != _FLOAT32 or logprobs.shape != response.shape:
            self._refuse_arrays()
        at, last = 0, len(self.pieces) - 1
        for one in self.passes:
            runs = one.weight_versions
            if (
                one.start != at
                or max(one.layout) > last
                or min(one.layout) < RESPONSE
                or (runs and sum([run.length for run in runs]) != one.stop - at)
            ):
                self._refuse_passes()
            at = one.stop
        if at != response.size:
            self._refuse_passes()

    def _refuse_arrays(self) -> Never:
        for name, array, kind in (
            *((f"pieces[{i}]", piece, _INT32) for i, piece in enumerate(self.pieces)),
            ("response", self.response, _INT32),
            ("logprobs", self.logprobs, _FLOAT32),
        ):
            if array.dtype != kind or array.ndim != 1:
                raise ValueError(
                    f"trajectory {self.trajectory_id}: {name} must be one-dimensional "
                    f"{kind.name}, got {array.dtype.name} of shape {array.shape}"
                )
        raise ValueError(
            f"trajectory {self.trajectory_id}: {len(self.response)} response tokens but "
            f"{len(self.logprobs)} logprobs; they must be aligned"
        )

    def _refuse_passes(self) -> Never:
        at = 0
        for k, one in enumerate(self.passes):
            where = f"trajectory {self.trajectory_id}, pass {k}"
            if one.start != at:
                raise ValueError(
                    f"{where} starts at response index {one.start}, but the passes before it end "
                    f"at {at}; passes must follow each other without gaps"
                )
            bad = [i for i in one.layout if i != RESPONSE and not 0 <= i < len(self.pieces)]
            if bad:
                raise ValueError(f"{where} uses pieces {bad}, but there are {len(self.pieces)}")
            sampled = sum(run.length for run in one.weight_versions)
            if one.weight_versions and sampled != one.stop - one.start:
                raise ValueError(
                    f"{where}: weight versions cover {sampled} tokens of {one.stop - one.start}"
                )
            at = one.stop
        raise ValueError(
            f"trajectory {self.trajectory_id}: passes cover {at} of {len(self.response)} "
            "response tokens"
        )

    def fed(self, k: int) -> TokenIds:
        """Token ids that pass `k` fed to the engine: prompt and response so far."""
        one = self.passes[k]
        return np.concatenate(
            [self.response[: one.start] if i == RESPONSE else self.pieces[i] for i in one.layout]
        )

    def fed_length(self, k: int) -> int:
        """How many tokens pass `k` fed to the engine."""
        one = self.passes[k]
        return one.start + sum(len(self.pieces[i]) for i in one.layout if i != RESPONSE)

    def tokens(self, k: int) -> TokenIds:
        """Token ids of pass `k`, fed and then sampled; index = position."""
        one = self.passes[k]
        return np.concatenate([self.fed(k), self.response[one.start : one.stop]])

    def kv_length(self, k: int) -> int:
        """Positions of pass `k` that have KV: all but the last sampled token.

        A pass that sampled nothing leaves no token behind, so nothing can depend on its KV
        except a later pass that reuses it: all that it fed counts.
        """
        one = self.passes[k]
        return self.fed_length(k) + max(0, one.stop - one.start - 1)

    @property
    def oldest_version(self) -> int:
        """The lowest weight version that sampled a token of it (0 where none is recorded)."""
        return min(
            (run.version for one in self.passes for run in one.weight_versions if run.length),
            default=0,
        )

    def versions(self) -> npt.NDArray[np.int64]:
        """[R] int64: weight version that sampled each response token (-1 where not recorded)."""
        out = np.full(len(self.response), -1, np.int64)
        for one in self.passes:
            at = one.start
            for run in one.weight_versions:
                out[at : at + run.length] = run.version
                at += run.length
        return out

    def rebuildable(self) -> npt.NDArray[np.bool_]:
        """[R] bool: response tokens whose whole context one weight version computed.

        Where passes go on under new weights, what the new ones sample sees KV of the old: no
        single set of weights computes that again.
        """
        out = np.ones(len(self.response), bool)
        for one in self.passes:
            if len(one.weight_versions) > 1:
                out[one.start + one.weight_versions[0].length : one.stop] = False
        return out


class Selected(Trajectory, frozen=True, kw_only=True, eq=False):
    """A trajectory of a file whose tokens were weighed before training (`dynatok select`)."""

    weights: np.ndarray
    """[R] float32: what each response token counts, beside what an objective says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = self.weights
        if weights.dtype != _FLOAT32 or weights.shape != self.response.shape:
            raise ValueError(
                f"trajectory {self.trajectory_id}: {len(self.response)} response tokens but "
                f"weights are {weights.dtype.name} of shape {weights.shape}; they must be aligned"
            )
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"trajectory {self.trajectory_id}: a weight is negative, or no number")


def selected(trajectory: Trajectory, weights: Logprobs) -> Selected:
    """`trajectory` with weights of its tokens."""
    fields = {name: getattr(trajectory, name) for name in Trajectory.__struct_fields__}
    return Selected(**fields, weights=weights)


def to_row(trajectory: Trajectory) -> dict[str, Any]:
    """The trajectory as plain lists and dicts: a row for `datasets`, JSON Lines or Parquet.

    Mappings become lists of `{"name", "value"}`, so that every row has the same
    columns whatever the slots are called.
    """
    row: dict[str, Any] = msgspec.to_builtins(trajectory, enc_hook=_array_to_list)
    # None where nobody sampled: NaN is no JSON.
    row["logprobs"] = [None if value != value else value for value in row["logprobs"]]
    row["info"] = _listed(row["info"])
    for one in row["passes"]:
        one["states"], one["scores"] = _listed(one["states"]), _listed(one["scores"])
        one.setdefault("shifts", None)
        one["reuse"] = [list(run) for run in one["reuse"]]
        one["weight_versions"] = [list(run) for run in one["weight_versions"]]
        one.setdefault("earlier", None)  # not judged
    return row


def from_row(row: Mapping[str, Any]) -> Trajectory:
    """The trajectory in a row made by `to_row`, or written by hand.

    Only `trajectory_id`, `pieces`, `response` and `passes` (with `layout`, `states`, `start`,
    `stop`) are needed; with `weights` it is a `Selected`. Raises ValueError that says which field
    is wrong.
    """
    row = dict(row)
    try:
        row["info"] = _mapping(row.get("info"))
        row["passes"] = [
            {
                "num_cached_tokens": 0,
                **{
                    name: value
                    for name, value in one.items()
                    if name not in ("earlier", "shifts") or value is not None
                },
                "states": _mapping(one["states"]),
                "scores": _mapping(one.get("scores")),
            }
            for one in row["passes"]
        ]
        row["pieces"] = [_token_ids("pieces", piece) for piece in row["pieces"]]
        row["response"] = _token_ids("response", row["response"])
        logprobs = row.get("logprobs")
        if logprobs is None:
            logprobs = np.full(len(row["response"]), np.nan)
        weighed = row.get("weights") is not None
        with np.errstate(over="raise"):
            row["logprobs"] = np.asarray(logprobs, np.float32)
            if weighed:
                row["weights"] = np.asarray(row["weights"], np.float32)
        return msgspec.convert(row, Selected if weighed else Trajectory)
    except KeyError as error:
        raise ValueError(f"trajectory {row.get('trajectory_id', '?')} has no {error}") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"trajectory {row.get('trajectory_id', '?')}: {error}") from error


def _token_ids(name: str, written: Any) -> TokenIds:
    """As int32; what would change on the way there (1.5, -1, 2**31, "7") is refused."""
    found = np.asarray(written)
    if found.size == 0:
        return found.astype(np.int32)
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**31:
        raise ValueError(f"{name} must be token ids, whole numbers from 0 to 2147483647")
    return found.astype(np.int32)


def _array_to_list(value: object) -> list[Any]:
    if isinstance(value, np.ndarray):
        return list(value.tolist())
    raise NotImplementedError(f"cannot write a {type(value).__name__}")


def _listed(mapping: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in mapping.items()]


def _mapping(value: Mapping[str, Any] | list[dict[str, Any]] | None) -> dict[str, Any]:
    """A mapping written as such (by hand) or as `to_row` lists it."""
    if isinstance(value, list):
        return {entry["name"]: entry["value"] for entry in value}
    return dict(value or {})
