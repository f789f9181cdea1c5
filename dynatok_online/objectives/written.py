"""From what a configuration says to an `Objective`.

    objective: asft                                  a loss, with its defaults
    objective: {name: asft, kl: 0.03}                with parameters
    objective: reward                                a factor: times the loss of sft
    objective: {name: dft, times: [reward, key]}     a loss times factors
    objective: [reward, {name: hinge, scale: 0.1}]   a sum
    objective: my.module:Confident                   a class of one's own: a `Loss` or a `Factor`

An import path is the user's own code, written in the user's own file. Nothing that came over a
wire is ever read here.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import msgspec

from dynatok_online.objectives.asft import Asft
from dynatok_online.objectives.clipped import Decoupled, Grpo, Hapo, Importance
from dynatok_online.objectives.context import Context
from dynatok_online.objectives.contrast import Contrast
from dynatok_online.objectives.dft import Dft
from dynatok_online.objectives.eksft import Eksft
from dynatok_online.objectives.hindsight import Hindsight
from dynatok_online.objectives.hinge import Hinge
from dynatok_online.objectives.key import Key
from dynatok_online.objectives.masked import Masked
from dynatok_online.objectives.objective import Objective, Term
from dynatok_online.objectives.reward import Reward
from dynatok_online.objectives.rollout import Rollout
from dynatok_online.objectives.sft import Sft
from dynatok_online.objectives.sstoken import SsToken
from dynatok_online.objectives.targets import Factor, Loss

LOSSES: dict[str, type[Loss]] = {
    "sft": Sft,
    "dft": Dft,
    "asft": Asft,
    "eksft": Eksft,
    "rollout": Rollout,
    "hinge": Hinge,
    "grpo": Grpo,
    "decoupled": Decoupled,
    "hapo": Hapo,
}

FACTORS: dict[str, type[Factor]] = {
    "reward": Reward,
    "key": Key,
    "importance": Importance,
    "context": Context,
    "contrast": Contrast,
    "sstoken": SsToken,
    "masked": Masked,
    "hindsight": Hindsight,
}

KNOWN = (*LOSSES, *FACTORS)


def objective_of(given: Any, reward: Mapping[str, float] | None = None) -> Objective:
    """What `given` says (see the module's docstring). Raises ValueError that names what is wrong
    and what is nearest. `reward`: defaults of the parameters of `reward`."""
    entries = given if isinstance(given, list | tuple) else [given]
    if not entries:
        raise ValueError(f"objective is an empty list; name one of {', '.join(KNOWN)}")
    made = Objective(tuple(_term(one, reward or {}) for one in entries))
    for once in ("masked", "hindsight"):
        if sum(name == once for one in made.terms for name, _ in one.factors) > 1:
            raise ValueError(f"objective names {once} twice; all terms see the same rows")
    return made


def _term(given: Any, reward: Mapping[str, float]) -> Term:
    name, parameters = _entry(given, "objective")
    times = parameters.pop("times", [])
    scale = parameters.pop("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise ValueError(f"objective {name}: scale must be a number, got {scale!r}")
    if not isinstance(times, list | tuple):
        times = [times]
    made = _make(name, parameters, reward)
    factors = [_factor(one, reward) for one in times]
    if isinstance(made, Factor):
        factors.insert(0, (name, made))
        made = Sft()
    names = [one for one, _ in factors]
    if len(set(names)) < len(names):
        raise ValueError(f"objective {name}: {names} names a factor twice")
    return Term(name, made, tuple(factors), float(scale))


def _factor(given: Any, reward: Mapping[str, float]) -> tuple[str, Factor]:
    name, parameters = _entry(given, "times")
    made = _make(name, parameters, reward)
    if not isinstance(made, Factor):
        raise ValueError(
            f"times: {name} is a loss of its own, not a factor ({', '.join(FACTORS)}); "
            "add it as another entry of objective"
        )
    return name, made


def _entry(given: Any, field: str) -> tuple[str, dict[str, Any]]:
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        rest = dict(given)
        return rest.pop("name"), rest
    raise ValueError(
        f"{field} must be a name, or a mapping with one ({{name: reward, power: 2}}), got {given!r}"
    )


def _make(name: str, parameters: dict[str, Any], reward: Mapping[str, float]) -> Any:
    kind = _kind(name)
    if kind is Reward:
        parameters = {**reward, **parameters}
    if not issubclass(kind, msgspec.Struct):
        try:
            return kind(**parameters)
        except TypeError as error:
            raise ValueError(f"objective {name}: {error}") from error
    fields = [one.name for one in msgspec.structs.fields(kind)]
    for parameter in parameters:
        if parameter not in fields:
            others = [*fields, "times", "scale"]
            near = difflib.get_close_matches(str(parameter), others, 1, 0.0)[0]
            raise ValueError(f"objective {name} has no {parameter!r}; did you mean {near!r}?")
    try:
        return msgspec.convert(parameters, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"objective {name}: {error}") from error


def _kind(name: str) -> Any:
    known: dict[str, Any] = {**LOSSES, **FACTORS}
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
        raise ValueError(f"objective {name!r} is unknown; {hint}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"objective {name}: {error}") from error
