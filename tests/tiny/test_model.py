"""The committed model: small enough, loadable, and better at reading than at guessing."""

import subprocess
import sys
from itertools import islice

import pytest

from dynatok_online.tiny import check, model_path, pretrain, sampling, tokenizer, world

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other
    return transformers.AutoModelForCausalLM.from_pretrained(model_path()).eval()


def test_files_are_small() -> None:
    files = list(model_path().iterdir())
    names = {file.name for file in files}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= names
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert sum(file.stat().st_size for file in files) <= 8 * 2**20


def test_model_and_tokenizer_load(model) -> None:
    loaded = transformers.AutoTokenizer.from_pretrained(model_path())
    assert loaded.get_vocab() == tokenizer.VOCAB
    assert model.config.architectures == ["Qwen3ForCausalLM"]
    assert model.config.vocab_size == len(tokenizer.VOCAB)
    assert model.config.max_position_embeddings >= 1024
    assert model.config.head_dim % 32 == 0
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_it_follows_standing_requirements(model) -> None:
    tasks = list(islice(world.tasks("heldout", edits=(0, 0), max_tokens=48), 12))
    result = check.measure(tasks, sampling.sample(model, tasks))
    assert result["static"] >= 0.85


def test_sampling_under_edits_is_that_of_a_fresh_prompt(model) -> None:
    """Greedy text is the same from rows that step together as from one full forward per token."""
    tasks = list(islice(world.tasks(max_tokens=66, edits=(1, 1)), 2))
    for passes in sampling.sample(model, tasks, temperature=1e-4):
        response = "".join(item.text for item in passes)
        assert [item.before for item in passes] == [response[: len(i.before)] for i in passes]
        for item in passes:
            ids = torch.tensor(
                [[tokenizer.VOCAB[c] for c in item.prompt + item.before + item.text]]
            )
            with torch.inference_mode():
                best = model(ids).logits[0, :-1].argmax(-1)[-len(item.text) :]
            assert "".join(list(tokenizer.VOCAB)[i] for i in best) == item.text


def test_a_slip_carries_no_loss_and_the_rest_does() -> None:
    import random

    for seed in range(20):
        prompt, response, carries = pretrain.example(random.Random(seed), slips=1.0)
        assert len(response) == len(carries) == pretrain.RESPONSE_LENGTH
        assert prompt.endswith("Text:\n")
        assert not all(carries)
    assert all(pretrain.example(random.Random(0), slips=0.0)[2])


def test_one_step_from_scratch() -> None:
    import random

    small = pretrain.new_model(seed=0)
    loss = small(**pretrain.batch(random.Random(0), 2, slips=0.5)).loss
    loss.backward()
    assert 3.0 < loss.item() < 8.0


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, dynatok_online.requirements, dynatok_online.tasks, dynatok_online.tiny.world\n"
        "import dynatok_online.tiny.check, dynatok_online.tiny.pretrain\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
