"""The tables of a trace: names and column types, shared by the recorder, the wire and the Arrow file.

Standard library only, because the recorder imports it inside the engine. A type is ``u1 u4 u8 i8 f4`` (little-endian
numpy scalars), ``str``, or ``list<u4>``; a trailing ``?`` makes the column nullable. Every time is in nanoseconds:
``*_ns`` of the engine's monotonic clock, but for ``engines.wall_ns`` which is the wall clock at ``engines.mono_ns``.
``engine`` is the number the daemon gave to the engine process; a recorder does not send it.
"""

SCHEMA_VERSION = 2

# tokens.flags
ACCEPTED = 1  # appended to the request's output
DISCARDED = 2  # sampled, but never part of the output (abort, stop trim, reset)

# scheduled.flags
NEW = 1  # first time this request is scheduled
RESUMED = 2  # back after a preemption
PREFILL = 4  # computes prompt (or recomputed) tokens
PARTIAL = 8  # a chunk that does not reach the end: samples nothing
PREEMPTED = 16  # thrown out in this step; num_tokens is 0

TABLES: dict[str, dict[str, str]] = {
    "engines": {
        "engine": "u4",
        "engine_id": "str",  # 32 hex digits, random per engine process
        "kind": "str",  # v0 | v1
        "engine_version": "str",
        "recorder_version": "str",
        "pid": "u4",
        "host": "str",
        "rank": "u4",
        "wall_ns": "i8",
        "mono_ns": "i8",
        "model": "str",
        "logprobs_mode": "str",  # raw_logprobs | processed_logprobs | raw_logits | processed_logits
        "config": "str",  # JSON: every resolved setting that is known to move logprobs
    },
    "workers": {
        "engine": "u4",
        "rank": "u4",
        "pid": "u4",
        "time_ns": "i8",
        "config": "str",  # JSON: what only the worker knows (attention backends, sampler path, head dtype…)
    },
    "requests": {
        "engine": "u4",
        "request": "u4",  # number of the request within its engine, from 0, in order of admission
        "time_ns": "i8",
        "request_id": "str",  # the engine's own
        "external_id": "str",  # the caller's
        "parent_id": "str?",  # external id of the n>1 request this is a child of
        "index": "u4",  # which of the n completions
        "prompt_token_ids": "list<u4>",
        "num_mm_features": "u4",  # images, audio…: their places in the prompt hold placeholder ids
        "sampling_params": "str",  # JSON, after the engine merged its defaults
        "lora": "str?",  # the adapter's name
        "lora_id": "u4?",
        "lora_path": "str?",
        "cache_salt": "str?",
        "labels": "str",  # JSON object from extra_args or trace headers
    },
    "tokens": {
        "engine": "u4",
        "request": "u4",
        "position": "u4",  # 0-based over prompt and completion
        "token_id": "u4",
        "rollout_logprob": "f4?",  # nats, as the engine reports it; null where nobody asked for it
        "rank": "u4?",  # 1 = the engine's argmax; null with the logprob, and where V0 was not asked
        "raw_logprob": "f4?",  # nats; both only where the recorder was told to record both
        "processed_logprob": "f4?",
        "engine_step": "u4",
        "weight_version": "u4",  # at dispatch
        "flags": "u1",
    },
    "topk": {
        "engine": "u4",
        "request": "u4",
        "position": "u4",
        "rank": "u4",  # 1 = the most likely token at this position
        "token_id": "u4",
        "logprob": "f4",  # nats, in the engine's logprobs_mode
    },
    "steps": {
        "engine": "u4",
        "engine_step": "u4",
        "time_ns": "i8",  # when the step was dispatched
        "output_ns": "i8",  # when its output was accepted
        "weight_version": "u4",
        "num_requests": "u4",
        "num_scheduled_tokens": "u4",
        "num_waiting": "u4",
        "kv_usage": "f4",  # share of KV blocks in use, 0 to 1
    },
    "scheduled": {
        "engine": "u4",
        "engine_step": "u4",
        "request": "u4",
        "num_tokens": "u4",
        "num_computed": "u4",  # tokens with KV before this step
        "num_draft": "u4",  # of num_tokens, drafted ones that this step verifies (speculative decoding)
        "flags": "u1",
    },
    "cache": {  # a row is one KV block that a request found computed when it was admitted or resumed
        "engine": "u4",
        "engine_step": "u4",
        "request": "u4",
        "kv_group": "u1",
        "block": "u4",  # place in the request's block table
        "block_id": "u4",
        "num_tokens": "u4",  # of the block that the hit covers
        "hash": "u8?",  # first eight bytes of the engine's own block hash, big-endian
        "min_weight_version": "u4?",  # oldest and newest that computed a part of it;
        "max_weight_version": "u4?",  # null: not computed by this engine while it was recorded
    },
    "finishes": {
        "engine": "u4",
        "request": "u4",
        "engine_step": "u4",
        "time_ns": "i8",
        "reason": "str",  # stop | length | abort | error
        "num_output_tokens": "u4",
    },
    "weights": {  # a row is a change, or a label that its caller gave to the version that is there already
        "engine": "u4",
        "weight_version": "u4",  # the version that starts here; 0 is what the engine loaded
        "method": "str",  # how it arrived: the RPC's name
        "arguments": "str",  # JSON, long texts cut
        "engine_step": "u4",  # first step that can run on it
        "begin_ns": "i8",
        "end_ns": "i8",
        "label": "str?",  # the caller's own, never trusted above the fingerprints
        "checkpoint": "str?",  # where the caller says that these weights are stored
        "lora": "str?",  # the adapter whose weights changed; null: the model's
        # tensors whose fingerprint differs from the version before, adapters' left out. 0: nothing sampled moved.
        # null: not known (no fingerprints, or none differs but a tensor cannot be read), and of labels and adapters
        "num_changed": "u4?",
    },
    "fingerprints": {  # of the weights at the start of a version, a row for each tensor of each worker
        "engine": "u4",
        "weight_version": "u4",
        "rank": "u4",
        "tensor": "str",
        "dtype": "str",
        "shape": "list<u4>",
        "hash": "u8?",  # of a strided sample of its bytes; null: this tensor cannot be read
    },
    "control": {
        "engine": "u4",
        "engine_step": "u4",
        "time_ns": "i8",
        "name": "str",
        "arguments": "str",  # JSON
        "answer": "str",  # JSON
    },
    "losses": {
        "engine": "u4",
        "from_seq": "u8",
        "to_seq": "u8",
        "reason": "str",
        "rows": "str",  # JSON object: table -> rows not delivered
    },
}
