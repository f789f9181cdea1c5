"""What a run leaves behind loads, and computes what was trained."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from learner.saving import ADAPTER, MODEL, save_trained
from tests.models import make

IDS = torch.arange(20)[None] % 23


class Trainer(SimpleNamespace):
    """As much of one as saving asks for."""

    processing_class = None

    def save_model(self, folder):
        self.model.save_pretrained(folder)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_adapters_are_in_the_model_and_beside_it(tmp_path, tied):
    plain = make("qwen3", torch.float32, tie_word_embeddings=tied)
    lora = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    model = get_peft_model(copy.deepcopy(plain), lora)
    save_trained(Trainer(model=model), tmp_path, first=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / MODEL, dtype=torch.float32)
    assert (logits(loaded) - logits(model)).abs().max() < 1e-5
    assert (logits(loaded) - logits(plain)).abs().max() > 1e-2
    beside = PeftModel.from_pretrained(plain, tmp_path / ADAPTER)
    assert (logits(beside) - logits(model)).abs().max() < 1e-6


def test_a_whole_model_stands_alone(tmp_path):
    model = make("qwen3", torch.float32)
    save_trained(Trainer(model=model), tmp_path, first=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / MODEL, dtype=torch.float32)
    assert logits(loaded).equal(logits(model))
    assert not (tmp_path / ADAPTER).exists()


def test_another_rank_writes_no_model(tmp_path):
    model = get_peft_model(make("qwen3", torch.float32), LoraConfig(target_modules=["q_proj"]))
    save_trained(Trainer(model=model), tmp_path, first=False)
    assert not (tmp_path / MODEL).exists()
