"""How a run goes, for people: a live panel on a terminal, a line now and then elsewhere.

Both are written to stderr, so that stdout holds the result alone. Both read only what the
processes write for everybody: `metrics.jsonl` and the logs.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.history import ADHERENCE, History, smooth

_BARS = "▁▂▃▄▅▆▇█"


def display(run_dir: Path, max_steps: int | None = None) -> LivePanel | PlainLines:
    """The display that suits this process's stderr."""
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return LivePanel(run_dir, max_steps, console)
    return PlainLines(run_dir, max_steps)


class PlainLines:
    """One line every `every` seconds, and one whenever a child begins or ends."""

    def __init__(
        self,
        run_dir: Path,
        max_steps: int | None = None,
        out: TextIO | None = None,
        every: float = 10.0,
    ) -> None:
        self._run_dir = run_dir
        self._max_steps = max_steps
        self._history = History(run_dir)
        self._out = out or sys.stderr
        self._every = every
        self._next = 0.0
        self._state: dict[str, str] = {}

    def update(self, state: Mapping[str, str], seconds: float) -> None:
        """Print what there is to say at this moment, if anything."""
        changed = [f"{name} {how}" for name, how in state.items() if self._state.get(name) != how]
        self._state = dict(state)
        if not changed and seconds < self._next:
            return
        self._next = seconds + self._every
        self._history.update()
        numbers = [*filter(None, summaries(self._history, self._max_steps))]
        facts = [*changed, *numbers]
        if not numbers:  # no numbers yet: say what they are busy with
            facts = [f"{name} {how}: {self._busy_with(name)}" for name, how in state.items()]
        print(f"{clock(seconds)}  " + " | ".join(facts), file=self._out, flush=True)

    def _busy_with(self, name: str) -> str:
        return last_line(self._run_dir / "logs" / f"{name}.log", 60) or "starting"

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        """Nothing to take down."""


class LivePanel:
    """A panel that redraws itself in place, four times a second."""

    def __init__(self, run_dir: Path, max_steps: int | None, console: Console) -> None:
        self._run_dir = run_dir
        self._max_steps = max_steps
        self._history = History(run_dir)
        self._next = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def update(self, state: Mapping[str, str], seconds: float) -> None:
        """Redraw, at most four times a second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.25
        self._history.update()
        self._live.update(
            draw(self._run_dir, self._history, state, seconds, self._max_steps), refresh=True
        )

    def say(self, text: str) -> None:
        """Print a line above the panel."""
        self._live.console.print(text)

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        self._live.stop()


def draw(
    run_dir: Path,
    history: History,
    state: Mapping[str, str],
    seconds: float,
    max_steps: int | None = None,
) -> Panel:
    """The panel at one moment."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(ratio=1)
    facts = dict(line.split(": ", 1) for line in summaries(history, max_steps) if line)
    for name, how in state.items():
        style = "green" if how in ("running", "exited with code 0") else "red"
        said = facts.get(name, "")
        if not said:
            said = last_line(run_dir / "logs" / f"{name}.log", 100)
        line = Text(said or "starting", overflow="ellipsis", no_wrap=True)
        table.add_row(Text(name, style=style), line if how == "running" else Text(how, style=style))
    for title, process, name in (
        ("adherence after edit", "actor", ADHERENCE),
        ("loss", "learner", "loss"),
    ):
        curve = [value for _, _, value in history.curve(process, name)]
        if curve:
            soft = smooth(curve)
            # The adherence is a mean already, and its interval is that of the mean.
            last = f"{soft[-1]:.3f}"
            if name == ADHERENCE:
                last = f"{curve[-1]:.3f}{_how_sure(history, process)}"
            table.add_row(title, Text(f"{spark(soft)} {last}", style="cyan"))
    if held_out := _held_out(history):
        table.add_row("on held-out tasks", Text(held_out))
    return Panel(
        Group(table),
        title=f"{run_dir.name}  {clock(seconds)}",
        subtitle="Ctrl-C stops",
        border_style="dim",
    )


