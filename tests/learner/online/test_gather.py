"""Weights as they leave the learner."""

import torch

from learner.online.gather import as_checkpoint, gather_weights
from learner.online.publisher import shapes, to_bytes


def load(model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)


def test_a_tied_tensor_appears_once_and_nothing_is_shared(model_dir):
    model = load(model_dir)
    weights = gather_weights(model, torch.float32)
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert "lm_head.weight" not in weights
    before = weights["model.norm.weight"].clone()
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    assert weights["model.norm.weight"].equal(before)


def test_lora_is_merged_under_checkpoint_names(model_dir):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    plain = gather_weights(load(model_dir), torch.float32)
    model = get_peft_model(
        load(model_dir), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    weights = gather_weights(model, torch.float32)
    assert weights.keys() == plain.keys()
    merged = dict(model.merge_and_unload().named_parameters())
    for name, value in weights.items():
        torch.testing.assert_close(value, merged[name].data)
        assert ("q_proj" in name) == (not value.equal(plain[name]))


def test_bytes_are_those_of_the_dtype(model_dir):
    weights = gather_weights(load(model_dir), torch.bfloat16)
    name, tensor = next(iter(weights.items()))
    sent = to_bytes(tensor)
    assert sent.dtype == "BF16", name
    assert sent.data.nbytes == 2 * tensor.numel()
    back = torch.frombuffer(bytearray(sent.data), dtype=torch.bfloat16).view(sent.shape)
    assert back.equal(tensor)
    assert shapes(weights)[next(iter(weights))] == ("BF16", sent.shape)


def test_weights_of_experts_travel_as_a_checkpoint_holds_them(tmp_path):
    """One tensor an expert, as in the file that the model was saved to."""
    from safetensors.torch import load_file

    from benchmarks._small_models import small_model

    small_model("qwen3_moe").float().save_pretrained(tmp_path)
    model = load(tmp_path)
    found = as_checkpoint(model, gather_weights(model, torch.float32))
    saved = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.mlp.experts.3.down_proj.weight" in saved
    assert found.keys() == saved.keys()
    assert all(found[name].equal(saved[name]) for name in saved)


def test_weights_of_other_models_travel_as_they_are(model_dir):
    model = load(model_dir)
    weights = gather_weights(model, torch.float32)
    assert as_checkpoint(model, weights).keys() == weights.keys()
