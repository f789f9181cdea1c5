"""Verifiers of your own: `my.module:function`, named wherever a requirement is named.

    def haiku(text: str, before: str) -> float | bool | list[tuple[int, int, bool]] | None:
        "three lines of 5, 7 and 5 syllables"

It gets the text and what came before it, and returns the judged pieces as (start, stop, ok) in the
text, or one score from 0 to 1 (or True, False) for all of it, or None where there is nothing to
judge. The first line of its docstring is the slot's text, unless the task gives another one.

This is code that runs on the machine whose user named it. Nothing that comes from elsewhere may
name one: neither a visitor of the page nor a data set from the hub (`code_of`, `refuse_code`).
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dynatok_online.requirements.kinds import GENERAL
from dynatok_online.requirements.verdict import Requirement, Text, Unit

_CODE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
_GENERAL = frozenset(kind.name for kind in GENERAL)


def code_of(name: str) -> list[str]:
    """The parts of a requirement's name that would be looked up as code; nothing is imported."""
    parts = (part.strip() for part in name.split("+"))
    return [one for one in parts if _CODE.fullmatch(one) and one.split(":")[0] not in _GENERAL]


def refuse_code(value: Any) -> None:
    """ValueError if data from elsewhere names code: strings, objects and lists as in JSON. What
    stands under `text` is text."""
    if isinstance(value, str):
        for name in code_of(value):
            raise ValueError(
                f"{name!r} would be code of this machine, which data from elsewhere cannot name; "
                "name it in a file of your own"
            )
    elif isinstance(value, dict):
        refuse_code([one for key, one in value.items() if key != "text"])
    elif isinstance(value, list | tuple):
        for one in value:
            refuse_code(one)


def is_module(name: str) -> bool:
    """Whether there is a module of this name (without a dot), here or elsewhere."""
    _look_here()
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # of a module that was made by hand
        return True


def _look_here() -> None:
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)


def load(name: str) -> Requirement:
    """The requirement of a function, looked for in the working folder too.

    ValueError says what cannot be imported, or that it is no function of two texts.
    """
    module, _, called = name.partition(":")
    _look_here()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"requirement {name!r}: importing it failed: {error}") from error
        raise ValueError(
            f"there is no requirement {name!r}, nor a Python module {error.name!r} with a verifier "
            "of your own in it; `dynatok requirements` lists the names"
        ) from None
    except Exception as error:
        raise ValueError(
            f"requirement {name!r}: importing it failed: {type(error).__name__}: {error}"
        ) from error
    if (function := getattr(imported, called, None)) is None:
        raise ValueError(
            f"requirement {name!r}: module {module!r} has no {called!r}; "
            f"write def {called}(text, before) there"
        )
    try:
        inspect.signature(function).bind("", "")
    except (TypeError, ValueError):
        raise ValueError(
            f"requirement {name!r} is no function of two texts; write def {called}(text, before)"
        ) from None
    first = (inspect.getdoc(function) or "").partition("\n")[0].strip().rstrip(".")
    return Requirement(name, "own", first or called.replace("_", " "), _locate(name, function))


def _locate(name: str, function: Callable[[str, str], Any]) -> Callable[[Text], Iterable[Unit]]:
    def locate(text: Text) -> Iterator[Unit]:
        try:
            found = function(text.here, text.whole[: text.start])
            units = list(_units(found, len(text.here)))
        except Exception as error:
            raise ValueError(
                f"requirement {name!r}: your function failed on {text.here[:60]!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        for unit in units:
            yield Unit(text.start + unit.start, text.start + unit.stop, unit.ok, unit.value)

    return locate


def _units(found: Any, length: int) -> Iterator[Unit]:
    if found is None:
        return
    if isinstance(found, bool | int | float):
        if not 0 <= found <= 1:
            raise ValueError(f"it returned {found!r}; a score is from 0 to 1")
        yield Unit(0, length, found == 1, float(found))
        return
    for one in found:
        start, stop, ok = (one.start, one.stop, one.ok) if isinstance(one, Unit) else one
        if not 0 <= start <= stop <= length:
            raise ValueError(
                f"it returned a unit from {start} to {stop} of a text of {length} characters"
            )
        yield Unit(int(start), int(stop), bool(ok))
