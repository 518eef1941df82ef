"""Mixed batches on V0's LLMEngine; writes what the client received and what every sampled token's logprobs are.

all_logprobs_v0.py MODEL OUT.json

The truth is taken apart from the recorder: before each sampler call vLLM's own sampler runs on a copy of the logits
with everybody asking for logprobs, and the random states are put back; raw ones come from another copy.
"""

import json
import sys

import torch
from vllm import LLM, SamplingParams
from vllm.model_executor.layers.sampler import Sampler

TRUTH = {}


def rounds():
    mixed = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.9, "logprobs": 0},
        {"temperature": 1.3, "top_k": 20, "logprobs": 2, "repetition_penalty": 1.3, "presence_penalty": 0.4},
        {"temperature": 0.9, "min_p": 0.05, "frequency_penalty": 0.5, "seed": 3},
        {"temperature": 1.0, "logit_bias": {28: 6.0}, "prompt_logprobs": 1},
        {"temperature": 0.0, "min_tokens": 3, "logprobs": 0},
        {"temperature": 0.5, "top_p": 0.8, "top_k": 50, "seed": 7, "n": 2},
        {"temperature": 1.0, "allowed_token_ids": list(range(100, 160))},
        {"temperature": 0.7, "top_p": 0.9, "prompt_logprobs": 2, "presence_penalty": 0.4},
        {"temperature": 0.5, "prompt_logprobs": 0},
    ]
    greedy = [{"temperature": 0.0}, {"temperature": 0.0, "repetition_penalty": 1.5}]
    random = [{"temperature": 0.8, "top_p": 0.7}, {"temperature": 1.1, "top_k": 5}, {"temperature": 1.0}]
    return [[SamplingParams(max_tokens=6, ignore_eos=True, **p) for p in b] for b in (mixed, greedy, random)]


def official(vllms, sampler, logits, metadata):
    """The logprobs that vLLM reports of each group's sampled token when all ask."""
    own = [group.sampling_params for group in metadata.seq_groups]
    seeds = [g.generator.get_state() if g.generator is not None else None for g in metadata.seq_groups]
    state = torch.get_rng_state()
    try:
        for group in metadata.seq_groups:
            group.sampling_params = group.sampling_params.clone()
            group.sampling_params.logprobs = group.sampling_params.logprobs or 0
        found = vllms(sampler, logits.clone(), metadata)
    finally:
        torch.set_rng_state(state)
        for group, params, seed in zip(metadata.seq_groups, own, seeds, strict=True):
            group.sampling_params = params
            if seed is not None:
                group.generator.set_state(seed)
    samples = [output.samples[0] for output in found.outputs]
    return [(s.output_token, s.logprobs[s.output_token].logprob) for s in samples]


def take_truth():
    outer = Sampler.forward
    vllms = getattr(outer, "__wrapped__", outer)

    def forward(self, logits, sampling_metadata):
        raw = logits.clone().log_softmax(dim=-1, dtype=torch.float32)
        reported = official(vllms, self, logits, sampling_metadata)
        output = outer(self, logits, sampling_metadata)
        groups = sampling_metadata.seq_groups
        for group, (token_id, processed), made in zip(groups, reported, output.outputs, strict=True):
            assert made.samples[0].output_token == token_id
            row = group.sample_indices[0]
            values = [float(v).hex() for v in (raw[row, token_id], processed)]
            TRUTH.setdefault(group.seq_ids[0], []).append([token_id, *values])
        return output

    Sampler.forward = forward


def client_row(row):
    return None if row is None else {str(i): [float(v.logprob).hex(), v.rank] for i, v in row.items()}


def main(model, out):
    llm = LLM(model=model, seed=0, enforce_eager=True, max_model_len=256, max_num_seqs=16, num_gpu_blocks_override=256)
    take_truth()
    client, names = [], {}
    add = llm.llm_engine._create_sequence_group_with_sampling

    def noted(*args, **kwargs):
        group = add(*args, **kwargs)
        names[group.seqs[0].seq_id] = group.request_id
        return group

    llm.llm_engine._create_sequence_group_with_sampling = noted
    for number, batch in enumerate(rounds()):
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
    truth = {names[seq_id]: values for seq_id, values in TRUTH.items()}
    with open(out, "w") as file:
        json.dump({"processed_logprobs": {"client": client, "truth": truth}}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
