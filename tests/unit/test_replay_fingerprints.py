"""Fingerprints of a folder are those that the recorder takes of an engine with these weights; what differs is named."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.synthetic import Made, make_run
from helpers.tiny_models import write_model
from tracekit.diagnose.facts import Facts, Update
from tracekit.diagnose.remarks import Remark, too_small
from tracekit.diagnose.verdict import judge
from tracekit.recorder.vllm.fingerprint import fingerprints
from tracekit.replay.fingerprints import Wanted, arrived, of_folder
from tracekit.report.causes.table import change, sentence

LAYER = "model.layers.1."


class Loaded:
    """What vLLM makes of a folder's tensors: projections joined, all in the engine's dtype."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
        for joined, parts in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", ("gate", "up"))):
            names = [f"{LAYER}{joined.partition('.')[0]}.{part}_proj.weight" for part in parts]
            self.tensors[f"{LAYER}{joined}.weight"] = torch.cat([self.tensors.pop(name) for name in names])

    def named_parameters(self):
        return ((name, torch.nn.Parameter(tensor)) for name, tensor in self.tensors.items())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("received", [torch.float32, torch.bfloat16])
def test_they_are_those_of_an_engine_that_loaded_the_folder(tmp_path, stored, received):
    folder = write_model(tmp_path / "tiny", "llama")
    path = folder / "model.safetensors"
    save_file({name: tensor.to(stored) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    taken = {Wanted(name, dtype, shape): value for name, dtype, shape, value in fingerprints(Loaded(folder, received))}
    assert of_folder(folder, taken) == taken and f"{LAYER}self_attn.qkv_proj.weight" in {one.tensor for one in taken}
    # what is not there, or is laid out otherwise, has none
    odd = [Wanted("model.other.weight", "float32", (3,)), *(one._replace(shape=(7, *one.shape[1:])) for one in taken)]
    assert of_folder(folder, odd) == {}
    assert of_folder(tmp_path, taken) == {}


OLD = {"0 a": 1, "0 b": 2, "0 c": 3}
NEW = {"0 a": 7, "0 b": 8, "0 c": 3}  # the update did not change c


def facts(of_engine):
    return Facts(
        fingerprints={(0, 0): {**of_engine, "0 d": None}},
        checkpoints={"the new": NEW, "the old": OLD},
        scored={(0, 0): "the new"},
    )


@pytest.mark.parametrize(
    ("of_engine", "code", "tensors", "says"),
    [
        (OLD, "other checkpoint", ["a", "b"], "are those of the old, not those of the new."),
        ({**NEW, "0 b": 2}, "kept tensors", ["b"], "1 of 2 tensors that an update changes have the values of the old"),
    ],
)
def test_tensors_of_another_folder_are_named_whatever_the_values_say(of_engine, code, tensors, says):
    verdict = judge(make_run(Made(num_rollouts=4)), facts=facts(of_engine)).verdict
    (found,) = verdict.causes
    assert (verdict.layer, found.code, found.names) == ("inference path", code, ["the new", "the old", *tensors])
    assert found.rollouts == [0, 1, 2, 3] and found.since is not None and found.since.output_index == 0
    assert says in sentence(found, verdict) and change(found, verdict)


def test_tensors_of_no_folder_are_named_only_where_values_diverge():
    strange = {**NEW, "0 b": 99}
    assert judge(make_run(Made(num_rollouts=4)), facts=facts(strange)).verdict.causes == []
    verdict = judge(make_run(Made(shift=0.8)), facts=facts(strange)).verdict
    assert [found.code for found in verdict.causes] == ["unknown weights"]
    assert "1 of 3 tensors are neither those of the new nor of any folder" in sentence(verdict.causes[0], verdict)


def test_the_right_weights_and_unread_ones_say_nothing():
    run = make_run(Made(num_rollouts=4))
    assert judge(run, facts=facts(NEW)).verdict.causes == []
    assert judge(run, facts=replace(facts(OLD), checkpoints={})).verdict.causes == []
    assert judge(run, facts=facts({"0 a": None})).verdict.causes == []


def test_an_update_that_the_engines_dtype_does_not_resolve_has_moved_and_not_arrived(tmp_path):
    weights = {name: torch.linspace(0.5, 1, 256).reshape(16, 16) for name in ("a", "b", "c")}
    after = {"a": weights["a"] * (1 + 1e-5), "b": weights["b"] * 1.1, "c": weights["c"]}
    for name, tensors in (("older", weights), ("newer", after)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert arrived(tmp_path / "older", tmp_path / "newer", "bfloat16") == (2, 1)
    assert arrived(tmp_path / "older", tmp_path / "newer", "float32") == (2, 2)
    facts = Facts(updates=[Update(3, 2, 1), Update(4, 2, 2)])
    assert too_small(facts) == [Remark("update below resolution", {"version": 3, "moved": 2, "count": 1})]
