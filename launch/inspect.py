"""`dynatok inspect`: what stored trajectories hold, for people.

In the terminal a summary of each place, and for a few trajectories their passes, their block
strips and their text; the same as a self-contained page, and the spans as a figure.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynatok_online.spans.blocks import KINDS, blocks, recomputed_tokens
from dynatok_online.spans.build import audit
from dynatok_online.trajectory import Trajectory
from launch.decode import ConfigError
from launch.recordings import Recording, model_of, read

Decode = Callable[[Sequence[int]], str]

STYLES = {
    "reused": ("▓", "green"),
    "kept": ("▚", "yellow"),
    "shared": ("░", "green"),
    "new": ("█", "blue"),
    "recomputed": ("▄", "red"),
    "evicted": ("x", "magenta"),
}
"""Sign and colour of each kind of block: either alone tells them apart."""
STATES = ("blue", "dark_orange3", "green4", "magenta", "yellow4", "dark_cyan", "red3", "purple")
PAGE_LIMIT = 100
"""Trajectories on one page, at most."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def inspect(
    path: Path,
    *,
    limit: int = 1,
    only: str | None = None,
    model: str | None = None,
    html: Path | None = None,
    png: Path | None = None,
) -> int:
    """Show what lies at `path`; 1 where something in it is damaged. Raises ConfigError."""
    recordings = read(path)
    chosen = [one for place in recordings for one in place.trajectories]
    if only is not None:
        chosen = [one for one in chosen if one.trajectory_id == only]
        if not chosen:
            raise ConfigError(f"{path}: no trajectory is called {only!r}")
    model = model or model_of(path, recordings)
    decode = _decoder(model)
    console = Console()
    console.print(_summary(path, recordings))
    damage = [line for place in recordings for line in place.damage]
    for line in damage:
        console.print(Text(f"damaged: {visible(line)}", "red"), soft_wrap=True)
    for one in chosen[:limit]:
        console.print()
        console.print(describe(one, decode))
    if len(chosen) > limit:
        console.print(f"\n{len(chosen) - limit} more: --limit {len(chosen)}, or --only ID for one")
    if model is None and chosen:
        console.print("tokens are shown as numbers; --model NAME shows them as text")
    if html is not None:
        _write_html(html, chosen, decode, damage)
    if png is not None:
        from launch.spans_figure import draw

        _expect_some(chosen, path)
        draw(chosen[0], png)
        _say(f"spans of {chosen[0].trajectory_id}: {png}")
    return 1 if damage else 0


def describe(trajectory: Trajectory, decode: Decode) -> RenderableType:
    """One trajectory: its passes, its blocks, its text."""
    states = _states(trajectory)
    facts = " · ".join(f"{name} {value}" for name, value in trajectory.info.items())
    title = Text(visible(trajectory.trajectory_id), "bold")
    title.append(f"  {visible(facts)}".replace("\n", " "), "dim")
    title.no_wrap, title.overflow = True, "ellipsis"
    parts: list[RenderableType] = [title, _passes(trajectory, states), Text(), _strip(trajectory)]
    parts += [Text(), _response(trajectory, states, decode)]
    for mismatch in audit(trajectory):
        parts.append(Text(f"audit: {mismatch}", "red"))
    return Group(*parts)


def visible(text: str) -> str:
    """Text that steers no terminal: control and direction characters become escapes."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _summary(path: Path, recordings: Sequence[Recording]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("where", overflow="fold")
    columns = ("trajectories", "tokens", "passes", "edits", "reused", "damaged", "audit")
    for name in columns:
        table.add_column(name, justify="right")
    for place in recordings:
        found = place.trajectories
        passes = [(one, k) for one in found for k in range(len(one.passes))]
        cached = sum(one.passes[k].num_cached_tokens for one, k in passes)
        held = sum(one.kv_length(k) for one, k in passes)
        mismatches = sum(len(audit(one)) for one in found)
        table.add_row(
            visible(_name(place.path, path)),
            str(len(found)),
            str(sum(len(one.response) for one in found)),
            str(len(passes)),
            str(sum(len(one.edits) for one in found)),
            f"{100 * cached / held:.0f} %" if held else "–",
            Text(str(len(place.damage)), "red" if place.damage else ""),
            Text(str(mismatches), "red" if mismatches else ""),
        )
    return table


def _name(place: Path, path: Path) -> str:
    return str(place.relative_to(path)) if path in place.parents else place.name


def _states(trajectory: Trajectory) -> list[int]:
    """The number of each pass's state: equal slot texts are one state."""
    seen: list[dict[str, str]] = []
    numbers = []
    for one in trajectory.passes:
        if one.states not in seen:
            seen.append(one.states)
        numbers.append(seen.index(one.states))
    return numbers


