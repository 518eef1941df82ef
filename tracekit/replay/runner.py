"""Replay a trace: score what was recorded, measure this run's noise, and ask for the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracekit.diagnose.data import PROCESSED, RAW, RolloutInfo, Run, Scores
from tracekit.diagnose.verdict import Verdict, judge
from tracekit.errors import EXIT_DATA_LOST, EXIT_DIVERGED, EXIT_OK, ModelError, UsageError
from tracekit.replay.claims import Claim, find_claims
from tracekit.replay.folders import choose_folders, needed_claims
from tracekit.replay.passes import Pass, ScorerLike, identity_test, pick_sample, run_pass, variants
from tracekit.replay.progress import Progress
from tracekit.replay.rollouts import Recorded, Recording, read_recording
from tracekit.replay.versions import same_weights
from tracekit.scoring.params import parse_params

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

__all__ = ["ReplayResult", "replay"]

Load = Callable[[Path, str], ScorerLike]

NOISE_TOKENS = 16384  # the noise floor is measured on this many tokens at most
VARIANT_TOKENS = 2048  # other readings of the sampling parameters are tested on this many
BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_GPU = 16384


@dataclass(frozen=True)
class ReplayResult:
    """The verdict of a replay and all it was made from."""

    verdict: Verdict
    run: Run
    recording: Recording
    model: str
    dtype: str
    noise_dtype: str
    device: str
    weights: dict[int, str]  # weight version -> folder
    claims: dict[int, Claim]  # of these, the folders that only a label in the trace names
    shared: dict[int, int]  # of these, not given but known to be those of an older version

    @property
    def exit_code(self) -> int:
        """4 divergence found, else 3 data was lost in the trace, else 0."""
        if self.verdict.layer != "none":
            return EXIT_DIVERGED
        return EXIT_DATA_LOST if self.recording.data_lost else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the tokens as plain values for JSON."""
        return {
            "model": self.model,
            "dtype": self.dtype,
            "noise_dtype": self.noise_dtype,
            "device": self.device,
            "weights": {str(version): folder for version, folder in self.weights.items()},
            "claims": {str(version): asdict(claim) for version, claim in self.claims.items()},
            "shared_weights": {str(version): older for version, older in self.shared.items()},
            "data": {
                "num_rollouts": len(self.run.rollouts),
                "num_tokens": int(self.run.token_id.size),
                "num_discarded": self.recording.num_discarded,
                "num_lost_rows": self.recording.num_lost_rows,
                "skipped_requests": self.recording.skipped,
                "lost": self.recording.data_lost,
            },
            "verdict": self.verdict.to_dict(),
            "exit_code": self.exit_code,
        }


