"""The ladder: the passes that score a run, each with one thing changed against the trainer's own.

To add a rung, add a row to `LADDER`; where it stands for another reading of the recorded values, add its row to
`tracekit.diagnose.causes`, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace

from tracekit.diagnose.data import OTHER_PRECISION, OTHER_SHAPE, TRAINER
from tracekit.scoring.params import Params

NOISE_TOKENS = 16384  # the noise floor is measured on this many tokens at most
READING_TOKENS = 2048  # other readings of the sampling parameters are tested on this many


@dataclass(frozen=True)
class Pass:
    """One way to compute logprobs of the recorded tokens, each under the weights that sampled it.

    Attributes:
        name: what its scores are called in the run.
        dtype: of the body; the head is float32.
        max_batch_tokens: the batch shape: tokens that go through the body together.
        sampling: how the recorded sampling parameters are read.
        num_tokens: how many tokens it scores at most, in whole rollouts spread evenly; None for all.
    """

    name: str
    dtype: str
    max_batch_tokens: int
    sampling: Callable[[Params], Params] = lambda params: params
    num_tokens: int | None = None


@dataclass(frozen=True)
class Rung:
    """What one pass changes against the trainer's.

    Attributes:
        name: of the pass.
        change: gives the pass, from the trainer's.
        tells: whether it can differ from the others in a run that uses these `parameters_in_use`.
    """

    name: str
    change: Callable[[Pass], Pass]
    tells: Callable[[Set[str]], bool] = lambda used: True


def _reading(sampling: Callable[[Params], Params]) -> Callable[[Pass], Pass]:
    return lambda trainer: replace(trainer, sampling=sampling, num_tokens=READING_TOKENS)


def _beside_others(parameter: str) -> Callable[[Set[str]], bool]:
    """Whether the parameter is in use and not alone: without the only one there is, processed logprobs are raw."""
    return lambda used: parameter in used and len(used) > 1


def _other_dtype(dtype: str) -> str:
    return "bfloat16" if dtype == "float32" else "float32"


_NO_PENALTIES = {"repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "logit_bias": ()}

LADDER = (
    Rung(TRAINER, lambda trainer: trainer),
    Rung(OTHER_SHAPE, lambda trainer: replace(trainer, max_batch_tokens=1, num_tokens=NOISE_TOKENS)),
    Rung(
        "sampling.no_temperature",
        _reading(lambda params: replace(params, temperature=1.0)),
        _beside_others("temperature"),
    ),
    Rung(
        "sampling.temperature_twice",
        _reading(lambda params: replace(params, temperature=params.temperature**2)),
        lambda used: "temperature" in used,
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
        lambda trainer: replace(trainer, dtype=_other_dtype(trainer.dtype), num_tokens=NOISE_TOKENS),
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


def plan_passes(dtype: str, max_batch_tokens: int, all_params: Iterable[Params]) -> list[Pass]:
    """Return the passes that tell something about a run, the trainer's first.

    Args:
        dtype: of the trainer's body.
        max_batch_tokens: of the trainer's pass.
        all_params: sampling parameters of the rollouts.
    """
    used = parameters_in_use(all_params)
    trainer = Pass(TRAINER, dtype, max_batch_tokens)
    return [replace(rung.change(trainer), name=rung.name) for rung in LADDER if rung.tells(used)]
