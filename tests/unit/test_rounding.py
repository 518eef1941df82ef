"""What V0 does to sampling values, read from what the recorder wrote."""

import json

import pytest

from tracekit.scoring.rounding import round_sampling, sampling_dtype


def test_values_that_v0_uses_in_bfloat16_and_float16() -> None:
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": None, "stop": ["a"], "repetition_penalty": 1.1}
    in_bf16 = round_sampling(sampling, "bfloat16")
    assert in_bf16["temperature"] == 0.69921875 and in_bf16["top_p"] == 0.8984375
    assert in_bf16["repetition_penalty"] == 1.1015625
    assert {k: in_bf16[k] for k in ("top_k", "min_p", "stop")} == {"top_k": 50, "min_p": None, "stop": ["a"]}
    assert round_sampling(sampling, "float16")["temperature"] == 0.7001953125


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [("v0", "torch.bfloat16", "bfloat16"), ("v0", "torch.float16", "float16"), ("v0", "torch.float32", None),
     ("v1", "torch.bfloat16", None)],
)  # fmt: skip
def test_which_engines_round(kind: str, dtype: str, expected: str | None) -> None:
    config = json.dumps({"vllm": {"model_config": {"dtype": dtype}}})
    assert sampling_dtype({"kind": kind, "config": config}) == expected


def test_an_engine_whose_configuration_is_not_known_is_left_as_it_is() -> None:
    assert sampling_dtype({"kind": "v0", "config": None}) is None
    assert sampling_dtype({"kind": "v0", "config": "not JSON"}) is None
