"""One trajectory in the terminal: its passes, its blocks, what was fed, and its text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynatok_online.spans.blocks import KINDS, blocks, recomputed_tokens
from dynatok_online.spans.build import audit
from dynatok_online.trajectory import Trajectory
from launch.inspect.fed import Detokenizer, append_token, fed, visible

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


def describe(trajectory: Trajectory, tokens: Detokenizer) -> RenderableType:
    """One trajectory: its passes, its blocks, what was fed, its text."""
    states = _states(trajectory)
    facts = " · ".join(f"{name} {value}" for name, value in trajectory.info.items())
    title = Text(visible(trajectory.trajectory_id), "bold")
    title.append(f"  {visible(facts)}".replace("\n", " "), "dim")
    title.no_wrap, title.overflow = True, "ellipsis"
    parts: list[RenderableType] = [title, _passes(trajectory, states), Text(), _strip(trajectory)]
    parts += [Text(), fed(trajectory, tokens), Text(), _response(trajectory, states, tokens)]
    for mismatch in audit(trajectory):
        parts.append(Text(f"audit: {mismatch}", "red"))
    return Group(*parts)


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


def _strip(trajectory: Trajectory) -> Group:
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
    title = Text(f"blocks of {trajectory.block_size} tokens, a row for each pass", "dim")
    return Group(title, table, legend)


def _response(trajectory: Trajectory, states: Sequence[int], tokens: Detokenizer) -> Text:
    text = Text()
    texts = tokens.texts(trajectory.response.tolist())
    for k, one in enumerate(trajectory.passes):
        for i in range(one.start, one.stop):
            token = int(trajectory.response[i])
            append_token(text, token, texts[i], tokens, f"reverse {_colour(states[k])}")
    return text


def _colour(state: int) -> str:
    return STATES[state % len(STATES)]
