"""`dynatok bench actor`: what edits cost while text is generated.

One engine per model generates the same prompts in every mode: `static` (one state throughout) and
edited (4 and 8 states of one slot, in equal segments), with exact reuse and the slot at the head,
exact reuse and the slot late, sticky reuse, and sticky reuse that computes the last 32, 64 or 128
tokens anew (`refresh`). `plain vLLM` is static text from another engine, in another process, that
knows nothing of sessions, plugin and cache events: what watching costs. Prompts, number of tokens
and sampling are the same; modes take turns in one run, each round under a cache salt of its own,
and a ratio is the median over rounds of two times of the same round.

Beside each measured ratio stands its bound: static time over static time plus what the recomputed
tokens cost at the speed of a plain prefill, measured in the same run on short and on long prompts:
so much a token, and so much for each earlier position that it attends to. A second, watched run
edits by surprise and times from the edit to the first new token.

Prints a card for people, then one line of JSON for machines: a list of rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks._actor_report import write_page
from benchmarks._edit_cost import Row, Shape, Timed, costs, row_of
from benchmarks._edit_sessions import MODES, PLAIN, STATIC, Bench
from benchmarks._plain_vllm import PlainVllm
from protocol.run.progress import progress_bar

MODELS = ("tiny", "60m")


def main(arguments: list[str]) -> int:
    """The command line: a card for people, one line of JSON for machines."""
    parser = argparse.ArgumentParser(
        prog="dynatok bench actor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: dynatok bench actor --models tiny --sessions 1 8 --rounds 3",
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 32], help="at once")
    parser.add_argument("--states", type=int, nargs="+", default=[4, 8], help="of the slot")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--prefix", type=int, default=Shape.prefix, help="tokens before the slot")
    parser.add_argument("--slot", type=int, default=Shape.slot, help="tokens of the slot")
    parser.add_argument("--response", type=int, default=Shape.response, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=2, help="how often each mode runs")
    parser.add_argument(
        "--page", type=Path, help="write the figures into this page, rows beside it"
    )
    parser.add_argument(
        "--person",
        action="store_true",
        help="instead: one who edits beside collecting sessions in half of the cache they need",
    )
    options = parser.parse_args(arguments)
    shape = Shape(options.prefix, options.slot, options.response)
    if options.person:
        return run_person(options, shape)
    rows = run(
        options.models, options.sessions, options.states, options.modes, shape, options.rounds
    )
    card(rows, shape, Console())
    if options.page is not None:
        write_page(options.page, rows, shape, datetime.now(UTC).date().isoformat())
    print(json.dumps([asdict(row) for row in rows]), flush=True)
    return 0


def run(
    models: Sequence[str],
    sessions: Sequence[int],
    states: Sequence[int],
    modes: Sequence[str],
    shape: Shape,
    rounds: int,
) -> list[Row]:
    """Everything that is asked for, one engine after the other."""
    from actor.engine.engine import VllmEngine
    from dynatok_online import tiny

    rows = []
    columns = (TextColumn("{task.description}"), *Progress.get_default_columns()[1:3])
    console = Console(stderr=True)
    asyncio.set_event_loop(asyncio.new_event_loop())
    with (
        tempfile.TemporaryDirectory(prefix="dynatok-bench-") as folder,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        for model in models:
            starting = progress.add_task(f"{model}: starting vLLM", total=None)
            path = tiny.resolve("tiny") if model == "tiny" else model_60m(Path(folder))
            # A sticky edit takes a second place for the step in which its slot is computed.
            arguments = {
                "max_num_seqs": 2 * max(sessions),
                "num_gpu_blocks_override": _blocks(shape, sessions),
            }
            quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
            engine = VllmEngine.start(path, arguments, environment=quiet, run_id=f"bench-{model}")
            plain = None
            try:
                plain = PlainVllm(path, arguments)
                progress.remove_task(starting)
                vocabulary = 99 if model == "tiny" else 32000
                bench = Bench(model, engine, vocabulary, shape)
                for count in sessions:
                    arms = [(1, STATIC), (1, PLAIN), *((k, mode) for k in states for mode in modes)]
                    rows += measure(bench, plain, model, shape, count, arms, rounds, progress)
            finally:
                engine.shutdown()
                if plain is not None:
                    plain.close()
    return rows


def run_person(options: argparse.Namespace, shape: Shape) -> int:
    """A person beside the most sessions that are asked for; see `_person`."""
    from actor.engine.engine import VllmEngine
    from benchmarks._person import Person, one_round, said, write_person
    from dynatok_online import tiny

    sessions, mode = max(options.sessions), "sticky"
    needed = sessions * (sum(asdict(shape).values()) // 32 + 2)
    found = Person(sessions, mode, max(options.states), needed // 2, needed)
    arguments = {"max_num_seqs": 2 * sessions, "num_gpu_blocks_override": found.blocks}
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with progress_bar("starting vLLM", options.rounds) as bar:
        engine = VllmEngine.start(
            tiny.resolve("tiny"), arguments, environment=quiet, run_id="bench-person"
        )
        try:
            bench = Bench("tiny", engine, 99, shape)
            bar.name("a person beside collecting sessions")
            loop.run_until_complete(bench.generate(sessions, 4, mode, Timed()))  # warm up
            for done in range(options.rounds):
                loop.run_until_complete(one_round(bench, found))
                bar.move(done + 1)
        finally:
            engine.shutdown()
    print("\n".join(said(found)))
    if options.page is not None:
        write_person(options.page, [found], datetime.now(UTC).date().isoformat())
    measured = {"p95_ratio": found.p95_ratio, "collection": found.collection}
    print(json.dumps({**asdict(found), **measured}), flush=True)
    return 0


def measure(
    bench: Bench,
    plain: PlainVllm,
    model: str,
    shape: Shape,
    sessions: int,
    arms: Sequence[tuple[int, str]],
    rounds: int,
    progress: Progress,
) -> list[Row]:
    """All arms (states, mode) at one number of sessions."""
    loop = asyncio.get_event_loop()
    # Edits are few where sessions are few. The first ones also warm up.
    surprises = [arm for arm in arms if arm[0] > 1] * (rounds if sessions == 1 else 1)
    total = len(surprises) + rounds * len(arms)
    task = progress.add_task(f"{model}, {sessions} sessions", total=total)
    timed = {arm: Timed() for arm in arms}
    short, long = Timed(), Timed()
    prompts = bench.prompts(sessions)
    for prefix in "PL":  # warm up
        loop.run_until_complete(bench.prefill(sessions, prefix, Timed()))
    loop.run_until_complete(bench.generate(sessions, 1, STATIC, Timed()))
    plain.generate(prompts, shape.response)
    for arm in surprises:
        progress.update(task, description=f"{model}, {sessions} sessions: edits, {arm[1]} {arm[0]}")
        loop.run_until_complete(bench.surprise(sessions, *arm, timed[arm]))
        progress.advance(task)
    for turn in range(rounds):
        loop.run_until_complete(bench.prefill(sessions, "P", short))
        loop.run_until_complete(bench.prefill(sessions, "L", long))
        # Whoever runs first in a round does not do so in the next.
        for arm in (*arms[turn % len(arms) :], *arms[: turn % len(arms)]):
            progress.update(task, description=f"{model}, {sessions} sessions: {arm[1]} {arm[0]}")
            if arm[1] == PLAIN:
                timed[arm].seconds.append(plain.generate(prompts, shape.response))
            else:
                loop.run_until_complete(bench.generate(sessions, *arm, timed[arm]))
            progress.advance(task)
    progress.remove_task(task)
    static, watched = timed[1, STATIC], timed[1, PLAIN]
    # It says nothing of its cache; it computes what static text computes.
    watched.computed, watched.pairs = static.computed, static.pairs
    cost = costs(short, long)
    return [row_of(model, sessions, arm, one, static, shape, cost) for arm, one in timed.items()]


def model_60m(folder: Path) -> str:
    """A Qwen3 of 60 million parameters with random weights, made in `folder`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=14,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _blocks(shape: Shape, sessions: Sequence[int]) -> int:
    """Blocks of an engine that holds every session twice over, and soon uses all of them again.

    A cache that was never filled would flatter whoever needs few blocks: those lie in order.
    """
    return max(128, 2 * max(sessions) * (sum(asdict(shape).values()) // 32 + 2))


def card(rows: Sequence[Row], shape: Shape, console: Console) -> None:
    """The figures for people."""
    console.print(
        f"Generating under edits: prefix {shape.prefix}, slot {shape.slot}, response "
        f"{shape.response} tokens.\n"
        "n: sessions at once, K: states. ratio: speed against static; bound: what the\n"
        "recomputed tokens leave of it. p50, p95: ms from a surprise edit to the first\n"
        "new token. reused, made: tokens per session found in the cache and computed."
    )
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("model", "n", "K", "mode"):
        justify: Any = "left" if name in ("model", "mode") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    for name in ("tok/s", "ratio", "bound", "p50", "p95", "reused", "made"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.model,
            str(row.sessions),
            str(row.states),
            row.mode,
            f"{row.tok_s:.0f}",
            f"{row.ratio_to_static:.2f}",
            f"{row.bound_ratio:.2f}",
            "" if row.edit_ms_p50 is None else f"{row.edit_ms_p50:.1f}",
            "" if row.edit_ms_p95 is None else f"{row.edit_ms_p95:.1f}",
            str(row.reused_tokens),
            str(row.computed_tokens),
            end_section=row.mode in (STATIC, [*MODES][-1]),
        )
    console.print(table)
    for row in rows:
        if row.sessions == 1 and row.edit_ms_p50 is not None:
            allowed = 3 * row.step_ms + row.prefill_ms
            console.print(
                f"{row.model}, {row.mode}, {row.states} states: first token {row.edit_ms_p50:.1f} "
                f"ms after an edit; 3 decode steps and the prefill take {allowed:.1f} ms"
            )
