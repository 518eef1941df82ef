"""Modules replayed on recorded inputs: the engine is the model itself in its own dtype, hooked plainly, with one module
that is off; what it recorded is told apart from the rest at every place and in every architecture."""

import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny_models import VOCAB, write_model
from tracekit.diagnose.modules import first_off, kinds_off, layer_of, suspects, weigh
from tracekit.errors import ModelError
from tracekit.scoring.joints import joint_errors
from tracekit.scoring.modules import graft, module_errors, narrow_head, raw_logprobs
from tracekit.scoring.rotary import fit_base

LENGTH, SAMPLED = 40, 16
ROWS = torch.arange(LENGTH - SAMPLED, LENGTH)
ARCHITECTURES = ("llama", "qwen2-sliding", "qwen3", "mistral-sliding", "gemma3-mixed", "qwen3-moe")


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def record(engine, ids):
    """What an engine's hooks would have kept: input and output of every child of a layer, of the norm and the head."""
    states, handles = {}, []

    def hook(name):
        def after(_module, args, kwargs, output):
            given = args[0] if args else kwargs["hidden_states"]
            made = output[0] if isinstance(output, tuple) else output
            states[f"{name}.input"], states[f"{name}.output"] = given[0].clone(), made[0].clone()

        return after

    for name, module in engine.named_modules():
        found = re.search(r"(layers\.\d+\.[^.]+)$", name) or re.search(r"model\.(norm)$", name)
        if found:
            handles.append(module.register_forward_hook(hook(found[1]), with_kwargs=True))
    with torch.inference_mode():
        hidden = engine.base_model(input_ids=ids[None, :-1]).last_hidden_state[0, -SAMPLED:]
        states["lm_head.input"], states["lm_head.output"] = hidden, engine.get_output_embeddings()(hidden)
    for handle in handles:
        handle.remove()
    return states


@pytest.fixture(scope="module")
def ids():
    return torch.from_numpy(np.random.default_rng(1).integers(3, VOCAB, LENGTH + 1))


def judged(folder, ids, states, dtype=torch.bfloat16, higher=torch.float32):
    models = load(folder, dtype), load(folder, higher)
    found = module_errors(*models, ids[:-1], states) + joint_errors(*models, ids[:-1], states, ROWS)
    return weigh([(one.name, one.error, one.noise) for one in found])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_clean_engine_has_no_suspect(name, ids, tmp_path):
    folder = write_model(tmp_path, name)
    found = judged(folder, ids, record(load(folder, torch.bfloat16), ids))
    kinds = {"input_layernorm", "self_attn", "mlp", "norm", "embed_tokens", "between", "rows"}
    assert {module.kind for module in found} >= kinds
    assert suspects(found) == [] and kinds_off(found) == []
    handed_on = ("embed_tokens", "between", "rows")  # without error, in bfloat16, where they are no sums
    assert all(module.ratio == pytest.approx(1, abs=0.3) for module in found if module.kind not in handed_on)
    assert all(module.ratio < 1.3 for module in found)  # the same kernels


