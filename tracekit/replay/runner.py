"""Replay a trace: plan the passes, score what was recorded, ask for the verdict."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tracekit import __version__
from tracekit.diagnose.data import OTHER_PRECISION
from tracekit.diagnose.result import Result, Scoring, Weights
from tracekit.diagnose.verdict import judge
from tracekit.errors import UsageError
from tracekit.replay.annotated import annotated_view
from tracekit.replay.borrowed import borrowed_prompts, starts_of
from tracekit.replay.budget import position_secs, within
from tracekit.replay.checkpoints import refuse_changed, weights_digest
from tracekit.replay.keeping import Kept
from tracekit.replay.ladder import Pass, Scene, parameters_in_use, plan_further, plan_passes, rounded
from tracekit.replay.leaks import leak_scores
from tracekit.replay.located import Located, locate
from tracekit.replay.naming import Folders
from tracekit.replay.numbers import OWN, engine_of, version_of
from tracekit.replay.output import Replay, token_table
from tracekit.replay.planning import num_shared, plan_further_units, plan_units
from tracekit.replay.probes import check_probes, probe_modules
from tracekit.replay.profiles import profile_of, settings_of
from tracekit.replay.progress import Progress, talk
from tracekit.replay.reading import read_rollouts
from tracekit.replay.rerun import environment, run_again
from tracekit.replay.running import Mapper, join, locally, run_units, totals
from tracekit.replay.scorers import (
    Load,
    Model,
    OneAtATime,
    ScorerLike,
    identity_test,
    num_threads,
    peak_bytes,
    torch_loader,
)
from tracekit.replay.stages import forget_kv, leave_out_unknown, num_unknown
from tracekit.replay.strata import strata_of
from tracekit.replay.third import add_trainer, decoder, ended_by_client
from tracekit.replay.timeline import timeline_of
from tracekit.replay.units import Unit, UnitScores
from tracekit.replay.versions import neighbours
from tracekit.replay.vocabulary import fitting
from tracekit.replay.workers import check_workers, on_ray, threads_each
from tracekit.scores import PROCESSED, RAW
from tracekit.trace.reader import open_trace
from tracekit.trainer.load import read_dump

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

PACKED = "packed"  # only so can a model be scored over KV of other weights
BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_GPU = 16384


def replay(
    trace: Trace | str | os.PathLike[str],
    model: str | Path | None = None,
    *,
    expect: str = PROCESSED,
    only: int | None = None,
    weights: Folders | None = None,
    dtype: str = "bfloat16",
    device: str | None = None,
    max_batch_tokens: int | None = None,
    budget_secs: float | None = None,
    keep: str | Path | None = None,
    workers: str | int | None = None,
    engine: str | None = None,
    python: str | os.PathLike[str] | None = None,
    probes: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
    trainer: str | Path | None = None,
    trainer_map: Mapping[str, str] | None = None,
    trainer_config: str | Path | None = None,
    clip: tuple[float, float] | None = None,
    load: Load | None = None,
) -> Replay:
    """Score a trace with the trainer's weights and say where it diverges.

    Args:
        trace: an open trace, or the path or `s3://` URL of one.
        model: folder or `s3://` URL of the weights of version 0; without it the folder that the trace names, where it
            is here.
        expect: what the trainer takes recorded logprobs for, "processed" or "raw".
        only: number of the engine whose rollouts are scored; without it those of all.
        weights: folders of further weight versions, by version, or by engine and version where an engine's versions
            are not those of the others; version 0 overrides `model`. A version that is left out is taken from the
            checkpoint that a label in the trace names, where it is on this machine.
        dtype: the trainer's body precision (bfloat16, float16, float32); the head is always float32.
        device: a torch device; the default is CUDA where there is one, else the CPU.
        max_batch_tokens: tokens that go through the body together; the default depends on the device.
        budget_secs: about how long scoring may take: as many rollouts as that allows are scored, spread evenly.
        keep: a folder for what was scored, from which an interrupted replay goes on; it is gone at the end.
        workers: score on so many Ray actors on this machine, or on those that `ray://HOST:PORT` has room for.
        engine: force the recorded tokens through this engine, too (v0, v1 or latest): the sharp lens.
        python: the same, in the environment of this interpreter.
        probes: folder of states that `record --probe` kept: each module is replayed on them.
        show_progress: a line on stderr with the time that is left.
        trainer: the trainer's dump, a file or a folder: its ids and values are the third party.
        trainer_map: tracekit's names to the dump's, for a dump of no known format; see `tracekit.trainer.load`.
        trainer_config: the trainer's model folder, compared with what the engine ran.
        clip: low and high part of the objective's clip range around 1, (0.2, 0.28) for 0.8 to 1.28.
        load: makes a scorer from a folder and what its weights are loaded as; the default does with transformers.

    Returns:
        The result (verdict, codes, numbers) and the table of all scored tokens.

    Raises:
        ReplayRefused: a verdict would be a guess; see `read_rollouts`, `choose_weights`, `identity_test`, `run_again`,
            `refuse_changed`.
        UsageError: `expect` or `dtype` is unknown, weights are given for a version that the trace does not have, or no
            model is given and the trace names none that is here.
        ModelError: a folder cannot be loaded or has another vocabulary.
        TraceError: the trace cannot be read.
        WorkersError: workers cannot be had, or one unit ended each that scored it.
        TrainerDumpError: the trainer's dump cannot be read, or is of no known format.
        StoreError, CacheError: what lies behind a URL cannot be had.

    Example:
        found = tracekit.replay("trace.arrow", model="./checkpoint-0", weights={1: "./checkpoint-1"})
        found.result.verdict.layer  # "none", "semantic" or "inference path"
        found.tokens.column("d")  # replay − rollout of every token, in nats
    """
    started = time.monotonic()
    if expect not in (RAW, PROCESSED):
        raise UsageError(f"expect must be raw or processed, not {expect}")
    if engine and python:
        raise UsageError("give --engine or --python, not both")
    if workers is not None:
        check_workers(str(workers))
    if probes is not None:
        check_probes(probes)
    env = environment(engine, python) if engine or python else None  # before hours of scoring
    dump = None if trainer is None else read_dump(trainer, trainer_map)
    trace = open_trace(trace) if isinstance(trace, str | os.PathLike) else trace
    trace = trace if only is None else trace.only(only)
    rollouts = read_rollouts(trace)
    received = Model(dtype, rollouts.dtype or dtype)
    given: Folders = {**({0: model} if model is not None else {}), **(weights or {})}
    here = locate(trace, rollouts, given, trainer_config, show_progress=show_progress)
    folders, group = here.folders, here.group
    loaded_from = {folder: weights_digest(folder) for folder in folders.values()}
    rollouts = leave_out_unknown(here.rollouts, group)
    here = replace(here, rollouts=rollouts)
    load = load or torch_loader(device)
    scorers = OneAtATime(load)
    begin = time.monotonic()
    scorer = scorers(here.first, received)
    loading_secs = time.monotonic() - begin  # and once more, for the other precision
    shape = max_batch_tokens or BATCH_TOKENS.get(scorer.device.split(":")[0], BATCH_TOKENS_GPU)
    rollouts = fitting(rollouts, scorer, here.first)
    if scorer.packing != PACKED:
        rollouts = forget_kv(rollouts)
    identity_test(scorer, rollouts.rollouts, shape)
    if budget_secs is not None:
        secs = position_secs(scorer, rollouts.rollouts, shape)
        rollouts = within(rollouts, budget_secs, secs, started - loading_secs)
    facts = replace(here.facts, skipped=rollouts.skipped, vocab_size=rollouts.vocab_size)
    scene = _scene(replace(here, rollouts=rollouts), scorer)
    plan = plan_passes(received, shape, scene)
    units = plan_units(rollouts.rollouts, plan, group)
    about = scorer.name, scorer.device, scorer.packing, scorer.arithmetic
    vocab_size = scorer.vocab_size
    del scorer  # what the plan loads next must not lie in memory beside it
    reran = None
    if env is not None:
        scorers.release()
        reran = run_again(trace, rollouts, env, folders, group, show_progress=show_progress)
    modules = None
    if probes is not None:
        scorers.release()
        modules = probe_modules(
            probes, rollouts.rollouts, folders, group, here.known, dtype=rollouts.dtype, device=device
        )
    threads = num_threads()
    mapper = partial(locally, scorers, folders)
    of_workers: list[int] = []
    if workers is not None:
        scorers.release()
        where = {weights.version: weights.folder for weights in here.weights}
        threads = threads_each(str(workers), threads)
        mapper = partial(
            on_ray,
            str(workers),
            load,
            where,
            threads=threads,
            gpus=about[1].startswith("cuda"),
            on_peak=of_workers.append,
        )
    kept = Kept(Path(keep) if keep else None, folders, repr((*about[1:], threads)))

    found = _score(units, mapper, kept, show_progress)
    noise_dtype = next(how.model.dtype for how in plan if how.name == OTHER_PRECISION)
    run = rollouts.run(join(rollouts.rollouts, found), noise_dtype, num_unknown(rollouts, group))
    run = replace(
        run,
        weight_version=run.weight_version % OWN,
        settings=settings_of(rollouts.rollouts),
        profile=profile_of(rollouts.rollouts, found),
        strata=strata_of(trace, rollouts.rollouts),
        dtype=dtype,
        vocab_size=vocab_size,
        engine_dtype=rollouts.dtype,
        head_dtype=rollouts.head_dtype,
        reran=reran,
        modules=modules,
    )
    if dump is not None:
        leaking = partial(
            leak_scores, load=scorers, folders=folders, group=group, model=received, max_batch_tokens=shape
        )
        run = add_trainer(run, rollouts, dump, trace, here.first, expect, leaking)
    elif trace.rows("annotations"):
        view = annotated_view(rollouts.rollouts, trace, decoder(here.first), ended_by_client(trace))
        run = replace(run, view=view)
    judged = judge(run, expect=expect, facts=facts, clip=clip)
    if any(noted.id == "hit-unexplained" for noted in facts.noted) and run.strata is not None:
        cached = run.strata.num_cached[starts_of(rollouts.rollouts)]
        scene = replace(scene, borrowed=borrowed_prompts(trace, rollouts.rollouts, cached))
    further = plan_further(plan[0], scene, judged.verdict)
    if further:
        more = plan_further_units(rollouts.rollouts, plan[0], further, group)
        scores = join(rollouts.rollouts, _score(more, mapper, kept, show_progress))
        run = replace(run, scores={**run.scores, **scores})
        judged = judge(run, expect=expect, facts=facts, clip=clip)
        units += more
    refuse_changed(loaded_from)
    kept.drop(units)
    scoring = _scoring(about, plan, units, here.weights, time.monotonic() - started)
    scoring = replace(scoring, worker_peak_bytes=max(of_workers, default=None))
    tokens = token_table(run, judged.tokens, judged.verdict.parts)
    return Replay(Result.of(__version__, scoring, rollouts.data(), judged.verdict), tokens, timeline_of(trace))


def _scene(here: Located, scorer: ScorerLike) -> Scene:
    folders = {weights.version: weights.folder for weights in here.weights}
    rollouts, engines = here.rollouts.rollouts, here.rollouts.vocab_size
    return Scene(
        used=parameters_in_use(r.sequence.params for r in rollouts),
        rounds=any(rounded(r.sequence.params) != r.sequence.params for r in rollouts),
        rows=engines if engines and scorer.vocab_size > engines else None,
        mixed=scorer.packing == PACKED and any(len({folders[v] for v in r.versions}) > 1 for r in rollouts),
        masters=any(weights.is_cast for weights in here.weights),
        before=neighbours(here.oldest, -1),
        after=neighbours(here.oldest, +1),
    )


def _score(units: Seq[Unit], mapper: Callable[..., Mapper], kept: Kept, show_progress: bool) -> list[UnitScores]:
    """Score all units; returns the scores of each."""
    with Progress("replay", totals(units), quiet=not show_progress) as progress:
        try:
            found = run_units(units, mapper(on_loaded=progress.begin), kept, progress)
        except (KeyboardInterrupt, SystemExit):
            if kept.any and show_progress:
                talk("\ntracekit: what was scored is kept: the same command goes on from there")
            raise
    return found


def _scoring(
    about: tuple[str, str, str, str], plan: Seq[Pass], units: Seq[Unit], taken: list[Weights], secs: float
) -> Scoring:
    name, device, packing, arithmetic = about
    run, unshared = num_shared(unit for unit in units if unit.asks(plan[0].name))
    return Scoring(
        model=name,
        dtype=plan[0].model.dtype,
        noise_dtype=next(how.model.arithmetic for how in plan if how.name == OTHER_PRECISION),
        device=device,
        packing=packing,
        arithmetic=arithmetic,
        token_multiplier=unshared / run,
        num_positions=sum(unit.cost for unit in units),
        secs=secs,
        peak_bytes=peak_bytes(device),
        weights=[_labelled(weights) for weights in taken],
    )


def _labelled(weights: Weights) -> Weights:
    """With the engine and the version that its number stands for."""
    same_as = None if weights.same_as is None else version_of(weights.same_as)
    return replace(weights, version=version_of(weights.version), engine=engine_of(weights.version), same_as=same_as)
