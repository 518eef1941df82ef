"""0.32's own sampler of model runner 2 with the recorder's hooks, where there is no Triton: its kernels in torch.

runner2_sampler.py OUT.json: for each case the width, and of each row's sampled token the logprobs by the engine and in
our column, and what they should be.
"""

import json
import sys
from types import SimpleNamespace as Made

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch
from vllm.v1.worker.gpu.sample import logprob, sampler, states

from tracekit.recorder.vllm.v1 import column as v1_column
from tracekit.recorder.vllm.v1 import sampler2 as v1_sampler2

VOCAB, ROWS = 50, 3


def backed(values, dtype):
    return Made(np=np.array(values, dtype=dtype), gpu=torch.tensor(values))


def sampling_states(temperature, top_k, num_logprobs):
    made = object.__new__(states.SamplingStates)
    made.vocab_size = VOCAB
    made.temperature, made.min_p = backed(temperature, "f4"), backed([0.0, 0.0, 0.0], "f4")
    made.top_k, made.top_p = backed(top_k, "i4"), backed([1.0, 0.6, 0.9], "f4")
    made.seeds, made.seeds_set = backed([0, 0, 0], "i8"), np.zeros(ROWS, dtype=bool)
    made.num_logprobs = np.array(num_logprobs, dtype="i4")
    return made


def token_logprobs(logits, token_ids):
    return logits.log_softmax(dim=-1, dtype=torch.float32).gather(1, token_ids.long())


def scores(logits, num_logprobs, sampled, *_args, logits_mode=False, **_kwargs):
    ids = torch.cat((sampled.unsqueeze(1), logits.topk(num_logprobs).indices), dim=1)
    found = logits.gather(1, ids).float() if logits_mode else token_logprobs(logits, ids)
    return LogprobsTensors(ids, found, torch.ones(len(sampled), dtype=torch.int64))


def fused_sample(logits, k, p, *_args):
    return apply_top_k_top_p_pytorch(logits.clone(), k, p).argmax(dim=-1)


def by_temperature(logits, _mapping, temperature):
    logits.div_(torch.where(temperature == 0, torch.ones(ROWS), temperature).unsqueeze(1))


def no_kernels():
    for name in ("LogitBiasState", "PenaltiesState", "BadWordsState"):
        setattr(sampler, name, lambda *_: Made(apply=lambda logits, _: logits))
    sampler.LogitsProcRequestState = Made(from_request_state=lambda _: None)
    sampler.LogprobTokenIdsState = lambda *_: Made(max_num_token_ids=lambda _: 0)
    sampler.ThinkingBudgetState = lambda *_: Made(apply=lambda *_: None)
    sampler.gumbel_sample = lambda logits, *_args, **_kwargs: logits.argmax(dim=-1)
    sampler.get_num_sampled_and_rejected = lambda *_: (None, None)
    sampler.compute_topk_scores, sampler.flashinfer_sample = scores, fused_sample
    logprob.compute_token_logprobs, states.apply_temperature = token_logprobs, by_temperature


def case(mode, *, temperature=(0.0, 0.7, 1.3), fused=False, asked=(-1, -1, -1), sharded=False):
    top_k = (VOCAB, 9, 5)
    sampler.SamplingStates = lambda *_: sampling_states(temperature, top_k, asked)
    sampler.flashinfer_sampler_supported = lambda: fused
    config = Made(parallel_config=Made(enable_batch_sharded_sampling=sharded), reasoning_config=None)
    made = sampler.Sampler(
        vllm_config=config, max_num_reqs=ROWS, vocab_size=VOCAB, device="cpu",
        req_states=Made(prefill_len=Made(gpu=None)), logprobs_mode=mode,
    )  # fmt: skip
    made.needs_logits_processing[:] = True
    mapping = torch.arange(ROWS)
    batch = Made(
        expanded_idx_mapping=mapping, idx_mapping=mapping, idx_mapping_np=mapping.numpy(), num_reqs=ROWS,
        cu_num_logits_np=np.arange(ROWS + 1), cu_num_logits=None, expanded_local_pos=None, positions=mapping,
        logits_indices=mapping, input_ids=mapping, seq_lens_cpu_upper_bound=mapping, seq_lens=mapping,
    )  # fmt: skip
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1)).bfloat16()
    before = logits.clone()
    output = made(logits, batch)
    assert torch.equal(logits, before)
    scaled = before.float()
    by_temperature(scaled, None, torch.tensor(temperature))
    masked = apply_top_k_top_p_pytorch(scaled, torch.tensor(top_k), torch.tensor([1.0, 0.6, 0.9]))
    sampled = output.sampled_token_ids
    found = {
        "raw": token_logprobs(before, sampled)[:, 0].tolist(),
        "processed": token_logprobs(masked, sampled)[:, 0].tolist(),
        "engine": None,
        "width": None,
        "column": None,
    }
    if output.logprobs_tensors is not None:
        step = Made(logprobs=output.logprobs_tensors.tolists())
        column = v1_column.take(step)
        found["column"] = None if column is None else column.tolist()
        found["engine"], found["width"] = step.logprobs.logprobs[:, 0].tolist(), step.logprobs.logprobs.shape[1]
    return found


def main(out):
    assert v1_sampler2.is_there()
    missing = v1_sampler2.missing_features()
    v1_sampler2.attach("both")
    no_kernels()
    random = (0.5, 0.7, 1.3)
    result = {
        "missing": missing,
        "raw": case("raw_logprobs"),
        "raw, asked": case("raw_logprobs", asked=(-1, 2, 0)),
        "raw, fused": case("raw_logprobs", temperature=random, fused=True),
        "processed": case("processed_logprobs"),
        "processed, fused": case("processed_logprobs", temperature=random, fused=True),
        "processed, fused, asked": case("processed_logprobs", temperature=random, fused=True, asked=(0, -1, -1)),
        "raw, sharded": case("raw_logprobs", sharded=True),
        "logits": case("raw_logits"),
    }
    with open(out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