# the child of a layer, how it is spoilt
FAULTS = {
    "attention output of one layer": ("layers.1.self_attn", lambda m: m.o_proj.weight.mul_(1.1)),
    "one head": ("layers.0.self_attn", lambda m: m.o_proj.weight[:, :8].mul_(0.5)),
    "mlp": ("layers.1.mlp", lambda m: m.down_proj.weight.mul_(1.08)),
    "norm": ("layers.0.post_attention_layernorm", lambda m: m.weight.add_(0.1)),
    "one row of a projection": ("layers.0.mlp", lambda m: m.up_proj.weight[3].mul_(2.0)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_module_that_is_off_is_the_only_suspect(name, fault, ids, tmp_path):
    folder = write_model(tmp_path, name)
    engine = load(folder, torch.bfloat16)
    place, spoil = FAULTS[fault]
    with torch.no_grad():
        spoil(engine.get_submodule(f"model.{place}"))
    found = judged(folder, ids, record(engine, ids))
    assert suspects(found) == [place]


def scaled(by):
    return lambda _module, _args, output: (output[0] * by, *output[1:]) if isinstance(output, tuple) else output * by


def skipped(module, args, kwargs, output):
    given = args[0] if args else kwargs["hidden_states"]
    return (given, *output[1:]) if isinstance(output, tuple) else given


# what stands between two modules, how it is spoilt in an engine
JOINTS = {
    "embed_tokens": ("embed_tokens", lambda m: m.register_forward_hook(scaled(1.05))),
    "layers.0.between": ("layers.0", lambda m: m.register_forward_hook(scaled(1.1))),
    "layers.1.between": ("layers.1", lambda m: m.register_forward_hook(skipped, with_kwargs=True)),
}


@pytest.mark.parametrize("place", JOINTS)
@pytest.mark.parametrize("name", ["llama", "gemma3-mixed", "qwen3-moe"])
def test_what_is_off_between_modules_is_told_from_them(name, place, ids, tmp_path):
    folder = write_model(tmp_path, name)
    engine = load(folder, torch.bfloat16)
    module, spoil = JOINTS[place]
    spoil(engine.base_model.get_submodule(module))
    states = record(engine, ids)
    if "layers.1" in place:  # it never ran
        states = {key: state for key, state in states.items() if "layers.1" not in key}
    assert suspects(judged(folder, ids, states)) == [place]


def test_logits_of_other_rows_are_told_from_a_head_that_is_off(ids, tmp_path):
    folder = write_model(tmp_path, "llama")
    states = record(load(folder, torch.bfloat16), ids)
    turned = {key: state.roll(1, 0) if "lm_head" in key else state for key, state in states.items()}
    assert suspects(judged(folder, ids, turned)) == ["lm_head.rows"]


def test_a_float32_engine_is_held_against_float64(ids, tmp_path):
    folder = write_model(tmp_path, "llama")
    engine = load(folder, torch.float32)
    clean = judged(folder, ids, record(engine, ids), torch.float32, torch.float64)
    assert suspects(clean) == []
    with torch.no_grad():
        engine.model.layers[1].self_attn.v_proj.weight.mul_(1.0001)
    assert suspects(judged(folder, ids, record(engine, ids), torch.float32, torch.float64)) == ["layers.1.self_attn"]


def test_the_head_and_the_final_norm_are_modules_too(ids, tmp_path):
    folder = write_model(tmp_path, "llama")
    for place, module in (("lm_head", "lm_head"), ("norm", "model.norm")):
        engine = load(folder, torch.bfloat16)
        with torch.no_grad():
            engine.get_submodule(module).weight.mul_(1.05)
        assert suspects(judged(folder, ids, record(engine, ids))) == [place]


def test_a_graft_leaves_the_mismatch_before_the_faulty_layer_and_takes_it_behind(ids, tmp_path):
    folder = write_model(tmp_path, "llama")
    engine = load(folder, torch.float32)
    with torch.no_grad():
        engine.model.layers[0].mlp.down_proj.weight.mul_(1.3)
    states = record(engine, ids)
    theirs = raw_logprobs(states["lm_head.output"], ids, ROWS)
    left = [np.abs(graft(load(folder, torch.float32), ids, states, ROWS, at) - theirs).mean() for at in (0, 1, 2)]
    assert left[0] > 0.01 and left[1] < 1e-5 and left[2] < 1e-5


def test_a_kind_that_is_off_in_all_layers_is_named_as_a_kind():
    noise = np.full(9, 1e-3)
    factors = {"norm1": 9, "mlp": 1.2}
    errors = [(f"layers.{i}.{kind}", noise * by, noise) for i in range(5) for kind, by in factors.items()]
    found = weigh(errors)
    assert kinds_off(found) == ["norm1"] and suspects(found) == []
    assert layer_of("layers.12.mlp") == 12 and layer_of("norm") is None


def test_a_model_without_such_modules_is_refused(ids, tmp_path):
    folder = write_model(tmp_path, "gpt2")
    states = {"layers.0.x.input": torch.zeros(1, 1)}
    with pytest.raises(ModelError, match="has none of the modules"):
        module_errors(load(folder, torch.float32), load(folder, torch.float64), ids[:-1], states)


def test_a_bfloat16_head_is_told_from_another_one(ids, tmp_path):
    folder = write_model(tmp_path, "llama")
    engine = load(folder, torch.float32)
    states = record(engine, ids)
    head, hidden = engine.get_output_embeddings().weight.detach(), states["lm_head.input"].clone()
    narrow = {**states, "lm_head.output": (hidden.bfloat16() @ head.T.bfloat16()).float()}
    other = {**states, "lm_head.output": hidden @ (head * 1.02).T}
    exact = load(folder, torch.float64)
    assert narrow_head(exact, narrow) < 0.1 and narrow_head(exact, other) > 0.9
    assert np.isnan(narrow_head(exact, {}))


def test_a_masked_logit_is_not_the_heads(ids, tmp_path):
    folder = write_model(tmp_path, "llama")
    states = record(load(folder, torch.bfloat16), ids)
    states["lm_head.output"] = states["lm_head.output"].clone()
    states["lm_head.output"][:, 5] = -torch.inf
    assert suspects(judged(folder, ids, states)) == []


def test_the_base_of_the_rotary_embedding_is_fitted(ids, tmp_path):
    folder = write_model(tmp_path, "llama")
    engine = load(folder, torch.float32)
    exact = load(folder, torch.float64)
    base = exact.config.rope_parameters["rope_theta"]
    rotary = engine.base_model.rotary_emb
    rotary.inv_freq = rotary.inv_freq ** (np.log(base * 3) / np.log(base))
    states = record(engine, ids)
    known, fitted, left = fit_base(exact, ids[:-1], states, "self_attn")
    assert known == base and fitted == pytest.approx(base * 3, rel=0.02) and left < 0.05
    with torch.no_grad():
        engine.model.layers[0].self_attn.v_proj.weight.mul_(1.5)
    rotary.inv_freq = exact.base_model.rotary_emb.inv_freq.float()
    assert fit_base(exact, ids[:-1], record(engine, ids), "self_attn")[2] > 0.5


def test_where_a_module_is_off_first():
    noise = np.full(6, 1e-3)
    assert first_off(np.array([1, 2, 1, 9, 1, 9]) * 1e-3, noise) == 3
    assert first_off(noise, noise) is None


def test_the_final_norm_is_held_against_all_norms():
    noise, error = np.full(9, 1e-3), np.full(9, 1e-3)
    error[4] = 4.6e-3  # the worst position of a clean norm
    found = weigh([(name, error, noise) for name in ("norm", *(f"layers.{i}.input_layernorm" for i in range(4)))])
    assert suspects(found) == []
