"""A real chat model: SmolLM2 writes under edits, and every token of it is as it should be.

`dynatok collect` on forty chat tasks, then: nothing that the engine reported contradicts itself,
log-probabilities are those of the learner's spans, prompts are the tokenizer's own ids of the
whole text, and whatever says that it has stopped ends with the model's stop token.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynatok_online.data.storage import read_trajectories
from dynatok_online.models import SMOLLM2, resolve
from dynatok_online.requirements import requirement
from dynatok_online.spans.audit import audit
from dynatok_online.trajectory import RESPONSE, Trajectory

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

TOPICS = ("the harbor", "a lost dog", "the first snow", "a night train", "making bread")
STATES = ("upper", "lower", "no_digits", "no_comma")
BEHIND = (
    "Write it as you would tell it to a friend who has never been there, in your own words, "
    "and let it end where it ends. It is for the last page of a small book that will be read "
    "aloud in the evening. Thanks!"
)
"""More than a block of the cache, which sticky passes keep."""
TASKS = 40
MODES = {
    "exact": ("exact", "head"),
    "sticky": ("sticky", "head"),
    "late": ("exact", "late"),
}


@pytest.fixture(scope="module")
def model() -> Path:
    """Where `dynatok model smollm2` has put it."""
    try:
        return Path(resolve(SMOLLM2))
    except ValueError as error:
        pytest.skip(str(error))


def joined(pieces: list[list[int]]) -> list[int]:
    return [token for piece in pieces for token in piece]


def task(number: int) -> dict[str, Any]:
    first = STATES[number % 4]
    second = STATES[(number + 1 + number // 4 % 3) % 4]
    topic = TOPICS[number % len(TOPICS)]
    return {
        "task_id": f"chat-{number}",
        "messages": [
            {"role": "user", "content": f"rule: {{{{rule}}}}\nA line about {topic}. {BEHIND}"}
        ],
        "slots": {"rule": [first, *(one for one in STATES if one != first)]},
        "edits": [
            {"at": 6 + number % 5, "slot": "rule", "to": second},
            {"at": 20 + number % 7, "slot": "rule", "to": first},
        ],
        "max_tokens": 48,
        "split": "train",
    }


@pytest.fixture(scope="module", params=MODES)
def collected(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any], list[Trajectory]]:
    """The mode, what `collect` says at its end, and its trajectories."""
    folder = tmp_path_factory.mktemp(request.param)
    reuse, placement = MODES[request.param]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task(i)) + "\n" for i in range(TASKS)))
    settings = {
        "model": SMOLLM2,
        "tasks": str(folder / "tasks.jsonl"),
        "out": str(folder / "out"),
        "trajectories": TASKS,
        "sessions": 8,
        "reuse": reuse,
        "placement": placement,
        "engine": {
            "max_model_len": 512,
            "dtype": "float32",
            "kv_cache_memory_bytes": 400 << 20,
            "max_num_seqs": 20,
        },
    }
    (folder / "collect.yaml").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "collect", str(folder / "collect.yaml")],
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    return request.param, said, list(read_trajectories(folder / "out"))


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def test_nothing_contradicts_itself(collected: Any) -> None:
    mode, said, trajectories = collected
    assert len(trajectories) == TASKS
    assert (said["audit_mismatches"], said["problems"], said["dropped"]) == (0, [], {})
    assert not [one for one in trajectories if audit(one)]
    assert sum(len(one.edits) for one in trajectories) >= TASKS
    if mode == "sticky":
        kept = [p for one in trajectories for p in one.passes if p.reuse and p.reuse[-1].start]
        assert kept, "no pass kept anything behind its slot"


def test_logprobs_are_those_of_the_learners_spans(collected: Any, model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from dynatok_online import attention
    from learner.online.scorer import Scorer

    _, _, trajectories = collected
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    attention.prepare(loaded, "concat")
    scorer = Scorer(lambda: loaded, torch.device("cpu"))
    gaps = []
    for one in trajectories:
        every_token = [np.ones(len(one.response), bool)]
        rows = scorer.plan([one], every_token, every_token)
        assert sum(len(row.targets) for row in rows) == len(one.response)
        gaps += [np.abs(scorer.row(row) - row.logprobs) for row in rows]
    every = np.concatenate(gaps)
    print(f"{len(every)} tokens: mean gap {every.mean():.2e}, largest {every.max():.2e}")
    assert every.mean() <= 1e-4


def test_prompts_are_the_tokenizers_own_ids(collected: Any, tokenizer: Any) -> None:
    mode, _, trajectories = collected
    for one in trajectories:
        number = int(one.trajectory_id.removeprefix("chat-"))
        for part in one.passes:
            pieces = [[] if i == RESPONSE else one.pieces[i].tolist() for i in part.layout]
            place = part.layout.index(RESPONSE)
            for ids in (joined(pieces[:place]), joined(pieces[place:])):
                text = tokenizer.decode(ids)
                assert tokenizer.encode(text, add_special_tokens=False) == ids
            if mode != "exact":
                continue
            content = task(number)["messages"][0]["content"]
            content = content.replace("{{rule}}", part.states["rule"])
            own = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            assert joined(pieces) == tokenizer.encode(own, add_special_tokens=False)
    texts = {requirement(name).text for name in STATES}
    assert {p.states["rule"] for one in trajectories for p in one.passes} == texts


def test_what_has_stopped_ends_with_the_stop_token(collected: Any, tokenizer: Any) -> None:
    _, _, trajectories = collected
    ends = [(one.passes[-1].finish_reason, int(one.response[-1])) for one in trajectories]
    stopped = [token for reason, token in ends if reason == "stop"]
    assert stopped, "nothing has come to an end by itself; raise max_tokens"
    assert set(stopped) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    for one in trajectories:
        assert tokenizer.eos_token_id not in one.response[:-1].tolist()
