"""A tiny model, the rollouts that an engine would have recorded with it, and a trainer's own forward over them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from helpers.dumps import Trained
from helpers.factories import make_engine, make_tables, write_trace
from helpers.tiny_models import VOCAB, write_model

NUM_REQUESTS, NUM_TOKENS, NUM_PROMPT, TEMPERATURE = 8, 24, 5, 0.6


class World:
    """A model, the rollouts that an engine would have recorded with it, and a trainer's forward."""

    def __init__(self, folder: Path, drawn_at: float = TEMPERATURE) -> None:
        self.folder = write_model(folder / "tiny", "llama")
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        torch.manual_seed(5)
        prompts = torch.from_numpy(np.random.default_rng(5).integers(3, VOCAB, (NUM_REQUESTS, NUM_PROMPT)))
        sampling = {"do_sample": True, "top_k": 0, "temperature": drawn_at}
        self.ids = self.model.generate(
            prompts, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, **sampling
        ).numpy()
        self.engine = [self.forward(row.tolist())[NUM_PROMPT:] for row in self.ids]
        self.tops = [self.best(row.tolist()) for row in self.ids]

    def logprobs(self, ids: list[int], temperature: float = TEMPERATURE) -> torch.Tensor:
        with torch.inference_mode():
            return (self.model(torch.tensor([ids])).logits[0, :-1] / temperature).log_softmax(-1)

    def forward(self, ids: list[int], temperature: float = TEMPERATURE) -> list[float]:
        """[N] logprob of each token given those before it; nothing is known of the first."""
        own = self.logprobs(ids, temperature).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        return [0.0, *own.tolist()]

    def best(self, ids: list[int]) -> list[tuple[int, float]]:
        values, tokens = self.logprobs(ids).max(-1)
        return list(zip(tokens.tolist(), values.tolist(), strict=True))[NUM_PROMPT - 1 :]

    def trained(self) -> list[Trained]:
        """What a trainer without a fault uses."""
        found = []
        for row, engine in zip(self.ids.tolist(), self.engine, strict=True):
            old = self.forward(row)[NUM_PROMPT:]
            found.append(Trained(row[:NUM_PROMPT], row[NUM_PROMPT:], old, list(engine)))
        return found

    def trace(
        self, path: Path, values: Any = None, *, mode: str = "processed_logprobs", topk: bool = True, hf: Any = None
    ) -> Path:
        made = make_tables(
            NUM_REQUESTS, NUM_TOKENS, prompt_tokens=NUM_PROMPT, sampling_params={"temperature": TEMPERATURE},
            engine=make_engine(logprobs_mode=mode, config=json.dumps({"hf_config": hf} if hf else {})),
        )  # fmt: skip
        made["requests"]["prompt_token_ids"] = [row[:NUM_PROMPT].astype("u4") for row in self.ids]
        made["tokens"]["token_id"] = self.ids[:, NUM_PROMPT:].T.ravel().astype("u4")
        data = np.array(self.engine if values is None else values).T.ravel().astype("f4")
        made["tokens"]["rollout_logprob"] = np.ma.masked_array(data, mask=False)
        if topk:
            rows = [(r, NUM_PROMPT + i, *best) for r, tops in enumerate(self.tops) for i, best in enumerate(tops)]
            request, position, token, logprob = (np.array(column) for column in zip(*rows, strict=True))
            made["topk"] = {
                "request": request.astype("u4"), "position": position.astype("u4"),
                "rank": np.ones(len(rows), "u4"), "token_id": token.astype("u4"), "logprob": logprob.astype("f4"),
            }  # fmt: skip
        write_trace(path, [made])
        return path
