"""YAML and command-line overrides into msgspec structs, with errors that a person can act on.

Every failure is a `ConfigError` with one line: the file or flag, the full path of the field,
what was wrong, what to write instead. A key that no struct knows is refused with the nearest
one that exists; sections declared as `dict` pass through to the library that reads them.

    >>> decode({"sesions": 3}, ActorConfig, "actor.yaml")
    ConfigError: actor.yaml: unknown key 'sesions'; did you mean 'sessions'?
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

import msgspec
import yaml

T = TypeVar("T", bound=msgspec.Struct)


class ConfigError(ValueError):
    """What the user wrote cannot be run; the message is one line for them."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number and refuses a key written twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{key}' is written twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if text.isascii():
        return text
    try:  # JSON writes a character beyond 16 bits as two escapes
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise yaml.constructor.ConstructorError(
            None, None, "a text holds half a character (a lone surrogate)", node.start_mark
        ) from None


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:str", _text)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file{_suggest(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    try:
        loaded = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: holds a {type(loaded).__name__}; write 'name: value' lines")
    return loaded


def parse_yaml(text: str) -> Any:
    """One YAML document from text; numbers as in YAML 1.2."""
    # _Loader is a SafeLoader: it builds plain data only.
    return yaml.load(text, Loader=_Loader)


def decode(raw: dict[str, Any], into: type[T], source: str) -> T:
    """`raw` as a struct. Raises ConfigError that names `source` and the full path."""
    check_keys(raw, into, source)
    try:
        return msgspec.convert(raw, into)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), raw, into)}") from None


def check_keys(raw: dict[str, Any], into: type[msgspec.Struct], source: str) -> None:
    """Raise ConfigError for the first key that `into` does not know."""
    _check_keys(raw, into, source, into, ())


def _check_keys(
    raw: dict[Any, Any],
    into: type[msgspec.Struct],
    source: str,
    root: type[msgspec.Struct],
    path: tuple[str, ...],
) -> None:
    fields = struct_fields(into)
    for key, value in raw.items():
        here = (*path, str(key))
        if key not in fields:
            raise ConfigError(f"{source}: {_unknown(here, fields, root)}")
        section = section_of(fields[key])
        if section is not None and isinstance(value, dict):
            _check_keys(value, section, source, root, here)


def _unknown(path: tuple[str, ...], fields: dict[str, Any], root: type[msgspec.Struct]) -> str:
    *above, key = path
    wanted = key.replace("-", "_")
    near = difflib.get_close_matches(wanted, fields, n=1, cutoff=0.6)
    if near:
        best = ".".join((*above, near[0]))
    else:  # a right name in a wrong section
        by_name: dict[str, str] = {}
        for full, _ in all_fields(root):
            by_name.setdefault(full.rpartition(".")[2], full)
        near = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.8)
        best = by_name[near[0]] if near else ""
    if best:
        return f"unknown key '{'.'.join(path)}'; did you mean '{best}'?"
    where = f"section '{'.'.join(above)}'" if above else "top level"
    return f"unknown key '{'.'.join(path)}'; the {where} has {', '.join(fields)}"


def struct_fields(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Field name -> its type, in the order of declaration."""
    hints = typing.get_type_hints(struct)
    return {name: hints[name] for name in struct.__struct_fields__}


def section_of(hint: Any) -> type[msgspec.Struct] | None:
    """The struct that a field's type holds (`X` or `X | None`), else None."""
    for option in _options(hint):
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def all_fields(struct: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, Any]]:
    """(full dotted path, type) of every field that is not itself a section."""
    for name, hint in struct_fields(struct).items():
        section = section_of(hint)
        if section is None:
            yield path + name, hint
        else:
            yield from all_fields(section, f"{path}{name}.")


