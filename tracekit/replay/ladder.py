"""The ladder: the passes that score a run, each with one thing changed against the trainer's own.

To add a rung, add a row to `LADDER`; where it stands for another reading of the recorded values, add its row to
`tracekit.diagnose.readings`, too.

The ladder costs at most 2.5 times the trainer's pass: passes with the same model, shape and KV share its forward, and
each of the others has a share, in positions that run through the body, that adds up to less than 1.5. A run of a few
hundred tokens costs more, because noise that is measured on less is worth nothing, and so does one of few rollouts with
KV of several weights. What only a divergence asks for, `FURTHER`, comes on top, with a share each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace

from tracekit.diagnose.data import (
    ACCUSED,
    CUT_HEAD,
    INFERENCE_PATH,
    KV_BORROWED,
    KV_KEPT,
    KV_RECOMPUTED,
    MASTERS,
    NARROW_HEAD,
    NONE,
    OTHER_PRECISION,
    OTHER_SHAPE,
    PROFILE,
    ROUNDED_SAMPLING,
    TRAINER,
    WEIGHTS_AFTER,
    WEIGHTS_BEFORE,
)
from tracekit.diagnose.explain import head
from tracekit.diagnose.noise import SPACING
from tracekit.diagnose.verdict import EXPLAINED, Verdict
from tracekit.replay.borrowed import Prompts
from tracekit.replay.scorers import Model
from tracekit.replay.stages import AS_RECORDED, KEPT, RECOMPUTED, KvHow
from tracekit.scoring.params import Params
from tracekit.scoring.rounding import ROUNDED, round_sampling

NOISE_SHARE = 0.45
NOISE_TOKENS = 8192  # the noise floor is measured on this many tokens at most
NOISE_LEAST = 512  # and on this many at least, whatever they cost: fewer do not tell the tail of the noise
READING_TOKENS = 2048  # other readings of the sampling parameters are tested on this many
MASTERS_SHARE = 0.15
KV_SHARE = 0.15
WEIGHTS_SHARE = 0.15
KV_ROLLOUTS = 32  # another history of the KV, or other weights, is tested on as many rollouts at least


Forward = tuple[Model, int, bool, KvHow, tuple[tuple[int, int], ...], Prompts]


@dataclass(frozen=True)
class Pass:
    """One way to compute logprobs of the recorded tokens, each under the weights that sampled it.

    Attributes:
        name: what its scores are called in the run.
        model: dtype of the body, and of the weights before; the head is float32.
        max_batch_tokens: the batch shape: tokens that go through the body together.
        share: whether prefixes that rollouts have in common run once.
        kv: over which KV tokens are scored where weights changed within a rollout.
        sampling: how the recorded sampling parameters are read.
        num_tokens: how many tokens it scores at most, in whole rollouts spread evenly; None for all.
        cost: what it may run at most, as a share of the trainer's pass; None for all.
        at_least: rollouts that it scores whatever that costs.
        least_tokens: the same in tokens.
        profile: whether it asks for a profile of the raw logits.
        instead: pairs of weights and those that it takes instead, by their numbers.
        prompts: that some rollouts are scored behind, in place of their own.
        only: indices of the rollouts that it chooses from; None for all.
    """

    name: str
    model: Model
    max_batch_tokens: int
    share: bool = True
    kv: KvHow = AS_RECORDED
    sampling: Callable[[Params], Params] = lambda params: params
    num_tokens: int | None = None
    cost: float | None = None
    at_least: int = 1
    least_tokens: int = 0
    profile: bool = False
    instead: tuple[tuple[int, int], ...] = ()
    prompts: Prompts = ()
    only: tuple[int, ...] | None = None

    @property
    def forward(self) -> Forward:
        """What passes that share a forward of the body have in common."""
        return self.model, self.max_batch_tokens, self.share, self.kv, self.instead, self.prompts


@dataclass(frozen=True)
class Scene:
    """What a run has, which decides on the passes that can tell something.

    Attributes:
        used: the kinds of sampling parameters in use; see `parameters_in_use`.
        mixed: KV of some rollout is of more than one version's weights.
        rows: of the engine's head, where the trainer's has more; None where it has not.
        rounds: some sampling parameter is none that bfloat16 holds.
        masters: the folders hold weights that are wider than what the engine received.
        before: pairs of weights and the other ones that came before them, by their numbers.
        after: the same with those that came after.
        borrowed: rollouts whose KV begins with that of another prompt, and the prompt that it is of.
    """

    used: Set[str]
    mixed: bool = False
    rounds: bool = False
    rows: int | None = None
    masters: bool = False
    before: tuple[tuple[int, int], ...] = ()
    after: tuple[tuple[int, int], ...] = ()
    borrowed: Prompts = ()


@dataclass(frozen=True)
class Rung:
    """What one pass changes against the trainer's.

    Attributes:
        name: of the pass.
        change: gives the pass, from the trainer's.
        tells: whether it can differ from the others in a run.
    """

    name: str
    change: Callable[[Pass], Pass]
    tells: Callable[[Scene], bool] = lambda scene: True


@dataclass(frozen=True)
class Further:
    """A rung that is only run where the first look shows something that it may explain.

    Attributes:
        name: of the pass.
        change: gives the pass, from the trainer's, the scene and the first look.
        asks: whether it can explain what was seen.
    """

    name: str
    change: Callable[[Pass, Scene, Verdict], Pass]
    asks: Callable[[Scene, Verdict], bool]


def _reading(sampling: Callable[[Params], Params]) -> Callable[[Pass], Pass]:
    return lambda trainer: replace(trainer, sampling=sampling, num_tokens=READING_TOKENS)


def _beside_others(parameter: str) -> Callable[[Scene], bool]:
    """Whether the parameter is in use and not alone: without the only one there is, processed logprobs are raw."""
    return lambda scene: parameter in scene.used and len(scene.used) > 1


def _noise(trainer: Pass, **changes: object) -> Pass:
    return replace(trainer, num_tokens=NOISE_TOKENS, cost=NOISE_SHARE, least_tokens=NOISE_LEAST, **changes)  # type: ignore[arg-type]


def _kv(trainer: Pass, how: KvHow) -> Pass:
    return replace(trainer, kv=how, num_tokens=NOISE_TOKENS, cost=KV_SHARE, at_least=KV_ROLLOUTS)


def _other_precision(model: Model) -> Model:
    """The control of the side that computes more coarsely: that precision against a finer one, or float32 in halves."""
    coarser = max(model.dtype, model.weights or model.dtype, key=lambda dtype: SPACING[dtype])
    if coarser == "float32":
        return replace(model, in_halves=True)
    return replace(model, dtype="float32" if model.dtype == coarser else coarser)


_NO_PENALTIES = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "logit_bias": ()}


LADDER = (
    Rung(TRAINER, lambda trainer: trainer),
    Rung(PROFILE, lambda trainer: replace(trainer, num_tokens=READING_TOKENS, profile=True)),
    # each rollout alone, its prompt run again for it
    Rung(OTHER_SHAPE, lambda trainer: _noise(trainer, max_batch_tokens=1, share=False)),
    Rung(
        KV_RECOMPUTED,
        lambda trainer: _kv(trainer, RECOMPUTED),
        lambda scene: scene.mixed,
    ),
    Rung(
        KV_KEPT,
        lambda trainer: _kv(trainer, KEPT),
        lambda scene: scene.mixed,
    ),
    Rung(
        "sampling.no_temperature",
        _reading(lambda params: replace(params, temperature=1.0)),
        _beside_others("temperature"),
    ),
    Rung(
        "sampling.temperature_twice",
        _reading(lambda params: replace(params, temperature=params.temperature**2)),
        lambda scene: "temperature" in scene.used,
    ),
    Rung(
        "sampling.no_truncation",
        _reading(lambda params: replace(params, top_p=1.0, top_k=0, min_p=0.0)),
        _beside_others("truncation"),
    ),
    Rung(
        "sampling.no_penalties",
        _reading(lambda params: replace(params, **_NO_PENALTIES)),  # type: ignore[arg-type]
        _beside_others("penalties"),
    ),
    # last, because another precision is another model to load
    Rung(
        OTHER_PRECISION,
        lambda trainer: _noise(trainer, model=_other_precision(trainer.model)),
    ),
    Rung(
        MASTERS,
        lambda trainer: replace(trainer, model=Model("float32"), num_tokens=READING_TOKENS, cost=MASTERS_SHARE),
        lambda scene: scene.masters,
    ),
)


def rounded(params: Params) -> Params:
    """Return sampling parameters as a sampler sees them that keeps them in bfloat16."""
    return replace(params, **round_sampling({name: getattr(params, name) for name in ROUNDED}, "bfloat16"))


def _asks_why(verdict: Verdict) -> bool:
    """Whether something is off that no cause explains."""
    return verdict.layer != NONE and sum(cause.share for cause in verdict.causes if cause.share > 0) < EXPLAINED


def _few(trainer: Pass, **changes: object) -> Pass:
    return replace(trainer, num_tokens=READING_TOKENS, cost=WEIGHTS_SHARE, at_least=KV_ROLLOUTS, **changes)  # type: ignore[arg-type]


def _on_path(verdict: Verdict) -> bool:
    return verdict.layer == INFERENCE_PATH or verdict.left not in (None, "none")


def _other_weights(trainer: Pass, instead: tuple[tuple[int, int], ...], verdict: Verdict) -> Pass:
    """On rollouts that diverge, or on any where none stands out."""
    hit = tuple(i for i, rollout in enumerate(verdict.rollouts) if rollout.onset)
    few = replace(trainer, num_tokens=NOISE_TOKENS, cost=WEIGHTS_SHARE, at_least=KV_ROLLOUTS)
    return replace(few, instead=instead, only=hit or None)


def _accused(trainer: Pass, _scene: Scene, verdict: Verdict) -> Pass:
    hit = tuple(i for i, rollout in enumerate(verdict.rollouts) if rollout.onset)
    return replace(trainer, model=_other_precision(trainer.model), cost=NOISE_SHARE, only=hit)


def _borrowed(trainer: Pass, scene: Scene, _verdict: Verdict) -> Pass:
    few = replace(trainer, num_tokens=NOISE_TOKENS, cost=KV_SHARE, at_least=KV_ROLLOUTS)
    return replace(few, prompts=scene.borrowed, only=tuple(i for i, _ in scene.borrowed))


FURTHER = (
    Further(
        ACCUSED,
        _accused,
        lambda scene, verdict: _on_path(verdict) and verdict.num_with_onset > 0 and verdict.noise.excess <= 1,
    ),
    Further(
        KV_BORROWED,
        _borrowed,
        lambda scene, verdict: bool(scene.borrowed) and _on_path(verdict),
    ),
    Further(
        WEIGHTS_BEFORE,
        lambda trainer, scene, verdict: _other_weights(trainer, scene.before, verdict),
        lambda scene, verdict: bool(scene.before) and _on_path(verdict),
    ),
    Further(
        WEIGHTS_AFTER,
        lambda trainer, scene, verdict: _other_weights(trainer, scene.after, verdict),
        lambda scene, verdict: bool(scene.after) and _on_path(verdict),
    ),
    Further(
        NARROW_HEAD,
        lambda trainer, scene, verdict: _few(trainer, model=replace(trainer.model, head="bfloat16")),
        lambda scene, verdict: any(cause.code == head.CODE for cause in verdict.causes),
    ),
    Further(
        CUT_HEAD,
        lambda trainer, scene, verdict: _few(trainer, model=replace(trainer.model, rows=scene.rows)),
        lambda scene, verdict: scene.rows is not None and verdict.layer != NONE,
    ),
    Further(
        ROUNDED_SAMPLING,
        lambda trainer, scene, verdict: _few(trainer, sampling=rounded),
        lambda scene, verdict: scene.rounds and _asks_why(verdict),
    ),
)


def parameters_in_use(all_params: Iterable[Params]) -> set[str]:
    """Return the kinds of sampling parameters that move logprobs: temperature, truncation, penalties."""
    used = set()
    for params in all_params:
        used |= {"temperature"} if params.temperature != 1.0 else set()
        used |= {"truncation"} if params.truncates else set()
        used |= {"penalties"} if params.penalizes or params.logit_bias else set()
    return used


def plan_passes(model: Model, max_batch_tokens: int, scene: Scene) -> list[Pass]:
    """Return the passes that tell something about a run, the trainer's first.

    Args:
        model: the trainer's.
        max_batch_tokens: of the trainer's pass.
        scene: what the run has.
    """
    trainer = Pass(TRAINER, model, max_batch_tokens)
    return [replace(rung.change(trainer), name=rung.name) for rung in LADDER if rung.tells(scene)]


def plan_further(trainer: Pass, scene: Scene, verdict: Verdict) -> list[Pass]:
    """Return the passes that may explain what a first look showed; none where it showed nothing.

    Args:
        trainer: the trainer's pass.
        scene: what the run has.
        verdict: the first look.
    """
    return [
        replace(rung.change(trainer, scene, verdict), name=rung.name) for rung in FURTHER if rung.asks(scene, verdict)
    ]
