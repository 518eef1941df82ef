"""Replay a trace: plan the passes, score what was recorded, ask for the verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING

from tracekit import __version__
from tracekit.diagnose.data import NONE, OTHER_PRECISION
from tracekit.diagnose.result import SCHEMA_VERSION, Data, Result, Scoring, Weights
from tracekit.diagnose.verdict import Verdict, judge
from tracekit.errors import EXIT_DATA_LOST, EXIT_DIVERGED, EXIT_OK, ModelError, UsageError
from tracekit.objects.fetch import local_folder, quiet
from tracekit.replay.claims import find_claims
from tracekit.replay.folders import choose_weights, needed_claims
from tracekit.replay.ladder import Pass, plan_passes
from tracekit.replay.output import Replay, token_table
from tracekit.replay.passes import num_tokens, score_pass
from tracekit.replay.progress import Progress, talk
from tracekit.replay.reading import read_rollouts
from tracekit.replay.rollouts import Rollouts
from tracekit.replay.scorers import Load, OneAtATime, ScorerLike, identity_test, torch_loader
from tracekit.replay.versions import same_weights
from tracekit.scores import PROCESSED, RAW, Scores, Values
from tracekit.trace.reader import open_trace

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_GPU = 16384


def replay(
    trace: Trace | str | os.PathLike[str],
    model: str | Path | None = None,
    *,
    expect: str = PROCESSED,
    weights: Mapping[int, str | Path] | None = None,
    dtype: str = "bfloat16",
    device: str | None = None,
    max_batch_tokens: int | None = None,
    show_progress: bool = False,
    load: Load | None = None,
) -> Replay:
    """Score a trace with the trainer's weights and say where it diverges.

    Args:
        trace: an open trace, or the path or `s3://` URL of one.
        model: folder or `s3://` URL of the weights of version 0; without it the folder that the trace names, where it
            is here.
        expect: what the trainer takes recorded logprobs for, "processed" or "raw".
        weights: folders of further weight versions; version 0 overrides `model`. A version that is left out is
            taken from the checkpoint that a label in the trace names, where it is on this machine.
        dtype: the trainer's body precision (bfloat16, float16, float32); the head is always float32.
        device: a torch device; the default is CUDA where there is one, else the CPU.
        max_batch_tokens: tokens that go through the body together; the default depends on the device.
        show_progress: a line with tokens per second on stderr.
        load: makes a scorer from a folder and a dtype; the default loads one with transformers.

    Returns:
        The result (verdict, codes, numbers) and the table of all scored tokens.

    Raises:
        ReplayRefused: a verdict would be a guess; see `read_rollouts`, `choose_weights` and `identity_test`.
        UsageError: `expect` or `dtype` is unknown, weights are given for a version that the trace does not have, or no
            model is given and the trace names none that is here.
        ModelError: a folder cannot be loaded or has another vocabulary.
        TraceError: the trace cannot be read.
        StoreError, CacheError: what lies behind a URL cannot be had.

    Example:
        found = tracekit.replay("trace.arrow", model="./checkpoint-0", weights={1: "./checkpoint-1"})
        found.result.verdict.layer  # "none", "semantic" or "inference path"
        found.tokens.column("d")  # replay − rollout of every token, in nats
    """
    if expect not in (RAW, PROCESSED):
        raise UsageError(f"expect must be raw or processed, not {expect}")
    rollouts = read_rollouts(open_trace(trace) if isinstance(trace, str | os.PathLike) else trace)
    taken = _weights_of(rollouts, {**({0: model} if model is not None else {}), **(weights or {})})
    folders = {weights.version: local_folder(weights.folder, talk if show_progress else quiet) for weights in taken}
    scorers = OneAtATime(load or torch_loader(device))
    first = scorers(folders[rollouts.versions[0]], dtype)
    shape = max_batch_tokens or BATCH_TOKENS.get(first.device.split(":")[0], BATCH_TOKENS_GPU)
    _check_scorer(first, rollouts, shape)
    plan = plan_passes(dtype, shape, [r.sequence.params for r in rollouts.rollouts])
    noise_dtype = next(how.dtype for how in plan if how.name == OTHER_PRECISION)
    scoring = Scoring(first.name, dtype, noise_dtype, first.device, taken)
    del first  # what the plan loads next must not lie in memory beside it
    run = rollouts.run(_score(plan, scorers, folders, rollouts, show_progress))
    judged = judge(run, expect=expect)
    return Replay(_result(scoring, rollouts.data(), judged.verdict), token_table(run, judged.tokens))


def _weights_of(rollouts: Rollouts, given: Mapping[int, str | Path]) -> list[Weights]:
    """Where to take the weights of every version from: given, of the same fingerprints, claimed, named by the trace."""
    oldest = same_weights(rollouts.weight_changes, rollouts.ran)
    claims = needed_claims(find_claims(rollouts.weight_changes, rollouts.ran), set(given) - {0}, oldest)
    return choose_weights(rollouts.versions, oldest, given, claims, rollouts.models)


def _check_scorer(scorer: ScorerLike, rollouts: Rollouts, max_batch_tokens: int) -> None:
    if rollouts.vocab_size not in (None, scorer.vocab_size):
        raise ModelError(
            f"the engine ran a model with a vocabulary of {rollouts.vocab_size} and this one has {scorer.vocab_size}: "
            f"another model ({scorer.name})"
        )
    identity_test(scorer, rollouts.rollouts, max_batch_tokens)


def _score(
    plan: Seq[Pass], scorers: Load, folders: Mapping[int, Path], rollouts: Rollouts, show_progress: bool
) -> dict[str, Scores[Values]]:
    """Run every pass; returns its scores by its name."""
    total = sum(num_tokens(rollouts.rollouts, folders, how) for how in plan)
    with Progress("replay", total, quiet=not show_progress) as progress:
        advance: Callable[[int], None] = progress.advance
        return {how.name: score_pass(scorers, folders, rollouts.rollouts, how, advance) for how in plan}


def _result(scoring: Scoring, data: Data, verdict: Verdict) -> Result:
    code = EXIT_DIVERGED if verdict.layer != NONE else EXIT_DATA_LOST if data.lost else EXIT_OK
    return Result(SCHEMA_VERSION, __version__, code, scoring, data, verdict)
