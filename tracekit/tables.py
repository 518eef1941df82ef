"""The tables of a trace: names and column types, shared by the recorder, the wire and the Arrow file.

Standard library only, because the recorder imports it inside the engine. A type is `u1 u4 u8 i8 f4` (little-endian
numpy scalars), `str`, `list<u4>` or `list<f4>`; a trailing `?` makes the column nullable. Times are in nanoseconds:
`*_ns` of the engine's monotonic clock, but for `wall_ns`, which is a wall clock: the engine's at `engines.mono_ns`, or
a trainer's.
`engine` is the number the daemon gave to the engine process; a recorder does not send it.

The comments are the documentation: `docs/trace-format.md` is made from them (`make docs`), so every table says what a
row is, and every column what it holds. `engine`, `request`, `position`, `token_id`, `engine_step` and `weight_version`
mean the same in every table, and say more only where they differ.
"""

from __future__ import annotations

SCHEMA_VERSION = 4

# the schema that brought a table or a column; those not named were in the first that is read
SINCE = {
    **dict.fromkeys(("prompt_logprobs", "prompt_topk"), 3),
    **dict.fromkeys(("joined", "annotations", "shed", "stalls", "engines.run"), 4),
}
OLDEST_SCHEMA = 2

# tokens.flags
ACCEPTED = 1  # appended to the request's output
DISCARDED = 2  # sampled, but never part of the output (abort, stop trim, reset)

# scheduled.flags
NEW = 1  # first time this request is scheduled
RESUMED = 2  # back after a preemption
PREFILL = 4  # computes prompt (or recomputed) tokens
PARTIAL = 8  # a chunk that does not reach the end: samples nothing
PREEMPTED = 16  # thrown out in this step; num_tokens is 0

# losses.reason of the rows of requests that were left out as a whole
SHED = "shed: the recorder's window was filling up, and a hole in every request is worse than some that are missing"