def _passes(trajectory: Trajectory, states: Sequence[int]) -> Table:
    slots = list(dict.fromkeys(slot for one in trajectory.passes for slot in one.scores))
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in ("pass", "tokens", "fed", "reused", "computed", "again", "weights", "ended by"):
        table.add_column(name, justify="right")
    for slot in slots:
        table.add_column(visible(slot), justify="right")
    for k, one in enumerate(trajectory.passes):
        table.add_row(
            Text(f"■ {k}", _colour(states[k])),
            str(one.stop - one.start),
            str(trajectory.fed_length(k)),
            str(one.num_cached_tokens),
            str(trajectory.kv_length(k) - one.num_cached_tokens),
            str(recomputed_tokens(trajectory, k)),
            ",".join(str(run.version) for run in one.weight_versions) or "–",
            visible(one.finish_reason),
            *(f"{one.scores[slot]:.2f}" if slot in one.scores else "–" for slot in slots),
        )
    return table


def _strip(trajectory: Trajectory) -> Table:
    """A row for each pass: its blocks in engine order, and what its edit changed."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="dim")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    counts = dict.fromkeys(KINDS, 0)
    before: dict[str, str] = {}
    for k, one in enumerate(trajectory.passes):
        row = Text()
        for block in blocks(trajectory, k):
            counts[block.kind] += 1
            row.append(*STYLES[block.kind])
        changed = {slot: text for slot, text in one.states.items() if before.get(slot) != text}
        before = one.states
        said = " · ".join(f"{visible(slot)}: {visible(t.strip())}" for slot, t in changed.items())
        table.add_row(f"{k:>6}", row, Text(said))
    legend = Text()
    for kind in KINDS:
        sign, colour = STYLES[kind]
        legend.append(f"{sign} ", colour).append(f"{kind}\u00a0{counts[kind]}  ")
    table.add_row("", legend, Text(f"{trajectory.block_size} tokens each", "dim"))
    return table


def _response(trajectory: Trajectory, states: Sequence[int], decode: Decode) -> Text:
    text = Text()
    shown = 0
    for k, one in enumerate(trajectory.passes):
        whole = decode(trajectory.response[: one.stop].tolist())
        text.append(visible(whole[shown:]), f"reverse {_colour(states[k])}")
        shown = len(whole)
    return text


def _colour(state: int) -> str:
    return STATES[state % len(STATES)]


def _decoder(model: str | None) -> Decode:
    if model is None:
        return lambda ids: "".join(f"⟨{number}⟩" for number in ids)
    from actor.tokenizer import load_tokenizer
    from dynatok_online import tiny

    try:
        return load_tokenizer(tiny.resolve(model)).decode
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model {model}: its tokenizer cannot be loaded ({error})") from error


def _write_html(
    path: Path, chosen: Sequence[Trajectory], decode: Decode, damage: Sequence[str]
) -> None:
    from dynatok_online.view.export import page
    from dynatok_online.view.replay import events

    notes = [f"damaged: {line}" for line in damage]
    if len(chosen) > PAGE_LIMIT:
        notes.append(f"the first {PAGE_LIMIT} of {len(chosen)} trajectories; --only ID for one")
    recordings = [(one.trajectory_id, events(one, decode)) for one in chosen[:PAGE_LIMIT]]
    path.write_bytes(page(recordings, notes))
    _say(f"page: {path}")


def _expect_some(chosen: Sequence[Trajectory], path: Path) -> None:
    if not chosen:
        raise ConfigError(f"{path}: no trajectory to draw")


def _say(text: str) -> None:
    print(f"dynatok: {text}", file=sys.stderr, flush=True)
