"""What an engine would have recorded of a tiny random model, whose own numbers stand for the engine's."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from helpers.factories import make_engine, make_tables
from helpers.tiny_models import VOCAB, write_model
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import whole
from tracekit.scoring.types import Sequence

NUM_REQUESTS, NUM_TOKENS, NUM_PROMPT = 8, 16, 5
SAMPLING = {"temperature": 0.7, "top_p": 0.9}


@dataclass
class Recorded:
    """A folder with a model, and what an engine that runs it in float32 would have recorded."""

    model: Path
    prompts: np.ndarray
    tokens: np.ndarray
    raw: np.ndarray
    processed: np.ndarray

    def sequences(self) -> list[Sequence]:
        return [
            Sequence(0, i, p.astype("u4"), t.astype("u4"), Params(**SAMPLING))
            for i, (p, t) in enumerate(zip(self.prompts, self.tokens, strict=True))
        ]

    def tables(self, values=None, *, mode="processed_logprobs", first=0, count=NUM_REQUESTS, engine=True, **changes):
        """Tables of some of the requests, with these recorded values, [requests, tokens]."""
        values = self.processed if values is None else values
        made = make_tables(
            count,
            NUM_TOKENS,
            prompt_tokens=NUM_PROMPT,
            first_request=first,
            sampling_params=SAMPLING,
            engine=make_engine(logprobs_mode=mode) if engine else False,
            **changes,
        )
        made["requests"]["prompt_token_ids"] = [p.astype("u4") for p in self.prompts[first : first + count]]
        made["tokens"]["token_id"] = self.tokens[first : first + count].T.ravel().astype("u4")
        mask = np.ma.getmaskarray(made["tokens"]["rollout_logprob"])
        data = values[first : first + count].T.ravel().astype("f4")
        made["tokens"]["rollout_logprob"] = np.ma.masked_array(data, mask=mask)
        return made


def drawn(folder: Path, ids: np.ndarray, count: int) -> np.ndarray:
    """Tokens that the model draws after each row of ids, [rows, count]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": count, "min_new_tokens": count, **SAMPLING}
    return model.generate(torch.from_numpy(ids), **settings)[:, ids.shape[1] :].numpy()


def record(folder: Path) -> Recorded:
    """Make a model in a folder, let it draw, and score what it drew."""
    folder = write_model(folder, "llama")
    torch.manual_seed(5)
    prompts = np.random.default_rng(5).integers(3, VOCAB, (NUM_REQUESTS, NUM_PROMPT))
    made = Recorded(folder, prompts, drawn(folder, prompts, NUM_TOKENS), np.empty(0), np.empty(0))
    scores = Scorer.load(folder, dtype="float32").score([whole(s) for s in made.sequences()], max_batch_tokens=64)
    return replace(
        made,
        raw=np.stack([s.readings[0].raw_logprob for s in scores]),
        processed=np.stack([s.readings[0].forced_logprob for s in scores]),
    )


def refused(tracekit, *args):
    code, out, err = tracekit(*args)
    assert code == 1 and out == ""
    assert err.startswith("tracekit: error: ") and err.count("\n") == 1, err
    return err