def summaries(history: History, max_steps: int | None = None) -> list[str]:
    """One line per process, `name: facts`; empty where a process has logged nothing yet."""
    others = {name for name, _ in history.latest if name.startswith("actor-")}
    actors = [(name, _actor_facts(history, name)) for name in ("actor", *sorted(others))]
    step = _last_step(history)
    of = f"/{max_steps}" if max_steps else ""
    learner = _facts(
        history,
        "learner",
        ("loss {:.3f}", "loss"),
        ("weights {:.0f}", "version"),
        ("lag {:.1f}", "policy_lag_mean"),
        ("at most {:.0f}", "policy_lag_max"),
        ("gap {:.1e}", "logprob_gap"),
        ("stale {:.0f}", "dropped_stale"),
        ("sync {:.1%}", "sync_share"),
        ("idle {:.0%}", "idle_share"),
    )
    if step is not None:
        learner = [f"step {step}{of}", *learner]
    return [
        f"{name}: {', '.join(facts)}" if facts else ""
        for name, facts in (*actors, ("learner", learner))
    ]


def _how_sure(history: History, actor: str) -> str:
    """` ± 0.03 (256 edits)`: the running adherence's interval and count, where they are known."""
    half, edits = (history.number(actor, f"{ADHERENCE}_{what}") for what in ("half", "edits"))
    if edits is None:
        return ""
    return ("" if half is None else f" ± {half:.2f}") + f" ({edits:.0f} edits)"


def _held_out(history: History) -> str:
    """What the last evaluation has found; empty before any."""
    shown = []
    for title, name in (("after edit", "after_edit"), ("static", "static")):
        mean, half = (
            history.number("actor", f"evaluation_adherence_{name}{end}") for end in ("", "_half")
        )
        if mean is not None:
            shown.append(f"{title} {mean:.2f}" + ("" if half is None else f" ± {half:.2f}"))
    edits, passes = (
        history.number("actor", f"evaluation_{name}") for name in ("edits_judged", "passes_static")
    )
    if shown and edits is not None:
        shown[0] += f" ({edits:.0f} edits)"
    if len(shown) > 1 and passes is not None:
        shown[1] += f" ({passes:.0f} passes)"
    repeated = history.number("actor", "evaluation_repetition")
    if shown and repeated is not None:
        shown.append(f"repetition {repeated:.2f}")
    return ", ".join(shown)


def _actor_facts(history: History, name: str) -> list[str]:
    facts = _facts(
        history,
        name,
        ("weights {:.0f}", "weight_version"),
        ("{:.0f} trajectories", "trajectories"),
        ("{:.0f} edits", "edits"),
        ("{:.0f} tokens/s", "tokens_per_second"),
        ("{:.0f} tokens reused", "reused_tokens"),
        ("idle {:.0%}", "idle_share"),
        ("adherence after edit {:.2f}", ADHERENCE),
    )
    if history.number(name, ADHERENCE) is not None:
        facts[-1] += _how_sure(history, name)
    return facts


def _facts(history: History, process: str, *wanted: tuple[str, str]) -> list[str]:
    out = []
    for shape, name in wanted:
        value = history.number(process, name)
        if value is not None:
            out.append(shape.format(value))
    return out


def _last_step(history: History) -> int | None:
    curve = history.curve("learner", "loss")
    return curve[-1][1] if curve else None


def spark(values: Sequence[float], width: int = 40) -> str:
    """The curve as `width` bars between its own lowest and highest value."""
    if not values:
        return ""
    chosen = [values[i * len(values) // width] for i in range(width)]
    chosen = list(values) if len(values) <= width else [*chosen[:-1], values[-1]]
    low, high = min(chosen), max(chosen)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in chosen)


def clock(seconds: float) -> str:
    """`1:05`, `1:02:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def last_line(log: Path, width: int) -> str:
    """The last line of a log, cut to `width`; empty where there is none."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
        said = [line.rpartition("\r")[2].strip() for line in lines]
        text = next((line for line in reversed(said) if line), "")
        return text if len(text) <= width else text[: width - 1] + "…"
    return ""
