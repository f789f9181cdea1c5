"""What LoRA trains is what actors serve, whatever is set, or it is refused by name."""

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dynatok_online import attention
from learner.lora import check_adapter, check_model, check_names, engine_arguments, rank_of
from learner.online.adapters import check_separable, check_servable
from learner.online.canary import canary, canary_texts
from learner.online.gather import stream_weights, to_publish
from learner.online.scorer import Scorer

IDS = torch.arange(24)[None] % 40
BOTH = ["embed_tokens", "lm_head"]

SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "dropout": {"lora_dropout": 0.5},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora of the head": {"use_dora": True, "target_modules": ["lm_head"]},
    "lora_bias": {"lora_bias": True},
    "lora_bias, none to add to": {"lora_bias": True, "target_modules": ["up_proj"]},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "all-linear": {"target_modules": "all-linear"},
    "embeddings": {"target_modules": ["embed_tokens", "v_proj"]},
    "dora of embeddings": {"target_modules": ["embed_tokens"], "use_dora": True},
    "head": {"target_modules": ["lm_head"]},
    "embeddings and head": {"target_modules": BOTH},
    "embeddings and head, tied": {"target_modules": BOTH, "ensure_weight_tying": True},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embeddings": {"modules_to_save": ["embed_tokens"]},
    "saved both": {"modules_to_save": BOTH},
    "saved both, tied": {"modules_to_save": BOTH, "ensure_weight_tying": True},
    "saved norm": {"modules_to_save": ["norm"]},
    "saved, with adapters inside": {
        "modules_to_save": ["mlp"],
        "target_modules": ["q_proj", "up_proj"],
    },
    "rank_pattern": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 32}},
    "layers_to_transform": {"layers_to_transform": [1]},
    "exclude_modules": {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    "rows": {"trainable_token_indices": [1, 2, 3]},
    "rows of both": {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}},
    "other rows of both": {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [3]}},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "mica": {"init_lora_weights": "mica"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}
REFUSED = {"lora_bias, none to add to"}
REFUSED_TIED = REFUSED | {
    *("dora of the head", "embeddings", "dora of embeddings", "head", "embeddings and head"),
    # peft ties the adapters through memory that two parameters share; DeepSpeed parts them.
    "embeddings and head, tied",
    *("saved head", "saved embeddings", "saved both", "other rows of both"),
}


def gather_weights(model, dtype):
    """All of a stream, kept."""
    return {name: one.clone() for name, one in stream_weights(model, dtype)}


def plain_model(tied, seed=0):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    ).eval()
    return stirred(model, model.parameters())


def stirred(model, parameters):
    """As after training: nothing is zero, one, or what it was."""
    with torch.no_grad():
        for one in parameters:
            one.add_(torch.randn_like(one) * 0.05)
    return model


def adapted_model(tied, plain=None, **settings):
    config = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of the settings that are refused here
        model = get_peft_model(
            plain or plain_model(tied), LoraConfig(task_type="CAUSAL_LM", **config)
        )
    return stirred(model.eval(), (one for one in model.parameters() if one.requires_grad))


def served(weights, tied):
    """What a plain model of the same kind computes with published weights."""
    with torch.no_grad():
        return loaded(weights, tied)(IDS).logits


def loaded(weights, tied):
    model = plain_model(tied, seed=9)
    own = dict(model.named_parameters())
    assert own.keys() <= weights.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", SETTINGS)
def test_served_equals_trained_or_is_refused(name, tied):
    model = adapted_model(tied, **SETTINGS[name])
    if name in (REFUSED_TIED if tied else REFUSED):
        with pytest.raises(ValueError, match=r"learner\.lora"):
            check_servable(model)
        return
    check_servable(model)
    with torch.no_grad():
        trained = model(IDS).logits
        before = {key: one.clone() for key, one in model.state_dict().items()}
        weights = gather_weights(model, torch.float32)
        assert (served(weights, tied) - trained).abs().max() < 1e-5
        assert model(IDS).logits.equal(trained), "the model in training was changed"
    assert all(one.equal(before[key]) for key, one in model.state_dict().items())
    for key, one in model.merge_and_unload().named_parameters():
        torch.testing.assert_close(weights[key], one.data, rtol=0, atol=1e-6)


