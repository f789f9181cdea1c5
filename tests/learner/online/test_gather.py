"""Weights as they leave the learner: whole, by checkpoint names, one after the other."""

import weakref

import torch

from learner.online.gather import stream_weights, weight_shapes
from learner.online.publisher import shapes, to_bytes


def load(model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)


def test_a_tied_tensor_comes_once(model_dir):
    model = load(model_dir)
    weights = dict(stream_weights(model, torch.float32))
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert "lm_head.weight" not in weights
    for name, parameter in model.named_parameters():
        assert weights[name].equal(parameter), name


def test_nothing_is_kept_of_what_was_handed_out(model_dir):
    """What comes in another dtype is made for the one who asked, and gone when that is done."""
    stream = stream_weights(load(model_dir), torch.bfloat16)
    count = 0
    while (named := next(stream, None)) is not None:
        handed_out = weakref.ref(named[1])
        del named
        assert handed_out() is None
        count += 1
    assert count == 24


def test_bytes_are_those_of_the_dtype(model_dir):
    weights = dict(stream_weights(load(model_dir), torch.bfloat16))
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
    found = dict(stream_weights(model, torch.float32))
    saved = load_file(tmp_path / "model.safetensors")
    assert "model.layers.0.mlp.experts.3.down_proj.weight" in saved
    assert found.keys() == saved.keys()
    assert all(found[name].equal(saved[name]) for name in saved)
    assert shapes(weight_shapes(model, torch.float32)) == shapes(found)


def test_shapes_are_known_without_gathering(model_dir):
    from peft import LoraConfig, get_peft_model

    model = load(model_dir)
    assert shapes(weight_shapes(model, torch.bfloat16)) == shapes(
        dict(stream_weights(model, torch.bfloat16))
    )
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["mlp"])
    adapted = get_peft_model(load(model_dir), config)
    assert shapes(weight_shapes(adapted, torch.float32)) == shapes(
        weight_shapes(model, torch.float32)
    )
    trained = weight_shapes(adapted, torch.float32, trained=True)
    assert trained.keys() == {
        name for name in weight_shapes(model, torch.float32) if "q_proj." in name or "mlp." in name
    }
