"""From a trace to its rollouts: accepted tokens in position order, joined with their requests.

Refuses what cannot be judged; what was skipped is counted, never silent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

import numpy as np

from tracekit.diagnose.skipped import Skipped, Why
from tracekit.errors import ReplayRefused
from tracekit.replay.columns import list_column
from tracekit.replay.history import Computed, histories
from tracekit.replay.rollouts import Rollout, Rollouts, text_config
from tracekit.replay.tokens import Columns, accepted, by_request, check_logprobs, columns
from tracekit.scores import PROCESSED
from tracekit.scoring.params import Params, looks_back, parse_params, untestable
from tracekit.scoring.rounding import model_dtype, round_sampling, sampling_dtype
from tracekit.scoring.types import Sequence
from tracekit.trace.ledger import num_lost_rows
from tracekit.trace.redacted import refuse_redacted
from tracekit.trace.values import json_object

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

Row = Mapping[str, Any]


def read_rollouts(trace: Trace) -> Rollouts:
    """Read all that a replay needs of a trace.

    Raises:
        ReplayRefused: no token was recorded, none has a logprob, the recorded numbers are logits, or no request is
            whole.
        UsageError: prompts and tokens are redacted.
    """
    engines = trace.engines()
    refuse_redacted(engines, "a replay")
    modes = _logprobs_modes(engines)
    tokens, num_discarded = accepted(columns(trace.table("tokens")))
    check_logprobs(tokens, trace.rows("prompt_logprobs"), [str(e.get("kind")) for e in engines])
    promised = {_key(f): int(f["num_output_tokens"]) for f in trace.table("finishes").to_pylist()}
    requests = trace.table("requests")
    prompts = list_column(requests, "prompt_token_ids")
    rows = {
        _key(r): {**r, "prompt_token_ids": prompt}
        for r, prompt in zip(requests.drop_columns("prompt_token_ids").to_pylist(), prompts, strict=True)
    }
    before = {_key(r): r["token_ids"] for r in trace.table("joined").to_pylist()}
    rounding = {int(e["engine"]): sampling_dtype(e) for e in engines}
    with_processors = {int(e["engine"]) for e in engines if _has_processors(e)}
    of_request = histories(trace, tokens)
    found: list[Rollout] = []
    skipped: Counter[tuple[Why, str | None]] = Counter()
    samplings: dict[tuple[str, str | None], Mapping[str, Any]] = {}  # requests by the thousand share a few
    params: dict[tuple[str, str | None], Params] = {}
    for key, part in by_request(tokens):
        row = rows.get(key)
        earlier = before.get(key, [])
        why = _why_not(part, row, promised.get(key, 0), len(earlier))
        if row is None or why:
            skipped[why or "no request row", None] += 1
            continue
        told = row["sampling_params"], rounding.get(key[0])
        sampling = samplings[told] = samplings.get(told) or _sampling(row, told[1])
        # arguments that vLLM itself does not know are how a request tells such a processor what to do
        processed = "logits_processors" if key[0] in with_processors and sampling.get("extra_args") else None
        parameter = untestable(sampling) or processed or (looks_back(sampling) if earlier else None)
        if parameter:
            skipped["sampling parameter", parameter] += 1
        else:
            params[told] = params.get(told) or parse_params(sampling)
            found.append(_rollout(part, row, earlier, params[told], of_request.get(key, ())))
    if num_shed := trace.rows("shed"):
        skipped["shed", None] = num_shed
    left_out = [Skipped(why, parameter, count) for (why, parameter), count in sorted(skipped.items(), key=str)]
    if not found:
        reasons = "; ".join(f"{skip.count} {skip.what}" for skip in left_out)
        raise ReplayRefused(f"no recorded request can be scored ({reasons})")
    return Rollouts(
        rollouts=found,
        skipped=left_out,
        num_discarded=num_discarded,
        num_lost_rows=num_lost_rows(trace.all_losses()),
        num_before=sum(map(len, before.values())),
        logprobs_modes=modes,
        models=tuple(sorted({str(e["model"]) for e in engines if e.get("model")})),
        config=_config(engines),
        dtype=_dtype(engines),
        weight_changes=trace.table("weights").to_pylist(),
        head_dtype=_head_dtype(trace.table("workers").to_pylist()),
    )


def _key(row: Row) -> tuple[int, int]:
    return int(row["engine"]), int(row["request"])


def _logprobs_modes(engines: Seq[Row]) -> tuple[str, ...]:
    modes = tuple(sorted({str(e.get("logprobs_mode") or "") for e in engines} - {""}))
    logits = [m for m in modes if m.endswith("logits")]
    if logits:
        raise ReplayRefused(
            f"the engine recorded {logits[0]}, which are not log-probabilities: "
            "record with logprobs_mode raw_logprobs or processed_logprobs"
        )
    return modes


def _why_not(part: Columns, row: Row | None, num_promised: int, num_before: int) -> Why | None:
    if row is None:
        return "no request row"
    if not part["has_logprob"].any():
        return "not reported" if part["has_both"].any() else "not asked"
    if row["num_mm_features"]:
        return "not text"
    if row["lora"] is not None:
        return "adapter"
    position = part["position"]
    num_prompt = len(row["prompt_token_ids"])
    if num_prompt == 0:
        return "no prompt ids"
    start = num_prompt + num_before
    if int(position[0]) != start or np.any(np.diff(position) != 1) or num_before + len(position) < num_promised:
        return "missing tokens"
    return None if part["has_logprob"].all() else "missing logprobs"


def _sampling(row: Row, rounded_to: str | None) -> Mapping[str, Any]:
    """The request's sampling parameters as its engine used them."""
    sampling = json_object(row["sampling_params"], f"the sampling parameters of request {row['request_id']}")
    return round_sampling(sampling, rounded_to) if rounded_to else sampling