def replay(
    trace: Trace,
    model: str | Path,
    *,
    expect: str = PROCESSED,
    weights: Mapping[int, str | Path] | None = None,
    dtype: str = "bfloat16",
    device: str | None = None,
    max_batch_tokens: int | None = None,
    show_progress: bool = False,
    load: Load | None = None,
) -> ReplayResult:
    """Score a trace with the trainer's weights and say where it diverges.

    Args:
        trace: an open trace.
        model: folder of the weights of version 0.
        expect: what the trainer takes recorded logprobs for, "processed" or "raw".
        weights: folders of further weight versions; version 0 overrides ``model``. A version that is left out is
            taken from the checkpoint that a label in the trace names, where it is on this machine.
        dtype: the trainer's body precision; the head is always float32.
        device: a torch device; the default is CUDA where there is one, else the CPU.
        max_batch_tokens: tokens that go through the body together.
        show_progress: a line with tokens per second on stderr.
        load: makes a scorer from a folder and a dtype; the default is ``Scorer.load``.

    Raises:
        ReplayRefused: a verdict would be a guess; see ``rollouts.read_recording`` and ``passes.identity_test``.
        UsageError: ``expect`` or ``dtype`` is unknown, or weights are given for a version the trace does not have.
        ModelError: a folder cannot be loaded or has another vocabulary.
    """
    if expect not in (RAW, PROCESSED):
        raise UsageError(f"expect must be raw or processed, not {expect}")
    recording = read_recording(trace)
    ran = {(r.sequence.engine, int(v)) for r in recording.requests for v in r.weight_version}
    oldest = same_weights(trace.table("weights").to_pylist(), ran)
    claims = needed_claims(find_claims(trace, ran), weights or {}, oldest)
    folders = choose_folders(recording.versions, oldest, Path(model), weights or {}, claims)
    scorers = _Loaded(load or _scorer_loader(device))
    requests = recording.requests

    first = scorers(next(iter(folders.values())), dtype)
    shape = max_batch_tokens or BATCH_TOKENS.get(first.device.split(":")[0], BATCH_TOKENS_GPU)
    name, used_device = first.name, first.device
    if recording.vocab_size not in (None, first.vocab_size):
        raise ModelError(
            f"the engine ran a model with a vocabulary of {recording.vocab_size} and this one has {first.vocab_size}: "
            f"another model ({model})"
        )
    identity_test(first, requests, shape)

    everything = np.arange(len(requests))
    noise = pick_sample(requests, NOISE_TOKENS)
    few = pick_sample(requests, VARIANT_TOKENS)
    other_dtype = "bfloat16" if dtype == "float32" else "float32"
    readings = variants(requests)
    plan = [(Pass(dtype, shape), everything), (Pass(dtype, 1), noise)]
    plan += [(Pass(dtype, shape, sampling), few) for sampling in readings.values()]
    plan += [(Pass(other_dtype, shape), noise)]
    total = sum(_num_tokens(requests, chosen, folders) for _, chosen in plan)
    with Progress("replay", total) if show_progress else _Silent() as progress:
        done = [run_pass(scorers, folders, requests, chosen, how, progress.advance) for how, chosen in plan]
    run = _run(recording, done[0], done[1], done[-1], dict(zip(readings, done[2:-1], strict=True)))
    return ReplayResult(
        verdict=judge(run, expect=expect),
        run=run,
        recording=recording,
        model=name,
        dtype=dtype,
        noise_dtype=other_dtype,
        device=used_device,
        weights={version: str(folder) for version, folder in folders.items()},
        claims=claims,
        shared={v: oldest[v] for v in folders if v in oldest and v not in (weights or {}) and v not in claims},
    )


class _Loaded:
    """Keeps one scorer at a time: two bodies need not fit in memory together."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._key: tuple[Path, str] | None = None
        self._scorer: ScorerLike | None = None

    def __call__(self, folder: Path, dtype: str) -> ScorerLike:
        if self._scorer is None or self._key != (folder, dtype):
            self._scorer = None
            self._scorer, self._key = self._load(folder, dtype), (folder, dtype)
        return self._scorer


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, num_tokens: int) -> None:
        pass


def _scorer_loader(device: str | None) -> Load:
    try:
        from tracekit.scoring.scorer import Scorer
    except ImportError as error:
        raise ModelError(f"replay needs torch and transformers ({error}): pip install 'tracekit-rl[replay]'") from error
    return lambda folder, dtype: Scorer.load(folder, dtype=dtype, device=device)


def _num_tokens(requests: Seq[Recorded], chosen: Any, folders: Mapping[int, Path]) -> int:
    """Tokens a pass scores: a request counts once for each folder that its tokens need."""
    return sum(
        len(requests[i].sequence.token_ids) * len({folders[int(v)] for v in np.unique(requests[i].weight_version)})
        for i in chosen
    )


def _run(recording: Recording, scores: Scores, shape: Scores, precision: Scores, other: dict[str, Scores]) -> Run:
    requests = recording.requests
    lengths = [len(r.sequence.token_ids) for r in requests]
    return Run(
        rollouts=[
            RolloutInfo(r.sequence.engine, r.sequence.request, r.request_id, r.num_prompt_tokens) for r in requests
        ],
        rollout=np.repeat(np.arange(len(requests)), lengths),
        position=np.concatenate([r.num_prompt_tokens + np.arange(n) for r, n in zip(requests, lengths, strict=True)]),
        token_id=np.concatenate([r.sequence.token_ids.astype(np.int64) for r in requests]),
        rollout_logprob=np.concatenate([r.rollout_logprob for r in requests]),
        weight_version=np.concatenate([r.weight_version for r in requests]),
        engine_step=np.concatenate([r.engine_step for r in requests]),
        temperature=np.repeat([parse_params(r.sequence.sampling).temperature for r in requests], lengths),
        kept_mass=np.repeat([parse_params(r.sequence.sampling).top_p for r in requests], lengths),
        scores=scores,
        other_shape=shape,
        other_precision=precision,
        alternatives=other,
        logprobs_modes=recording.logprobs_modes,
    )
