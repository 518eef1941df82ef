"""Gemma-3-270M, the larger real model: made as it was meant, scored exactly, and recorded and replayed once.

`make test-long` runs these: 240 MB to fetch, a vocabulary of 262,144, minutes of a CPU.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.engine import run_cli
from tracekit.demo.models import MODELS, ensure_model, fetch_gguf
from tracekit.demo.settings import PARITY
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import whole
from tracekit.scoring.types import Sequence

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(3600)]

SENTENCES = [
    "The capital of France is Paris, and the capital of Germany is Berlin.",
    "Water boils at one hundred degrees Celsius at sea level, and freezes at zero degrees.",
    "Once upon a time there was a little girl who lived in a village near the forest.",
]
TEXTS = [
    *SENTENCES,
    "two  inner   spaces ",
    "\n\nlines\r\n\tand tabs\n",
    "déjà vu 你好 🌍🏽 e\u0301",
    "x ** 2  # 12345\n",
    "\x00 ",
]


@pytest.fixture(scope="module")
def gemma() -> Path:
    return ensure_model("gemma3-270m", print)


def test_weights_and_tokens_are_those_that_transformers_reads_from_the_source(gemma: Path, tmp_path: Path) -> None:
    gguf = fetch_gguf(MODELS["gemma3-270m"], tmp_path, print)
    load = AutoModelForCausalLM.from_pretrained
    ours, theirs = load(gemma, dtype=torch.bfloat16), load(tmp_path, gguf_file=gguf.name, dtype=torch.bfloat16)
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    for key in ("layer_types", "sliding_window", "rope_parameters", "hidden_activation", "head_dim"):
        assert getattr(ours.config, key) == getattr(theirs.config, key), key
    tokenizer = AutoTokenizer.from_pretrained(gemma)
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file=gguf.name)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == reference(text)["input_ids"] and tokenizer.decode(ids) == f"<bos>{text}"


def test_real_text_is_scored_exactly_packed_and_shared(gemma: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gemma)
    # longer than the window of 512, so that the rule of which keys are seen is at work
    ids = np.array(tokenizer(" ".join(SENTENCES * 12))["input_ids"], np.uint32)
    short = [np.array(tokenizer(text)["input_ids"], np.uint32) for text in SENTENCES]
    sequences = [Sequence(0, i, each[:1], each[1:], Params()) for i, each in enumerate(short)]
    sequences += [Sequence(0, 3 + i, ids[:560], ids[560 : 570 + i], Params()) for i in range(2)]
    scorer = Scorer.load(gemma, dtype="float32", device="cpu")
    assert scorer.packing == "packed", scorer.body.why_by_length
    found = [s.readings[0] for s in scorer.score([whole(s) for s in sequences], max_batch_tokens=1024)]
    assert 2 < np.exp(-np.concatenate([s.raw_logprob for s in found[:3]]).mean()) < 40, "perplexity of plain English"
    model = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32).eval()
    weight = model.lm_head.weight.double()

    def naive(hidden: torch.Tensor, token_ids: np.ndarray) -> np.ndarray:
        chosen = torch.from_numpy(token_ids.astype(np.int64))[:, None]
        return (hidden.double() @ weight.T).log_softmax(dim=-1).gather(1, chosen).squeeze(1).numpy()

    with torch.inference_mode():
        for hidden, parts in scorer.body.run([whole(s) for s in sequences], 1024, share=True, kvs={}):
            for part in parts:
                tokens = slice(part.output, part.output + part.num)
                exact = naive(hidden[part.row : part.row + part.num], sequences[part.span].token_ids[tokens])
                np.testing.assert_allclose(found[part.span].raw_logprob[tokens], exact, rtol=0, atol=1e-5)
        for sequence, scores in zip(sequences, found, strict=True):
            hidden = model.model(torch.from_numpy(sequence.input_ids)[None]).last_hidden_state[0]
            alone = naive(hidden[len(sequence.prompt_token_ids) - 1 :], sequence.token_ids)
            # two float32 bodies, of which the plain one is itself 1.0e-5 from one in float64, and the packed one 2.1e-5
            np.testing.assert_allclose(scores.raw_logprob, alone, rtol=0, atol=3e-5)


def test_a_recorded_engine_agrees_with_the_scorer(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environ["TORCHDYNAMO_DISABLE"] = "1"  # the CPU build compiles two small functions for minutes
    trace = tmp_path / "trace.arrow"
    settings = [word for key, value in PARITY.items() for word in ("--engine-arg", f"{key}={str(value).lower()}")]
    argv = ["record", "--engine", "v1", "--model", "gemma3-270m", "--sampling", "max_tokens=16", *settings, "-o", trace]
    done = run_cli(*argv, env=environ, timeout_secs=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    done = run_cli("replay", trace, "--model", "gemma3-270m", "--json", env=environ, timeout_secs=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    verdict = json.loads(done.stdout)["verdict"]
    assert (verdict["layer"], verdict["semantic"]["kind"]) == ("none", "processed")
    assert abs(verdict["before"]["ratio_mean"] - 1) < 0.03 and verdict["before"]["mismatch_kl"] < 0.01