def _rollout(part: Columns, row: Row, earlier: list[int], params: Params, history: tuple[Computed, ...]) -> Rollout:
    # what was sampled before the recorder was attached is given, as the prompt is
    sequence = Sequence(
        engine=int(row["engine"]),
        request=int(row["request"]),
        prompt_token_ids=np.concatenate([row["prompt_token_ids"], np.asarray(earlier, dtype=np.uint32)]),
        token_ids=part["token_id"].astype(np.uint32),
        params=params,
    )
    return Rollout(
        sequence=sequence,
        request_id=str(row["request_id"]),
        rollout_logprob=part["rollout_logprob"],
        weight_version=part["weight_version"],
        engine_step=part["engine_step"],
        rank=np.zeros_like(part["rank"]) if params.reorders else part["rank"],
        history=history,
    )


def _dtype(engines: Seq[Row]) -> str | None:
    """The dtype that the engines received the weights in, where all that tell it agree."""
    found = {dtype for engine in engines if (dtype := model_dtype(engine))}
    return found.pop() if len(found) == 1 else None


def _head_dtype(workers: Seq[Row]) -> str | None:
    heads = [json_object(worker["config"], "the settings of a worker").get("head") for worker in workers]
    found = {head.get("computed_in") or head.get("dtype") for head in heads if isinstance(head, dict)} - {None}
    return found.pop() if len(found) == 1 else None


def _config(engines: Seq[Row]) -> Mapping[str, Any]:
    """The language model's part of the first configuration that names a vocabulary."""
    for engine in engines:
        config = json_object(engine.get("config"), "the settings of an engine").get("hf_config")
        if isinstance(config, dict) and isinstance((part := text_config(config)).get("vocab_size"), int):
            return part
    return {}


def _has_processors(engine: Row) -> bool:
    """Whether processed logprobs of an engine are those that logits processors of the job's own made."""
    vllm = json_object(engine.get("config"), "the settings of an engine").get("vllm")
    model = vllm.get("model_config") if isinstance(vllm, dict) else None
    own = isinstance(model, dict) and model.get("logits_processors")
    return bool(own) and str(engine.get("logprobs_mode")).startswith(PROCESSED)
