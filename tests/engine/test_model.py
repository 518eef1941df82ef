"""The demo model is the same for transformers 4 and 5, for its source, and says that 2 + 2 is 4."""

import json
import subprocess
import sys

import pytest

from helpers.tiny_model import write_tiny_model
from tracekit.demo.models import MODELS, fetch_gguf

TEXTS = [
    "Hello, world!",
    " leading space",
    "two  inner   spaces and a trailing one ",
    "\n\nlines\r\n\tand tabs\n",
    "déjà vu 你好 🌍🏽 e\u0301 \u00a0\u2028",
    "def f(x):\n    return x ** 2  # 12345\n",
    "don't, I'll, we've",
    "<|im_start|>user\nhi<|im_end|>\n",
    "\x00\x01",
    " ",
]

PROGRAM = """
import json, sys, transformers
from transformers import AutoConfig, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
ids = [tokenizer(text)["input_ids"] for text in texts]
rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
chat = tokenizer.apply_chat_template([{"role": "user", "content": "What is 2+2?"}], tokenize=True,
                                     add_generation_prompt=True, return_dict=False)
print(json.dumps({
    "version": int(transformers.__version__.split(".")[0]),
    "ids": ids,
    "texts": [tokenizer.decode(each) for each in ids],
    "chat": chat,
    "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)],
    "config": [rope["rope_theta"], str(config.dtype), config.tie_word_embeddings, config.num_hidden_layers],
}))
"""


def ask_transformers(python, folder) -> dict:
    command = [str(python), "-c", PROGRAM, str(folder), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.engine
def test_text_round_trips_alike_under_transformers_4_and_5(demo_model, v1_env, latest_env):
    answers = [ask_transformers(python, demo_model) for python in (v1_env.python, latest_env.python, sys.executable)]
    assert [answer.pop("version") for answer in answers] == [4, 5, 5]
    assert answers[0]["texts"] == TEXTS
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["special"] == [1, 2, 2, 49152]
    assert answers[0]["config"] == [100000.0, "torch.bfloat16", True, 30]


def test_the_weights_are_those_that_transformers_reads_from_the_source(demo_model, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    gguf = fetch_gguf(MODELS["demo"], tmp_path, lambda text: None)
    load = transformers.AutoModelForCausalLM.from_pretrained
    ours = load(demo_model, dtype=torch.bfloat16).state_dict()
    theirs = load(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_the_model_answers(demo_model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model)
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.bfloat16)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2+2?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, do_sample=False, max_new_tokens=24)[0]
    answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "4" in answer


def test_generation_config_hides_no_sampling_default(demo_model):
    found = json.loads((demo_model / "generation_config.json").read_text())
    assert found == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_tiny_model_loads_whole_and_is_the_same_each_time(demo_model, tmp_path, tie_embeddings):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    one = write_tiny_model(tmp_path / "one", seed=3, tie_embeddings=tie_embeddings)
    two = write_tiny_model(tmp_path / "two", seed=3, tie_embeddings=tie_embeddings)
    other = write_tiny_model(tmp_path / "other", seed=4, tie_embeddings=tie_embeddings)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, two, other)]
    assert weights[0] == weights[1] != weights[2]
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        one, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    logits = model(torch.tensor([[1, 2, 3, 4]])).logits
    assert logits.shape == (1, 4, 49152) and torch.isfinite(logits).all()
    assert 1.0 < logits.std().item() < 4.0