TABLES: dict[str, dict[str, str]] = {
    "engines": {  # a row is an engine that was recorded; one that was attached to again has another
        "engine": "u4",  # its number in this trace, from 0; every other table refers to it
        "engine_id": "str",  # 32 hex digits, random per recording
        "kind": "str",  # the generation: v0 | v1
        "engine_version": "str",  # of vLLM
        "recorder_version": "str",  # of tracekit in the engine's environment
        "pid": "u4",  # of the process that schedules
        "host": "str",  # its machine
        "rank": "u4",  # the data-parallel rank (dp_rank), 0 where there is one engine
        "wall_ns": "i8",  # the wall clock
        "mono_ns": "i8",  # the engine's monotonic clock at the same moment
        "model": "str",  # as the engine was given it: a folder, or a name of the hub
        "logprobs_mode": "str",  # raw_logprobs | processed_logprobs | raw_logits | processed_logits
        "config": "str",  # JSON: every resolved setting that is known to move logprobs
        "run": "str?",  # the caller's name of the run; null where nobody named one, and before schema 4
    },
    "workers": {  # a row is a worker of an engine
        "engine": "u4",
        "rank": "u4",  # the worker's within its engine (tp_rank where only tensor parallelism is used)
        "pid": "u4",  # of the worker's process
        "time_ns": "i8",  # when it was asked
        "config": "str",  # JSON: what only the worker knows (attention backends, sampler path, head dtype…)
    },
    "requests": {  # a row is a request that was admitted: one completion of one prompt
        "engine": "u4",
        "request": "u4",  # number of the request within its engine, from 0, in order of admission
        "time_ns": "i8",  # when it was admitted
        "request_id": "str",  # the engine's own
        "external_id": "str",  # the caller's
        "parent_id": "str?",  # external id of the n>1 request this is a child of
        "index": "u4",  # which of the n completions
        "prompt_token_ids": "list<u4>",  # as the engine tokenized the prompt
        "num_mm_features": "u4",  # images, audio…: their places in the prompt hold placeholder ids
        "sampling_params": "str",  # JSON, after the engine merged its defaults
        "lora": "str?",  # the adapter's name
        "lora_id": "u4?",  # the adapter's number in the engine
        "lora_path": "str?",  # where the adapter was loaded from
        "cache_salt": "str?",  # keeps prefix hits apart from those of other salts
        "labels": "str",  # JSON object from extra_args or trace headers
    },
    "joined": {  # a row is a request that was under way when the recorder was attached
        "engine": "u4",
        "request": "u4",
        "engine_step": "u4",  # the first that was recorded
        "num_computed": "u4",  # tokens with KV before that step, by weights that are not known
        # the tokens of its output that were sampled before: their logprobs, steps and weights are not known
        "token_ids": "list<u4>",
    },
    "tokens": {  # a row is a token that was sampled
        "engine": "u4",
        "request": "u4",
        "position": "u4",  # 0-based over prompt and completion
        "token_id": "u4",
        "rollout_logprob": "f4?",  # nats, as the engine reports it; null where nobody asked for it
        "rank": "u4?",  # vocab_rank: 1 = the engine's argmax; null with the logprob, and where V0 was not asked
        "raw_logprob": "f4?",  # nats; both only where the recorder was told to record both
        "processed_logprob": "f4?",  # nats, after temperature, penalties and truncation; as raw_logprob
        "engine_step": "u4",  # that sampled it
        "weight_version": "u4",  # at dispatch
        "flags": "u1",  # ACCEPTED or DISCARDED
    },
    "topk": {  # a row is an alternative at a position, where the client asked for some
        "engine": "u4",
        "request": "u4",
        "position": "u4",
        "rank": "u4",  # vocab_rank: 1 = the most likely token at this position
        "token_id": "u4",
        "logprob": "f4",  # nats, in the engine's logprobs_mode
    },
    "prompt_logprobs": {  # a row is a prompt token, where the client asked for prompt logprobs
        "engine": "u4",
        "request": "u4",
        "position": "u4",  # from 1: nothing comes before the first token
        "token_id": "u4",  # that the engine scored here: the prompt's
        # nats, given the tokens before it; nobody sampled it. V1's are raw, whatever temperature and logprobs_mode say
        # (but logits, where vLLM 0.32 is told to report logits); V0's are after temperature and truncation
        "logprob": "f4",
        "rank": "u4",  # vocab_rank: 1 = the engine's argmax
        "engine_step": "u4",  # whose output brought it; V1 brings a prompt's at once, when its last chunk is computed
    },
    "prompt_topk": {  # a row is an alternative at a prompt position, where the client asked for some
        "engine": "u4",
        "request": "u4",
        "position": "u4",  # as in `prompt_logprobs`
        "rank": "u4",  # vocab_rank: 1 = the most likely token at this position
        "token_id": "u4",
        "logprob": "f4",  # as in `prompt_logprobs`
    },
    "steps": {  # a row is one step of an engine: one forward pass over a batch
        "engine": "u4",
        "engine_step": "u4",  # counts up within the engine, from 0 or from where the recorder was attached
        "time_ns": "i8",  # when the step was dispatched
        "output_ns": "i8",  # when its output was accepted
        "weight_version": "u4",  # that it ran on
        "num_requests": "u4",  # in the batch
        "num_scheduled_tokens": "u4",  # in the batch, prompt tokens included
        "num_waiting": "u4",  # requests that were left out of it
        "kv_usage": "f4",  # share of KV blocks in use, 0 to 1
    },
    "scheduled": {  # a row is a request's part in a step
        "engine": "u4",
        "engine_step": "u4",
        "request": "u4",
        "num_tokens": "u4",  # that the step computes for it
        "num_computed": "u4",  # tokens with KV before this step
        "num_draft": "u4",  # of num_tokens, drafted ones that this step verifies (speculative decoding)
        "flags": "u1",  # NEW, RESUMED, PREFILL, PARTIAL, PREEMPTED, added up
    },
    "cache": {  # a row is one KV block that a request found computed when it was admitted or resumed
        "engine": "u4",
        "engine_step": "u4",  # that scheduled the request
        "request": "u4",
        "kv_group": "u1",  # of layers that share a block table
        "block": "u4",  # place in the request's block table
        "block_id": "u4",  # the engine's number of the block
        "num_tokens": "u4",  # of the block that the hit covers
        "hash": "u8?",  # first eight bytes of the engine's own block hash, big-endian
        "min_weight_version": "u4?",  # oldest that computed a part of it; null: not known to be computed here
        "max_weight_version": "u4?",  # newest that computed a part of it; null with the oldest
    },
    "finishes": {  # a row is a request that ended
        "engine": "u4",
        "request": "u4",
        "engine_step": "u4",  # whose output ended it; of an abort, the next to be dispatched
        "time_ns": "i8",  # when it ended
        "reason": "str",  # stop | length | abort | error
        "num_output_tokens": "u4",  # that were accepted
    },
    "weights": {  # a row is a change, or a label that its caller gave to the version that is there already
        "engine": "u4",
        "weight_version": "u4",  # the version that starts here; 0 is what it loaded, 1 what was there at an attach
        "method": "str",  # how it arrived: the RPC's name
        "arguments": "str",  # JSON, long texts cut
        "engine_step": "u4",  # first step that can run on it
        "begin_ns": "i8",  # when the call began
        "end_ns": "i8",  # when it returned
        "label": "str?",  # the caller's own, never trusted above the fingerprints
        "checkpoint": "str?",  # where the caller says that these weights are stored
        "lora": "str?",  # the adapter whose weights changed; null: the model's
        # tensors whose fingerprint differs from the version before, adapters' left out. 0: nothing sampled moved.
        # null: not known (no fingerprints, or none differs but a tensor cannot be read), and of labels and adapters
        "num_changed": "u4?",
    },
    "fingerprints": {  # a row is a tensor of a worker at the start of a weight version
        "engine": "u4",
        "weight_version": "u4",
        "rank": "u4",  # the worker's, as in `workers`
        "tensor": "str",  # the parameter's name in the model
        "dtype": "str",  # torch's name
        "shape": "list<u4>",  # of the worker's part
        "hash": "u8?",  # of a strided sample of its bytes; null: this tensor cannot be read
    },
    "control": {  # a row is a call that steers an engine (pause, reset, abort…), or the recorder: attach, detach
        "engine": "u4",
        "engine_step": "u4",  # the next to be dispatched
        "time_ns": "i8",  # when it was called
        "name": "str",  # the method's
        "arguments": "str",  # JSON
        "answer": "str",  # JSON
    },
    "annotations": {  # a row is what a trainer said of a rollout; what a later one says goes before
        "engine": "u4",  # the number of the trainer's process: it is no engine, and has a number in the same way
        "wall_ns": "i8",  # when it was said, by the trainer's wall clock
        "run": "str?",  # the caller's name of the run, as in `engines`
        "engine_id": "str?",  # of the engine that made the rollout, where the trainer knows it
        "request_id": "str",  # the request's, as its caller or as its engine has it
        "index": "u4",  # which of the n completions
        "train_step": "u4?",  # the trainer's step that uses it
        "group": "str?",  # of the rollouts that it is compared with
        "reward": "f4?",  # of the whole rollout
        "advantages": "list<f4>",  # one of the whole rollout, or one of each token of its completion; empty: not said
        "old_logprobs": "list<f4>",  # nats, the trainer's recomputation, one of each such token; empty: not said
        # ids of prompt and completion as the trainer's forward saw them; empty: not said, the recorded ones are taken
        "token_ids": "list<u4>",
    },
    "shed": {  # a row is a request that the recorder left out as a whole: no other table has a row of it
        "engine": "u4",
        "request": "u4",  # its number, which no other request has
        "time_ns": "i8",  # when it was admitted
        "request_id": "str",  # the engine's own
        "external_id": "str",  # the caller's
        "index": "u4",  # which of the n completions
        "reason": "str",  # in words
    },
    "stalls": {  # a row is a time that a lossless recorder made its engine wait, between two steps
        "engine": "u4",
        "engine_step": "u4",  # the next to be dispatched
        "begin_ns": "i8",  # when it began to wait
        "end_ns": "i8",  # when it went on
        "gave_up": "u1",  # 1: because it may wait no longer, and rows were dropped from then on
    },
    "losses": {  # a row is a run of batches of a recorder whose rows did not arrive
        "engine": "u4",  # 4294967295: damaged bytes that tell no engine
        "from_seq": "u8",  # first batch; 0 where the rows had no number yet
        "to_seq": "u8",  # last batch; 0 where the end is unknown
        "reason": "str",  # in words
        "rows": "str",  # JSON object: table -> rows not delivered
    },
}
