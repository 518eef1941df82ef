"""A random Qwen2, trained for a minute on what the demo model samples: an untied head, biases of query, key and value.

`make test-long` runs these. Its distribution is not flat, as that of a model of random weights is.
"""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from helpers.engine import run_cli
from tracekit.demo.models import ensure_model
from tracekit.demo.settings import PARITY
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import whole
from tracekit.scoring.types import Sequence

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(3600)]

SECS = 60
STARTS = ["The", "Once upon a time", "def", "In the year", "Water", "My", "Paris is", "A good"]


@pytest.fixture(scope="module")
def samples() -> tuple[Path, torch.Tensor]:
    """The demo model's folder, and [64, 97] ids that it sampled."""
    demo = ensure_model("demo", print)
    tokenizer = AutoTokenizer.from_pretrained(demo)
    model = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    torch.manual_seed(0)
    rows = []
    for start in STARTS:
        ids = torch.tensor([tokenizer(start)["input_ids"]] * 8)
        rows.append(model.generate(ids, do_sample=True, max_new_tokens=100, min_new_tokens=100)[:, :97])
    return demo, torch.cat(rows)


@pytest.fixture(scope="module")
def qwen2(samples: tuple[Path, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    demo, ids = samples
    config = Qwen2Config(
        vocab_size=AutoModelForCausalLM.from_pretrained(demo).config.vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    end = time.monotonic() + SECS
    first = last = None
    while time.monotonic() < end:
        batch = ids[torch.randint(len(ids), (8,))]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        first, last = first or loss.item(), loss.item()
    assert last < first - 2, "it has learnt something"
    folder = tmp_path_factory.mktemp("qwen2") / "model"
    model.to(torch.bfloat16).save_pretrained(folder)
    for path in demo.iterdir():
        if path.name.startswith("tokenizer") or path.name == "special_tokens_map.json":
            shutil.copy(path, folder)
    return folder


def test_it_is_scored_exactly(qwen2: Path, samples: tuple[Path, torch.Tensor]) -> None:
    sequences = [Sequence(0, i, row[:9], row[9:], Params()) for i, row in enumerate(samples[1].numpy().astype("u4"))]
    scorer = Scorer.load(qwen2, dtype="float32", device="cpu")
    assert scorer.packing == "packed"
    found = scorer.score([whole(s) for s in sequences], max_batch_tokens=1024)
    values = np.stack([scores.readings[0].raw_logprob for scores in found])
    assert values.mean() > -9, "less flat than ln 49152 = 10.8"
    model = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32).eval().double()
    biases = [value for name, value in model.named_parameters() if name.endswith("_proj.bias")]
    assert len(biases) == 9 and all(bias.abs().max() > 0 for bias in biases)
    with torch.inference_mode():
        logits = model(input_ids=samples[1]).logits[:, 8:-1].log_softmax(dim=-1)
    exact = logits.gather(2, samples[1][:, 9:, None]).squeeze(2).numpy()
    np.testing.assert_allclose(values, exact, rtol=0, atol=1e-5)


def test_a_recorded_engine_agrees_with_the_scorer(qwen2: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environ["TORCHDYNAMO_DISABLE"] = "1"  # the CPU build compiles two small functions for minutes
    trace = tmp_path / "trace.arrow"
    settings = [word for key, value in PARITY.items() for word in ("--engine-arg", f"{key}={str(value).lower()}")]
    argv = ["record", "--engine", "v1", "--model", qwen2, "--sampling", "max_tokens=24", *settings]
    argv += ["--engine-arg", "enforce_eager=true", "-o", trace]
    done = run_cli(*argv, env=environ, timeout_secs=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    done = run_cli("replay", trace, "--model", qwen2, "--json", env=environ, timeout_secs=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    verdict = json.loads(done.stdout)["verdict"]
    assert (verdict["layer"], verdict["semantic"]["kind"]) == ("none", "processed")
