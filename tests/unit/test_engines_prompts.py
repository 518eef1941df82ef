import json

import pytest

from tracekit.errors import UsageError
from tracekit.jobs.prompts import parse_prompts
from tracekit.jobs.rollout import reason_of


def test_each_kind_of_prompt_keeps_its_sampling_fields(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "Hi\u2028there", "temperature": 0.7, "top_p": 0.9}\n\n'
        '{"messages": [{"role": "user", "content": "x"}], "n": 2, "logit_bias": {"5": -1}}\n'
        '{"prompt_token_ids": [1, 2], "stop": ["."], "seed": 3}',
        encoding="utf-8",
    )
    assert parse_prompts(path) == [
        {"prompt": "Hi\u2028there", "sampling": {"temperature": 0.7, "top_p": 0.9}},
        {"messages": [{"role": "user", "content": "x"}], "sampling": {"n": 2, "logit_bias": {"5": -1}}},
        {"prompt_token_ids": [1, 2], "sampling": {"stop": ["."], "seed": 3}},
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "x"', "not valid JSON"),
        ('["x"]', "not a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "exactly one of prompt, messages, prompt_token_ids, not none"),
        ('{"prompt": "x", "prompt_token_ids": [1]}', "not prompt and prompt_token_ids"),
        ('{"prompt": ""}', "prompt must be a string"),
        ('{"prompt": 3}', "prompt must be a string"),
        ('{"prompt_token_ids": []}', "prompt_token_ids must be"),
        ('{"prompt_token_ids": [1, -2]}', "prompt_token_ids must be"),
        ('{"prompt_token_ids": [true]}', "prompt_token_ids must be"),
        ('{"messages": []}', "messages must be"),
        ('{"messages": [{"role": "user"}]}', "messages must be"),
        ('{"prompt": "x", "temprature": 1}', "unknown field 'temprature'"),
        ('{"prompt": "x", "temperature": "hot"}', 'temperature must be a number, 0 or more, not "hot"'),
        ('{"prompt": "x", "temperature": NaN}', "temperature must be"),
        ('{"prompt": "x", "top_p": 0}', "top_p must be"),
        ('{"prompt": "x", "top_k": 1.5}', "top_k must be"),
        ('{"prompt": "x", "max_tokens": true}', "max_tokens must be"),
        ('{"prompt": "x", "logit_bias": {"a": 1}}', "logit_bias must be"),
        ('{"prompt": "x", "allowed_token_ids": []}', "allowed_token_ids must be"),
    ],
)
def test_a_wrong_line_is_named_by_file_and_number(tmp_path, line, says):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "good"}) + "\n" + line + "\n")
    with pytest.raises(UsageError) as caught:
        parse_prompts(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_text_prompts_is_refused(tmp_path, content):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"prompts file is (empty|not UTF-8)"):
        parse_prompts(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        parse_prompts(tmp_path / "none.jsonl")


def test_what_vllm_refuses_is_one_line_with_the_reason():
    counted = "1 validation error for ModelConfig\n  Value error, Invalid repository ID: './m'.\nPlease verify\n"
    assert reason_of(ValueError(counted)).endswith("ModelConfig: Value error, Invalid repository ID: './m'.")
    assert reason_of(OSError("\nfirst\nsecond")) == "first"
    assert reason_of(RuntimeError()) == "no reason given"
