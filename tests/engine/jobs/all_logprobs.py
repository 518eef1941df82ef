"""Mixed batches on V1 in this process; writes what the client received and what every sampled token's logprobs are.

all_logprobs.py MODEL OUT.json

The truth is taken apart from the recorder: before each sampler call vLLM's own sampler runs on a copy of the logits,
once in each mode, and the random states are put back.
"""

import copy
import dataclasses
import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that batches, and with them what is sampled, are the same

import torch
from vllm import LLM, SamplingParams
from vllm.v1.sample.sampler import Sampler

MODES = ("raw_logprobs", "processed_logprobs")
TRUTH = {}


def rounds(tokenizer):
    """Batches: a mixed one, an all-greedy one, two all-random ones."""
    word = tokenizer.decode([77])
    mixed = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.9, "logprobs": 0},
        {"temperature": 1.3, "top_k": 20, "logprobs": 2, "repetition_penalty": 1.3, "presence_penalty": 0.4},
        {"temperature": 0.9, "min_p": 0.05, "frequency_penalty": 0.5},
        {"temperature": 1.0, "logit_bias": {28: 6.0}, "bad_words": [word], "prompt_logprobs": 1},
        {"temperature": 0.0, "logit_bias": {30: 9.0}, "logprobs": 0, "min_tokens": 3},
        {"temperature": 0.5, "top_p": 0.8, "top_k": 50, "seed": 7, "n": 2},
        {"temperature": 1.0, "allowed_token_ids": list(range(100, 160))},
        {"temperature": 0.7, "top_p": 0.9, "prompt_logprobs": 2, "presence_penalty": 0.4},
        {"temperature": 0.5, "prompt_logprobs": 0},
    ]
    greedy = [{"temperature": 0.0}, {"temperature": 0.0, "repetition_penalty": 1.5}]
    random = [{"temperature": 0.8, "top_p": 0.7}, {"temperature": 1.1, "top_k": 5}, {"temperature": 1.0}]
    alone = [{"temperature": 1.5}]
    return [[SamplingParams(max_tokens=6, ignore_eos=True, **p) for p in b] for b in (mixed, greedy, random, alone)]


def values_in(sampler, mode, forward, logits, metadata):
    """Token ids and logprobs that vLLM reports for these logits in this mode."""
    own = sampler.logprobs_mode
    states = torch.get_rng_state(), {i: g.get_state() for i, g in metadata.generators.items()}
    sampler.logprobs_mode = sampler.topk_topp_sampler.logprobs_mode = mode
    try:
        output = forward(sampler, logits.clone(), dataclasses.replace(metadata, max_num_logprobs=0))
    finally:
        sampler.logprobs_mode = sampler.topk_topp_sampler.logprobs_mode = own
        torch.set_rng_state(states[0])
        for i, state in states[1].items():
            metadata.generators[i].set_state(state)
    tensors = output.logprobs_tensors
    return tensors.logprob_token_ids[:, 0].tolist(), [float(v).hex() for v in tensors.logprobs[:, 0].tolist()]


def take_truth(runner, found):
    """Put a witness around the sampler of this engine."""
    outer = Sampler.forward
    vllms = getattr(outer, "__wrapped__", outer)
    # a processor may count what it has seen
    copied = copy.deepcopy

    def forward(self, logits, sampling_metadata, **kwargs):
        if runner.sampler is not self or not runner.input_batch.num_reqs or kwargs:
            return outer(self, logits, sampling_metadata, **kwargs)
        seen = [values_in(self, mode, vllms, logits, sampling_metadata) for mode in MODES]
        output = outer(self, logits, sampling_metadata)
        sampled = output.sampled_token_ids[:, 0].tolist()
        assert seen[0][0] == seen[1][0] == sampled
        for row, request_id in enumerate(copied(runner.input_batch.req_ids)):
            found.setdefault(request_id, []).append([sampled[row], *(values[row] for _, values in seen)])
        return output

    Sampler.forward = forward
    return outer


def client_row(row):
    return None if row is None else {str(i): [float(v.logprob).hex(), v.rank] for i, v in row.items()}


def main(model, out):
    result = {}
    for mode in MODES:
        llm = LLM(
            model=model, seed=0, logprobs_mode=mode, enforce_eager=True, max_model_len=256, max_num_seqs=16,
            enable_prefix_caching=False, num_gpu_blocks_override=64,
        )  # fmt: skip
        runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        client, truth = [], {}
        outer = take_truth(runner, truth)
        for number, batch in enumerate(rounds(llm.get_tokenizer())):
            prompts = [{"prompt_token_ids": [5 + number, 9 + i, 17]} for i in range(len(batch))]
            for output in llm.generate(prompts, batch, use_tqdm=False):
                for completion in output.outputs:
                    rows = completion.logprobs
                    client.append(
                        {
                            "id": output.request_id,
                            "index": completion.index,
                            "token_ids": list(completion.token_ids),
                            "logprobs": None if rows is None else [client_row(row) for row in rows],
                            "prompt": output.prompt_logprobs and [client_row(row) for row in output.prompt_logprobs],
                        }
                    )
        Sampler.forward = outer
        result[mode] = {"client": client, "truth": truth}
        llm.llm_engine.engine_core.shutdown()
        del llm, runner
    with open(out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
