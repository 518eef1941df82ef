"""From a trace to the sequences to score: accepted tokens in position order, joined with their requests.

Refuses what cannot be judged; what was skipped because rows are missing is counted, never silent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tracekit import tables
from tracekit.errors import ReplayRefused
from tracekit.scoring.params import untestable
from tracekit.scoring.rounding import round_sampling, sampling_dtype
from tracekit.scoring.types import Sequence

if TYPE_CHECKING:
    import pyarrow as pa

    from tracekit.trace.reader import Trace

__all__ = ["Recorded", "Recording", "read_recording"]

NOT_ASKED = "requests that did not ask for logprobs"
NOT_REPORTED = "requests whose raw and processed logprobs were recorded, but none as the engine reports them"
UNTESTABLE = "requests whose processed logprobs cannot be recomputed: "
NO_PROMPT_IDS = UNTESTABLE + "their prompt was given as embeddings, which the trace does not hold"
NOT_TEXT = UNTESTABLE + "their prompt holds images or other input that replay does not load"
ADAPTER = UNTESTABLE + "a LoRA adapter sampled them, which replay does not load"
_HOW_TO_ASK = (
    'ask for them with SamplingParams(logprobs=0), or "logprobs": 0 in a server request, or record with '
    "--logprobs engine"
)


@dataclass(frozen=True)
class Recorded:
    """One recorded request: what to score, and what the engine said about each of its T accepted tokens."""

    sequence: Sequence
    request_id: str
    rollout_logprob: npt.NDArray[np.float64]  # [T] nats, NaN where the record has NaN or nothing
    weight_version: npt.NDArray[np.int64]  # [T]
    engine_step: npt.NDArray[np.int64]  # [T]

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.sequence.prompt_token_ids)


@dataclass(frozen=True)
class Recording:
    """All requests of a trace that can be scored, and the count of what cannot."""

    requests: list[Recorded]
    skipped: dict[str, int]  # reason -> requests left out
    num_discarded: int  # sampled tokens that never became output; not scored
    num_lost_rows: int  # rows that the trace itself knows are missing
    logprobs_modes: tuple[str, ...]  # one per kind of engine in the trace
    model: str
    vocab_size: int | None = None  # of the model that the engine ran, where the trace tells

    @property
    def data_lost(self) -> bool:
        """Whether the verdict rests on less than what the engines produced, because rows are missing."""
        whole = {
            reason for reason in self.skipped if reason in (NOT_ASKED, NOT_REPORTED) or reason.startswith(UNTESTABLE)
        }
        return bool(self.num_lost_rows or set(self.skipped) - whole)

    @property
    def versions(self) -> list[int]:
        """Weight versions that sampled at least one scored token, ascending."""
        if not self.requests:
            return []
        return [int(v) for v in np.unique(np.concatenate([r.weight_version for r in self.requests]))]


def read_recording(trace: Trace) -> Recording:
    """Read the sequences of a trace.

    Raises:
        ReplayRefused: no token was recorded, none has a logprob, the recorded numbers are logits, or no request is
            whole.
    """
    engines = trace.engines()
    modes = tuple(sorted({str(e.get("logprobs_mode") or "") for e in engines} - {""}))
    logits = [m for m in modes if m.endswith("logits")]
    if logits:
        raise ReplayRefused(
            f"the engine recorded {logits[0]}, which are not log-probabilities: "
            "record with logprobs_mode raw_logprobs or processed_logprobs"
        )
    tokens = _columns(trace.table("tokens"))
    accepted = (tokens["flags"] & tables.ACCEPTED) != 0
    num_discarded = int(np.count_nonzero(~accepted))
    tokens = {name: values[accepted] for name, values in tokens.items()}
    if not tokens["token_id"].size:
        raise ReplayRefused("the trace holds no accepted token, so there is nothing to replay")
    if not tokens["has_logprob"].any():
        if tokens["has_both"].any():
            raise ReplayRefused(f"the trace holds only {NOT_REPORTED}, so there is nothing to compare")
        raise ReplayRefused(f"the trace holds no logprobs because the job did not ask for them: {_HOW_TO_ASK}")
    finishes = trace.table("finishes").to_pylist()
    promised = {(int(f["engine"]), int(f["request"])): int(f["num_output_tokens"]) for f in finishes}
    rounding = {int(e["engine"]): sampling_dtype(e) for e in engines}
    requests, skipped = _join(tokens, trace.table("requests").to_pylist(), promised, rounding)
    if not requests:
        reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        raise ReplayRefused(f"no recorded request can be scored ({reasons})")
    return Recording(
        requests=requests,
        skipped=skipped,
        num_discarded=num_discarded,
        num_lost_rows=_lost_rows(trace.losses()),
        logprobs_modes=modes,
        model=str(engines[0].get("model") or "") if engines else "",
        vocab_size=_vocab_size(engines),
    )


def _columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Columns of the token table in order of (engine, request, position); a null logprob becomes NaN."""
    import pyarrow.compute as pc

    out = {
        name: table.column(name).to_numpy().astype(np.int64)
        for name in ("engine", "request", "position", "token_id", "engine_step", "weight_version", "flags")
    }
    logprob = table.column("rollout_logprob")
    out["has_logprob"] = np.asarray(pc.is_valid(logprob).to_numpy(), dtype=bool)
    others = [pc.is_valid(table.column(name)) for name in ("raw_logprob", "processed_logprob")]
    out["has_both"] = np.asarray(pc.or_(*others).to_numpy(), dtype=bool)
    out["rollout_logprob"] = np.asarray(logprob.to_numpy(), dtype=np.float64)
    order = np.lexsort((out["position"], out["request"], out["engine"]))
    return {name: values[order] for name, values in out.items()}


