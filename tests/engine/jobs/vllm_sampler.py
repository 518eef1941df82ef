"""Run vLLM's own sampler on given logits; executed by an engine environment's Python: IN.npz JOB.json OUT.npz.

JOB.json is a list of batches, each a list of rows {sampling, prompt, output}; IN.npz holds ``logits<i>`` [rows, V] for
batch i, and OUT.npz gets ``logprobs<i>`` [rows, V]: the processed logprobs of the whole vocabulary.
"""

import inspect
import json
import sys
from types import SimpleNamespace

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

CPU = torch.device("cpu")


def sampling_params(fields: dict) -> SamplingParams:
    fields = dict(fields)
    bad_words_token_ids = fields.pop("bad_words_token_ids", None)
    stop_token_ids = fields.pop("all_stop_token_ids", [])
    if "logit_bias" in fields:
        fields["logit_bias"] = {int(token): bias for token, bias in fields["logit_bias"].items()}
    params = SamplingParams(**fields, logprobs=-1, max_tokens=1000)
    params._bad_words_token_ids = bad_words_token_ids
    params._all_stop_token_ids.update(stop_token_ids)
    return params


def sample(rows: list, logits: np.ndarray) -> np.ndarray:
    num_rows, vocab_size = logits.shape
    config = SimpleNamespace(speculative_config=None, scheduler_config=SimpleNamespace(max_num_seqs=num_rows))
    arguments = dict(
        max_num_reqs=num_rows,
        max_model_len=256,
        max_num_batched_tokens=256,
        device=CPU,
        pin_memory=False,
        vocab_size=vocab_size,
        block_sizes=[16],
        kernel_block_sizes=[16],
        max_num_blocks_per_req=[16],
        logitsprocs=build_logitsprocs(config, CPU, False, False),
    )
    known = inspect.signature(InputBatch).parameters
    batch = InputBatch(**{name: value for name, value in arguments.items() if name in known})
    for i, row in enumerate(rows):
        state = CachedRequestState(
            req_id=str(i),
            prompt_token_ids=row["prompt"],
            mm_features=[],
            sampling_params=sampling_params(row["sampling"]),
            # With a generator for every row, sampling needs no torch.compile.
            generator=torch.Generator().manual_seed(i),
            block_ids=([0],),
            num_computed_tokens=0,
            output_token_ids=row["output"],
        )
        batch.add_request(state)
    batch.refresh_metadata()
    metadata = batch.sampling_metadata
    metadata.max_num_logprobs = -1
    output = Sampler(logprobs_mode="processed_logprobs")(torch.from_numpy(logits.copy()), metadata)
    return output.logprobs_tensors.logprobs.numpy()


def main(logits_path: str, job_path: str, out_path: str) -> None:
    logits = np.load(logits_path)
    with open(job_path) as file:
        batches = json.load(file)
    np.savez(out_path, **{f"logprobs{i}": sample(rows, logits[f"logits{i}"]) for i, rows in enumerate(batches)})


if __name__ == "__main__":
    main(*sys.argv[1:])
