"""Make the tiny model from scratch: `python -m dynatok_online.tiny.pretrain [--out DIR]`.

It sees static prompts only: no training text contains a prompt that changes. In the last steps a
share of the responses (`slips`) has one stretch written in the wrong letters; its characters carry
no loss, and the text goes on obeying the prompt. In a text without slips the letters so far predict
the letters to come as well as the prompt does, and the model all but stops looking them up. With
slips it follows an edit of them some of the time, so that its own samples hold successes.

Loss is on response characters only. The same seed, thread count and torch give the same weights.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

from dynatok_online.requirements import family
from dynatok_online.tiny import grammar, model_path, tokenizer, world

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3ForCausalLM

STEPS = 520
BATCH = 16
LEARNING_RATE = 3e-3
RESPONSE_LENGTH = 160
SLIPS = 0.2
SLIP_STEPS = 80
SLIP_SLOT = "case"
IGNORE = -100


def example(rng: random.Random, slips: float) -> tuple[str, str, list[bool]]:
    """A static prompt, a response to it, and which of the response's characters carry loss."""
    template = world.template(rng, "train")
    slots = world.random_states(rng)
    prompt = world.prompt(template, slots)
    right = {slot: str(state.requirement) for slot, state in slots.items()}
    start = stop = RESPONSE_LENGTH
    wrong = right
    if rng.random() < slips:
        start = rng.randrange(RESPONSE_LENGTH)
        stop = start + rng.randrange(8, 96)
        others = [item.name for item in family(SLIP_SLOT) if item.name != right[SLIP_SLOT]]
        wrong = right | {SLIP_SLOT: rng.choice(others)}

    text, carries = "", []
    for atom in grammar.atoms(rng):
        slipped = start <= len(text) < stop
        piece = atom.write(wrong if slipped else right) + " "
        text += piece
        carries += [not slipped] * len(piece)
        if len(text) >= RESPONSE_LENGTH:
            break
    return prompt, text[:RESPONSE_LENGTH], carries[:RESPONSE_LENGTH]


def batch(rng: random.Random, size: int, slips: float) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels`, [size, longest], padded on the right, where nothing looks."""
    import torch

    ids, labels = [], []
    for _ in range(size):
        prompt, response, carries = example(rng, slips)
        row = [tokenizer.VOCAB[c] for c in prompt + response]
        ids.append(row)
        kept = [i if ok else IGNORE for i, ok in zip(row[len(prompt) :], carries, strict=True)]
        labels.append([IGNORE] * len(prompt) + kept)
    width = max(map(len, ids))

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    return {
        "input_ids": pad(ids, tokenizer.PAD_ID),
        "labels": pad(labels, IGNORE),
    }


def new_model(seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of about one million parameters with random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer.VOCAB),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.PAD_ID,
        eos_token_id=tokenizer.EOS_ID,
        bos_token_id=None,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def pretrain(out: Path, seed: int, steps: int = STEPS, slips: float = SLIPS) -> None:
    """Train from scratch and save model and tokenizer in `out`."""
    import torch
    from rich.progress import Progress, TextColumn
    from transformers import GenerationConfig

    rng = random.Random(f"pretrain/{seed}")
    model = new_model(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    warmup, tail = 40, int(0.4 * steps)

    def schedule(step: int) -> float:
        """Linear warm-up, flat, then half a cosine down to 2 %."""
        if step < warmup:
            return (step + 1) / warmup
        done = max(0, step - (steps - tail)) / tail
        return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2

    model.train()
    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns) as progress:
        bar = progress.add_task("pretrain", total=steps, loss=math.nan)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * schedule(step)
            share = slips if step >= steps - SLIP_STEPS else 0.0
            loss = model(**batch(rng, BATCH, share)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.update(bar, advance=1, loss=loss.item())

    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=tokenizer.EOS_ID,
        pad_token_id=tokenizer.PAD_ID,
    )
    model.eval()
    model.save_pretrained(out)
    tokenizer.build().save_pretrained(out)


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(prog="python -m dynatok_online.tiny.pretrain")
    parser.add_argument("--out", type=Path, default=model_path(), help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--slips",
        type=float,
        default=SLIPS,
        help="share of responses with a slip in the last steps",
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    pretrain(args.out, args.seed, args.steps, args.slips)


if __name__ == "__main__":
    main()