def _join(
    tokens: dict[str, npt.NDArray[Any]],
    rows: Seq[dict[str, Any]],
    promised: dict[tuple[int, int], int],
    rounding: Mapping[int, str | None],
) -> tuple[list[Recorded], dict[str, int]]:
    by_key = {(int(r["engine"]), int(r["request"])): r for r in rows}
    engine, request = tokens["engine"], tokens["request"]
    starts = np.flatnonzero(np.r_[True, (np.diff(engine) != 0) | (np.diff(request) != 0)])
    found: list[Recorded] = []
    skipped: dict[str, int] = {}
    for start, end in zip(starts, np.r_[starts[1:], engine.size], strict=True):
        part = {name: values[start:end] for name, values in tokens.items()}
        key = (int(part["engine"][0]), int(part["request"][0]))
        reason = _why_not(part, by_key.get(key), promised.get(key, 0))
        if reason:
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        recorded = _recorded(part, by_key[key], rounding.get(key[0]))
        reason = untestable(recorded.sequence.sampling)
        if reason:
            skipped[UNTESTABLE + reason] = skipped.get(UNTESTABLE + reason, 0) + 1
            continue
        found.append(recorded)
    return found, skipped


def _why_not(part: dict[str, npt.NDArray[Any]], row: dict[str, Any] | None, num_promised: int) -> str | None:
    if row is None:
        return "requests whose own row is missing from the trace"
    if not part["has_logprob"].any():
        return NOT_REPORTED if part["has_both"].any() else NOT_ASKED
    if row["num_mm_features"]:
        return NOT_TEXT
    if row["lora"] is not None:
        return ADAPTER
    position = part["position"]
    num_prompt = len(row["prompt_token_ids"])
    if num_prompt == 0:
        return NO_PROMPT_IDS
    if int(position[0]) != num_prompt or np.any(np.diff(position) != 1) or len(position) < num_promised:
        return "requests with missing token rows"
    if not part["has_logprob"].all():
        return "requests with missing logprobs"
    return None


def _recorded(part: dict[str, npt.NDArray[Any]], row: dict[str, Any], dtype: str | None) -> Recorded:
    try:
        sampling = json.loads(row["sampling_params"])
    except ValueError as error:
        raise ReplayRefused(f"the sampling parameters of request {row['request_id']} are not JSON: {error}") from error
    sequence = Sequence(
        engine=int(row["engine"]),
        request=int(row["request"]),
        prompt_token_ids=np.asarray(row["prompt_token_ids"], dtype=np.uint32),
        token_ids=part["token_id"].astype(np.uint32),
        sampling=round_sampling(sampling, dtype) if dtype else sampling,
    )
    return Recorded(
        sequence=sequence,
        request_id=str(row["request_id"]),
        rollout_logprob=part["rollout_logprob"],
        weight_version=part["weight_version"],
        engine_step=part["engine_step"],
    )


def _vocab_size(engines: Seq[dict[str, Any]]) -> int | None:
    for engine in engines:
        try:
            config = json.loads(engine.get("config") or "{}").get("hf_config", {})
        except ValueError:
            continue
        size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
        if isinstance(size, int):
            return size
    return None


def _lost_rows(losses: Seq[dict[str, Any]]) -> int:
    total = 0
    for loss in losses:
        rows = loss.get("rows") or {}
        rows = json.loads(rows) if isinstance(rows, str) else rows
        total += max(sum(int(v) for v in rows.values()), 1)  # a loss of unknown size is a loss
    return total