def test_adapters_of_experts_are_merged(tmp_path):
    """They adapt one tensor of all experts, and two of them lie in each other."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from benchmarks._small_models import small_model

    torch.manual_seed(0)
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, target_parameters=experts, target_modules=["q_proj"])
    model = get_peft_model(small_model("qwen3_moe").float().eval(), config)
    stirred(model, (one for one in model.parameters() if one.requires_grad))
    check_servable(model)
    with torch.no_grad():
        trained = model(IDS).logits
        weights = gather_weights(model, torch.float32)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        model.get_base_model().config.save_pretrained(tmp_path)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        assert (plain(IDS).logits - trained).abs().max() < 1e-5


def wrongly_gathered(model):
    """As weights were published once: plain LoRA on linear layers is merged, and nothing else."""
    from peft.tuners.lora import Linear, LoraLayer

    weights = {}
    for name, one in model.get_base_model().named_parameters():
        owner = name.rpartition(".")[0]
        if "lora_" in owner or "original_module" in owner:
            continue
        layer = model.get_base_model().get_submodule(owner.removesuffix(".base_layer"))
        value = one.detach().clone()
        if isinstance(layer, LoraLayer) and name.endswith(".weight") and isinstance(layer, Linear):
            value += layer.get_delta_weight("default").detach()
        name = name.replace(".base_layer", "").replace(".modules_to_save.default", "")
        weights[name] = value
    return weights


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    "name", ["dora", "lora_bias", "embeddings", "saved head", "saved embeddings", "as it comes"]
)
def test_the_canary_catches_what_was_published_wrongly(name, tied):
    """It is what the adapted model itself computes, so it needs to know of no setting."""
    attention.prepare(plain := plain_model(tied), "concat")
    model = adapted_model(tied, plain, **SETTINGS[name])
    texts = canary_texts(40, 2, 24, seed=0)
    truth = canary(Scorer(lambda: model, torch.device("cpu")), texts, 1e-3)
    wrong = loaded(wrongly_gathered(model), tied)
    answers = []
    for ids in texts:
        with torch.no_grad():
            table = wrong(torch.tensor([ids])).logits[0].log_softmax(-1)
        answers.append(table[torch.arange(len(ids) - 1), torch.tensor(ids[1:])])
    gap = max(
        (torch.tensor(want) - found).abs().mean().item()
        for want, found in zip(truth.logprobs, answers, strict=True)
    )
    # An untied module that is trained whole was right before, too.
    right = name == "as it comes" or (not tied and name.startswith("saved"))
    assert gap < 1e-5 if right else gap > 10 * truth.tolerance


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_two_adapters_are_both_merged_and_one_that_rests_is_not(dora):
    model = adapted_model(False, use_dora=dora)
    config = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model.add_adapter("second", config)
    model.add_adapter("resting", config)
    model.base_model.set_adapter(["default", "second"])
    with torch.no_grad():
        trained = model(IDS).logits
    weights = gather_weights(model, torch.float32)
    assert (served(weights, False) - trained).abs().max() < 1e-5


def test_half_precision_is_merged_before_it_is_rounded():
    """An update that is smaller than a bfloat16 step of the weight adds up with the weight."""
    model = adapted_model(False)
    whole = gather_weights(model, torch.float32)
    for name, value in gather_weights(model, torch.bfloat16).items():
        assert value.equal(whole[name].to(torch.bfloat16))


@pytest.mark.parametrize(
    "argument",
    [
        {"alora_invocation_tokens": [1, 2]},
        {"arrow_config": {"top_k": 1}},
        {"use_bdlora": {"nblocks": 2}},
        {"layer_replication": [[0, 2]]},
        {"megatron_config": {"x": 1}},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_what_no_plain_model_computes_is_refused_by_name(argument):
    with pytest.raises(ValueError, match=rf"learner\.lora\.{next(iter(argument))} cannot be"):
        check_names({"r": 8, **argument})
    check_names({"r": 8, **dict.fromkeys(argument)})


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_model_is_looked_at_without_its_weights(tmp_path, tied):
    plain_model(tied).config.save_pretrained(tmp_path)
    check_model(str(tmp_path), {"r": 2, "target_modules": ["q_proj"], "use_dora": True})
    settings = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    if not tied:
        check_model(str(tmp_path), settings)
        return
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight and lm_head\.weight are"):
        check_model(str(tmp_path), settings)


def test_a_model_is_looked_at_for_adapters_of_its_own(tmp_path):
    plain_model(False).config.save_pretrained(tmp_path)
    settings = {"r": 2, "target_modules": ["q_proj", "lm_head"]}
    check_model(str(tmp_path), settings)
    with pytest.raises(ValueError, match=r"lm_head \(Linear\) cannot be served with an adapter"):
        check_model(str(tmp_path), settings, "adapter")
    with pytest.raises(ValueError, match=r"learner\.lora: Target modules .*nothing"):
        check_model(str(tmp_path), {"r": 2, "target_modules": ["nothing"]})
    check_model(str(tmp_path / "elsewhere"), settings, "adapter")  # the learner will say


def test_other_adapters_than_lora_are_refused():
    from peft import IA3Config

    model = get_peft_model(
        plain_model(False),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    )
    with pytest.raises(ValueError, match="train it with LoRA"):
        check_servable(model)


SEPARABLE = (
    *("as it comes", "dropout", "rslora", "all-linear", "rank_pattern", "layers_to_transform"),
    *("exclude_modules", "orthogonal", "mica"),
)


def check_as_adapter(model, settings):
    check_adapter(settings)
    check_servable(model)
    check_separable(model)


def with_pairs(tied, pairs, rank):
    """A plain model with these matrices beside its weights, loaded by peft itself."""
    from peft import set_peft_model_state_dict

    names = {name.partition(".lora_")[0].partition("base_model.model.")[2] for name in pairs}
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=sorted(names)
    )
    model = get_peft_model(plain_model(tied), config)
    result = set_peft_model_state_dict(model, pairs)
    assert not result.unexpected_keys
    return model.eval()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", SETTINGS)
def test_adapters_alone_say_what_is_trained_or_are_refused(name, tied):
    settings = {"r": 2, **SETTINGS[name]}
    model = adapted_model(tied, **settings)
    if name not in SEPARABLE:
        with pytest.raises(ValueError, match=r"^learner\.lora"):
            check_as_adapter(model, settings)
        return
    check_as_adapter(model, settings)
    sent = to_publish(model, torch.float32, "adapter")
    assert sent.adapter_rank == rank_of(settings)
    pairs = {key: one.clone() for key, one in sent.stream()}
    assert {key: one.shape for key, one in pairs.items()} == {
        key: one.shape for key, one in sent.shapes.items()
    }
    assert sent.trained == pairs.keys()
    with torch.no_grad():
        twin = with_pairs(tied, pairs, sent.adapter_rank)
        assert (twin(IDS).logits - model(IDS).logits).abs().max() < 1e-5


def test_several_adapters_become_one():
    model = adapted_model(False)
    other = LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj"], init_lora_weights=False)
    model.add_adapter("other", other)
    model.base_model.set_adapter(["default", "other"])
    sent = to_publish(model, torch.float32, "adapter")
    assert sent.adapter_rank == 5
    with torch.no_grad():
        twin = with_pairs(False, dict(sent.stream()), 5)
        assert (twin(IDS).logits - model(IDS).logits).abs().max() < 1e-5


def test_adapters_need_adapters_and_ranks_that_vllm_has():
    with pytest.raises(ValueError, match=r"learner\.lora trains, and that is empty"):
        check_adapter({})
    with pytest.raises(ValueError, match="rank 600, and vLLM serves adapters up to 512"):
        check_adapter({"r": 8, "rank_pattern": {"q_proj": 600}})
    with pytest.raises(ValueError, match="whole number"):
        check_adapter({"r": "8"})
    assert engine_arguments({"r": 9})["max_lora_rank"] == 16
    assert engine_arguments({"r": 1})["max_lora_rank"] == 1
