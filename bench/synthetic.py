"""A made-up capture for the benchmarks: a 64-way continuous batch of Zipf-like text.

It is not a real rollout. Token ids are phrases of Zipf-distributed ids, logprobs are the fp32 log-softmax of
bf16-rounded logits of a peaked mixture, sampled at temperature 1, as vLLM computes them.
"""

import numpy as np

VOCAB = 49_152
CANDIDATES = 48  # tokens of the vocabulary that have any weight in one distribution


def capture(num_tokens, *, num_slots=64, mean_tokens=400, prompt_tokens=180, batch_tokens=16_384, seed=0):
    """Return the batches a recorder would send: a list of numpy Tables, step-major, about ``batch_tokens`` each."""
    rng = np.random.default_rng(seed)
    num_steps = -(-num_tokens // num_slots)
    slot, step, request, index, prompt = _schedule(rng, num_steps, num_slots, mean_tokens, prompt_tokens)
    order = np.lexsort((slot, step))
    slot, step, request, index = slot[order], step[order], request[order], index[order]
    logprob, rank = _logprobs(rng, len(step))
    ids = _text(rng, len(step))
    # text runs along a request, not along a step
    token_id = np.empty_like(ids)
    token_id[np.lexsort((step, request))] = ids
    position = prompt[request] + index
    clock = np.cumsum(rng.integers(18_000_000, 23_000_000, num_steps))
    batches = []
    steps_a_batch = max(1, batch_tokens // num_slots)
    for first in range(0, num_steps, steps_a_batch):
        last = min(first + steps_a_batch, num_steps)
        rows = slice(*np.searchsorted(step, [first, last]))
        starts = index[rows] == 0
        batches.append(
            {
                "requests": _requests(request[rows][starts], prompt, clock[step[rows][starts]], rng),
                "tokens": {
                    "request": request[rows].astype("u4"),
                    "position": position[rows].astype("u4"),
                    "token_id": token_id[rows].astype("u4"),
                    "rollout_logprob": logprob[rows],
                    "rank": rank[rows],
                    "raw_logprob": np.ma.masked_all(len(step[rows]), "f4"),
                    "processed_logprob": np.ma.masked_all(len(step[rows]), "f4"),
                    "engine_step": step[rows].astype("u4"),
                    "weight_version": np.zeros(len(step[rows]), "u4"),
                    "flags": np.ones(len(step[rows]), "u1"),
                },
                "steps": _steps(first, last, clock, num_slots, rng),
                "scheduled": {
                    "engine_step": step[rows].astype("u4"),
                    "request": request[rows].astype("u4"),
                    "num_tokens": np.where(starts, prompt[request[rows]], 1).astype("u4"),
                    "num_computed": np.where(starts, 0, position[rows] - 1).astype("u4"),
                    "num_draft": np.zeros(len(step[rows]), "u4"),
                    "flags": np.where(starts, 1 | 4, 0).astype("u1"),
                },
            }
        )
    return batches


def _schedule(rng, num_steps, num_slots, mean_tokens, prompt_tokens):
    slots, lengths, begins = [], [], []
    for slot in range(num_slots):
        end = -int(rng.integers(0, mean_tokens))  # the first requests began before the capture
        while end < num_steps:
            length = 1 + int(rng.lognormal(np.log(mean_tokens) - 0.32, 0.8))
            slots.append(slot)
            lengths.append(length)
            begins.append(max(end, 0))
            end += length
            lengths[-1] = min(end, num_steps) - begins[-1]
    keep = np.array(lengths) > 0
    slots, lengths, begins = (np.array(values)[keep] for values in (slots, lengths, begins))
    order = np.argsort(begins, kind="stable")
    slots, lengths, begins = slots[order], lengths[order], begins[order]
    request = np.repeat(np.arange(len(slots)), lengths)
    index = np.arange(len(request)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    prompt = rng.integers(prompt_tokens // 2, prompt_tokens * 3 // 2, len(slots))
    return slots[request], begins[request] + index, request, index, prompt


def _text(rng, count):
    """Zipf-distributed phrases of 1 to 8 Zipf-distributed ids."""
    ids = rng.permutation(VOCAB)[np.minimum(rng.zipf(1.2, count) - 1, VOCAB - 1)]
    num_phrases = 200_000
    phrases = np.minimum(rng.zipf(1.15, count) - 1, num_phrases - 1)
    lengths = 1 + (phrases * 2_654_435_761 >> 7) % 8
    ends = np.cumsum(lengths)
    used = int(np.searchsorted(ends, count)) + 1
    starts = (phrases[:used] * 40_503) % max(count - 8, 1)
    offsets = np.arange(ends[used - 1]) - np.repeat(ends[:used] - lengths[:used], lengths[:used])
    return ids[(np.repeat(starts, lengths[:used]) + offsets)[:count] % count]


def _logprobs(rng, count):
    logprobs, ranks = np.empty(count, "f4"), np.empty(count, "u4")
    for first in range(0, count, 65_536):
        size = min(65_536, count - first)
        # half of the tokens are all but certain, as in real text
        spread = np.where(rng.random(size) < 0.5, rng.uniform(9, 30, size), rng.gamma(2, 2, size))
        logits = rng.normal(0, 1, (size, CANDIDATES))
        logits[:, 0] += spread
        logits = _bf16((logits * 2 + rng.normal(12, 3, (size, 1))).astype("f4"))
        logits -= logits.max(1, keepdims=True)
        # the rest of the vocabulary together has some weight as well
        tail = 10 ** rng.uniform(-6, -1.5, (size, 1)).astype("f4")
        logits -= np.log(np.exp(logits).sum(1, keepdims=True, dtype="f4") + tail)
        chosen = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
        picked = logits[np.arange(size), chosen]
        logprobs[first : first + size] = picked
        ranks[first : first + size] = (logits > picked[:, None]).sum(1) + 1
    return logprobs, ranks


def _bf16(values):
    bits = values.view("u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("u4").view("f4")


def _requests(numbers, prompt, time_ns, rng):
    return {
        "request": numbers.astype("u4"),
        "time_ns": time_ns.astype("i8"),
        "request_id": [f"cmpl-{rng.bytes(8).hex()}-{number}" for number in numbers],
        "external_id": [f"cmpl-{rng.bytes(8).hex()}" for _ in numbers],
        "parent_id": [None for _ in numbers],
        "index": np.zeros(len(numbers), "u4"),
        "prompt_token_ids": [_text(rng, int(prompt[number])).astype("u4") for number in numbers],
        "num_mm_features": np.zeros(len(numbers), "u4"),
        "sampling_params": ['{"max_tokens":1024,"temperature":1.0,"top_p":1.0}' for _ in numbers],
        "lora": [None for _ in numbers],
        "lora_id": [None for _ in numbers],
        "lora_path": [None for _ in numbers],
        "cache_salt": [None for _ in numbers],
        "labels": ["{}" for _ in numbers],
    }


def _steps(first, last, clock, num_slots, rng):
    count = last - first
    return {
        "engine_step": np.arange(first, last, dtype="u4"),
        "time_ns": clock[first:last].astype("i8"),
        "output_ns": clock[first:last].astype("i8") + rng.integers(15_000_000, 17_000_000, count),
        "weight_version": np.zeros(count, "u4"),
        "num_requests": np.full(count, num_slots, "u4"),
        "num_scheduled_tokens": np.full(count, num_slots, "u4"),
        "num_waiting": np.zeros(count, "u4"),
        "kv_usage": rng.random(count).astype("f4"),
    }