def parse_flags(flags: Sequence[str], root: type[msgspec.Struct]) -> dict[str, Any]:
    """`--learner.training.learning-rate 1e-3 --seed=7 --actor.seeded` as a nested mapping.

    Dashes and underscores are the same; a flag without a value means true; values are YAML,
    except where the field is text, or a list of words, which commas may part. Raises ConfigError
    that names the flag.
    """
    out: dict[str, Any] = {}
    at = 0
    while at < len(flags):
        name, equals, text = flags[at].partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise ConfigError(
                f"'{flags[at]}' is not a flag; write --section.field VALUE, such as --seed 7"
            )
        at += 1
        if not equals and at < len(flags) and not flags[at].startswith("--"):
            text, equals = flags[at], "="
            at += 1
        try:
            flags[at - 1].encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{name!a}: is not text in UTF-8") from None
        path = tuple(name[2:].replace("-", "_").split("."))
        value: Any = _flag_value(name, text, path, root) if equals else True
        _check_keys(_nest(path, value), root, name, root, ())
        _put(out, path, value, name)
    return out


def _flag_value(name: str, text: str, path: tuple[str, ...], root: type[msgspec.Struct]) -> Any:
    hint: Any = root
    for part in path:
        section = section_of(hint)
        hint = struct_fields(section).get(part) if section else None
    if str in _options(hint) and dict not in [typing.get_origin(o) for o in _options(hint)]:
        return None if text == "null" and type(None) in _options(hint) else text
    if hint == tuple[str, ...] and not text.startswith("["):
        return [one.strip() for one in text.split(",")]
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {_yaml_problem(error)}") from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` in it; neither is changed."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merge(old, value)
        out[key] = value
    return out


def _nest(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return typing.cast("dict[str, Any]", value)


def _put(out: dict[str, Any], path: tuple[str, ...], value: Any, name: str) -> None:
    for part in path[:-1]:
        out = out.setdefault(part, {})
        if not isinstance(out, dict):
            raise ConfigError(f"{name}: '{part}' was given a value by an earlier flag")
    out[path[-1]] = value


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


_EXPECTED = re.compile(r"^Expected `(?P<wanted>.+?)`(?:, got `(?P<got>.+?)`)?(?P<rest>.*)$")


def _explain(message: str, raw: dict[str, Any], root: type[msgspec.Struct]) -> str:
    """msgspec's message with the path first and the value that was there.

    A ValueError that a struct raised about itself names its own fields: it stays as it is.
    """
    text, _, path = message.rpartition(" - at `$.")
    if not text:
        return message.removesuffix(" - at `$`")
    path = path.rstrip("`")
    found = _EXPECTED.match(text)
    if not found:
        if not text.startswith("Invalid enum value"):
            return text
        wrong = text.removeprefix("Invalid enum value ")
        return f"{path} is {wrong}; write one of {', '.join(_choices(path, root))}"
    value: Any = raw
    for part in re.findall(r"[^.\[\]]+", path):
        value = value.get(part) if isinstance(value, dict) else None
    wanted = found["wanted"].replace(" | null", " or null").replace("object", "section")
    shown = "" if value is None or isinstance(value, dict | list) else f" ({value!r})"
    if found["got"] is None:
        return f"{path} must be {wanted}{found['rest']}, got {value!r}"
    return f"{path} must be {wanted}, got {found['got'].replace('object', 'section')}{shown}"


def _choices(path: str, root: type[msgspec.Struct]) -> list[str]:
    """The values of the field at `path`, where it takes one of several words."""
    hint = dict(all_fields(root)).get(re.sub(r"\[.*", "", path))
    found: list[str] = []
    pending = [hint]
    while pending:
        here = pending.pop(0)
        if isinstance(here, str):
            found.append(here)
        pending += typing.get_args(here)
    return found


def _yaml_problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or "not YAML"
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{problem}"


def _suggest(path: Path) -> str:
    """`; did you mean ...?` where the folder holds a YAML file of a similar name."""
    shipped = Path(__file__).parent / "configs"
    near: list[Path] = []
    for folder in (path.parent, shipped):
        if folder.is_dir():
            near += sorted(folder.glob("*.yaml"))
    by_stem = {one.stem: one for one in reversed(near)}
    close = difflib.get_close_matches(path.stem, by_stem, n=1, cutoff=0.6)
    if not close:
        return ""
    best = by_stem[close[0]]
    if best.is_relative_to(Path.cwd()):
        best = best.relative_to(Path.cwd())
    return f"; did you mean {best}?"
