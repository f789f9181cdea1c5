"""`dynatok inspect PATH`.

In the terminal a summary of each place, and for a few trajectories what `terminal` prints; the
same as a self-contained page, and the spans as a figure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dynatok_online.spans.build import audit
from dynatok_online.trajectory import Trajectory
from launch.decode import ConfigError
from launch.inspect.fed import Detokenizer, visible
from launch.inspect.stored import Stored, model_of, read
from launch.inspect.terminal import describe

PAGE_LIMIT = 100
"""Trajectories on one page, at most."""


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
    tokens = _tokens(model)
    console = Console()
    console.print(_summary(path, recordings))
    damage = [line for place in recordings for line in place.damage]
    for line in damage:
        console.print(Text(f"damaged: {visible(line)}", "red"), soft_wrap=True)
    for one in chosen[:limit]:
        console.print()
        console.print(describe(one, tokens))
    if len(chosen) > limit:
        console.print(f"\n{len(chosen) - limit} more: --limit {len(chosen)}, or --only ID for one")
    if model is None and chosen:
        console.print("tokens are shown as numbers; --model NAME shows them as text")
    if html is not None:
        _write_html(html, chosen, tokens, damage)
    if png is not None:
        from launch.inspect.spans_figure import draw

        _expect_some(chosen, path)
        draw(chosen[0], png)
        _say(f"spans of {chosen[0].trajectory_id}: {png}")
    return 1 if damage else 0


def _summary(path: Path, recordings: Sequence[Stored]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
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
            f"{100 * cached / held:.0f} % of {held}" if held else "–",
            Text(str(len(place.damage)), "red" if place.damage else ""),
            Text(str(mismatches), "red" if mismatches else ""),
        )
    return table


def _name(place: Path, path: Path) -> str:
    return str(place.relative_to(path)) if path in place.parents else place.name


def _tokens(model: str | None) -> Detokenizer:
    if model is None:
        return Detokenizer(lambda ids: "".join(f"⟨{number}⟩" for number in ids))
    from actor.tokenizer import load_tokenizer
    from dynatok_online import tiny

    try:
        tokenizer = load_tokenizer(tiny.resolve(model))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model {model}: its tokenizer cannot be loaded ({error})") from error
    return Detokenizer(tokenizer.decode, tokenizer.control)


def _write_html(
    path: Path, chosen: Sequence[Trajectory], tokens: Detokenizer, damage: Sequence[str]
) -> None:
    from dynatok_online.tiny import register_names
    from dynatok_online.view.export import page
    from dynatok_online.view.replay import events

    register_names()  # whatever model wrote about its world
    notes = [f"damaged: {line}" for line in damage]
    if len(chosen) > PAGE_LIMIT:
        notes.append(f"the first {PAGE_LIMIT} of {len(chosen)} trajectories; --only ID for one")
    recordings = [
        (one.trajectory_id, events(one, tokens.decode, tokens.control))
        for one in chosen[:PAGE_LIMIT]
    ]
    path.write_bytes(page(recordings, notes))
    _say(f"page: {path}")


def _expect_some(chosen: Sequence[Trajectory], path: Path) -> None:
    if not chosen:
        raise ConfigError(f"{path}: no trajectory to draw")


def _say(text: str) -> None:
    print(f"dynatok: {text}", file=sys.stderr, flush=True)
