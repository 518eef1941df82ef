"""States of probed requests as a worker of any generation keeps them: whose rows they are, and which requests."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tracekit.errors import ReplayRefused
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.probe import MAX_LOGITS, Probing
from tracekit.recorder.vllm.shares import is_within
from tracekit.recorder.vllm.v0.rows import family_of as v0_family
from tracekit.recorder.vllm.v1.rows import family_of as v1_family
from tracekit.replay.probes import _check_rows, read_probes


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.Linear(3, 3, bias=False)

    def forward(self, rows: Any) -> Any:
        return self.mlp(rows)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer()])

    def forward(self, rows: Any) -> Any:
        return self.layers[0](rows)

    def compute_logits(self, hidden: Any) -> Any:
        return hidden * 2


def rows_of(*numbers: float) -> Any:
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 3).contiguous()


def states(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name.split("-")[1]: load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def test_rows_are_told_apart_by_their_order_and_padding_is_left_out(tmp_path: Path) -> None:
    model = Model()
    probing = Probing(model, tmp_path)
    probing.admit({"a": 2, "b": 1})
    probing.begin({"a": (0, 2), "c": (5, 1), "b": (0, 1)}, lambda: ["b", "c", "a"])
    hidden = model(rows_of(1, 2, 3, 4, 99))
    probing.head(hidden[[0, 1, 3]], model.compute_logits(hidden[[0, 1, 3]]))
    probing.end()
    found = states(tmp_path)
    assert set(found) == {"1", "2"}
    assert found["1"]["layers.0.mlp.input"][:, 0].tolist() == [3, 4]
    assert found["2"]["layers.0.mlp.input"][:, 0].tolist() == [1]
    assert torch.equal(found["1"]["lm_head.output"], 2 * found["1"]["layers.0.mlp.output"][1:])


def test_a_request_whose_rows_do_not_go_on_is_kept_no_longer(tmp_path: Path) -> None:
    model = Model()
    probing = Probing(model, tmp_path)
    probing.admit({"a": 2})
    for position in (0, 5):  # it was preempted in between
        probing.begin({"a": (position, 2)}, lambda: ["a"])
        model(rows_of(1, 2))
        probing.end()
    assert [path.stem for path in tmp_path.rglob("*.safetensors")] == ["000000"]


def test_of_many_that_begin_together_some_are_probed_spread_over_the_batch(tmp_path: Path) -> None:
    probing = Probing(Model(), tmp_path)
    probing.admit({str(i): 3 for i in range(10)})
    assert list(probing._names) == ["0", "2", "5", "7"]
    probing.admit({"late": 3})
    assert "late" not in probing._names and not probing.is_over
    probing.forget(["0", "2", "5", "7"])
    assert probing.is_over
    probing.rearm()  # the weights have changed
    probing.admit({"x": 3, "y": 3, "z": 3})
    assert list(probing._names)[4:] == ["x", "y"] and len(set(probing._names.values())) == 6
    probing.stop()
    probing.rearm()
    assert probing.is_over


def test_states_of_other_tokens_are_refused(tmp_path: Path) -> None:
    ids, rows = np.array([4, 7, 4]), rows_of(1, 2, 1)
    _check_rows({"layers.0.input_layernorm.input": rows}, ids, tmp_path)
    with pytest.raises(ReplayRefused, match="not those of the recorded tokens"):
        _check_rows({"layers.0.input_layernorm.input": rows}, np.array([4, 4, 7]), tmp_path)


def test_the_rows_of_the_head_are_told_by_their_steps(tmp_path: Path) -> None:
    # of a long request states go on behind the last row of logits that is kept
    probing, num = Probing(Model(), tmp_path), 3 + MAX_LOGITS + 10
    probing.admit({"a": 3})
    for position, count in [(0, 3), *((at, 1) for at in range(3, num))]:
        probing.begin({"a": (position, count)}, lambda: ["a"])
        hidden = rows_of(*range(position, position + count))
        probing._keep("layers.0.mlp.input", hidden)
        probing.head(hidden[-1:], hidden[-1:])
        probing.end()
    sequence = types.SimpleNamespace(prompt_token_ids=np.array([5, 6, 7]), token_ids=np.arange(num - 2))
    (one,) = read_probes(tmp_path, [types.SimpleNamespace(request_id="a", sequence=sequence)])
    assert one.head_rows.tolist() == list(range(2, 2 + MAX_LOGITS))
    assert one.states["lm_head.input"][:, 0].tolist() == one.head_rows.tolist()
    assert len(one.states["layers.0.mlp.input"]) == num == len(one.token_ids) - 1


def test_where_a_share_of_the_requests_is_recorded_the_probed_are_of_it(tmp_path: Path) -> None:
    model = Model()
    probing = Probing(model, tmp_path, lambda name: is_within(v1_family(name), 0.3))
    names = [f"{child}_{number}" for number in range(20) for child in range(2)]
    probing.admit(dict.fromkeys(names, 1))
    probing.begin({name: (0, 1) for name in names}, lambda: names)
    model(rows_of(*range(len(names))))
    probing.end()
    recorded = {at for at, name in enumerate(names) if is_within(name.split("_")[1], 0.3)}
    kept = {int(found["layers.0.mlp.input"][0, 0]) for found in states(tmp_path).values()}
    assert len(kept) == 4 < len(recorded) < len(names) / 2 and kept < recorded
    assert v0_family("cmpl-7_parallel_sample_1") == "cmpl-7" == v0_family("cmpl-7")


class Runner2:
    """Of vLLM 0.32's second model runner what the wraps meet: names and order of calls."""

    def __init__(self) -> None:
        self.model = Model()
        self.model_config = types.SimpleNamespace(enforce_eager=True)

    def get_model(self) -> Any:
        return self.model

    def prepare_inputs(self, scheduler_output: Any, names: list[str], starts: list[int], nums: list[int]) -> Any:
        return types.SimpleNamespace(
            req_ids=names,
            num_computed_tokens_np=np.array(starts),
            num_scheduled_tokens=np.array(nums),
            num_draft_tokens=0,
            logits_indices=np.cumsum(nums) - 1,
        )

    def sample(self, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        return self.model.compute_logits(hidden_states[input_batch.logits_indices])

    def sample_tokens(self, hidden: Any, batch: Any) -> Any:
        return self.sample(hidden, batch, None)


def new(name: str, length: int) -> Any:
    return types.SimpleNamespace(req_id=name, num_computed_tokens=0, prompt_token_ids=[1] * length, lora_request=None)


def test_model_runner_2_is_probed_in_the_order_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracekit.recorder.vllm.v1 import probe2

    module: Any = types.ModuleType("vllm.v1.worker.gpu.model_runner")
    module.GPUModelRunner = Runner2
    for name in ("vllm", "vllm.v1", "vllm.v1.worker", "vllm.v1.worker.gpu"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    probe2.attach(str(tmp_path))
    try:
        runner = Runner2()
        scheduled = types.SimpleNamespace(scheduled_new_reqs=[new("a", 2), new("b", 1)], finished_req_ids=set())
        batch = runner.prepare_inputs(scheduled, ["b", "a"], [0, 0], [1, 2])
        hidden = runner.model(rows_of(1, 2, 3, 99))
        logits = runner.sample_tokens(hidden, batch)
    finally:
        hooks.uninstall()
    found = states(tmp_path)
    assert found["1"]["layers.0.mlp.input"][:, 0].tolist() == [2, 3]
    assert torch.equal(found["2"]["lm_head.output"], logits[:1])
    assert "compute_logits" not in vars(runner.model)


def test_a_compiled_model_is_not_probed_and_the_reason_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracekit.recorder.vllm.v1.probe import probing_of

    runner = types.SimpleNamespace(model_config=types.SimpleNamespace(enforce_eager=False))
    assert probing_of(runner, str(tmp_path)) is None
    assert "start vLLM with enforce_eager" in capsys.readouterr().err
