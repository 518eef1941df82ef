"""The third party on the screen: whose values are off, and what the objective makes of them."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.diagnose.objective import Level, Objective
from tracekit.diagnose.party import Gap, Party
from tracekit.plural import plural

_FAULTS = {
    "none": "engine, trainer and scorer agree",
    "engine": "the trainer agrees with the scorer: the engine's values are off",
    "trainer": "the engine agrees with the scorer: the trainer's side is off",
    "both": "neither side agrees with the scorer: the engine's values and the trainer's are off, each in its own way",
    "neither agrees with the scorer": "engine and trainer agree with each other, and not with the scorer",
    "not known": "the dump has no old_logprob of the trainer's own, so its values are not judged",
}
_FRAMEWORKS = ("TRL", "verl", "prime-rl", "slime")
_SHOWN = ("TRL sampling/sampling_logp_difference/mean", "verl rollout_corr/k3_kl", "NeMo-RL token_mult_prob_error")


def to_lines(party: Party) -> Iterator[str]:
    """Yield the lines."""
    yield f"trainer ({party.format}): {_FAULTS[party.fault]}"
    yield f"  {_joined(party)}"
    if party.copied:
        yield "  ! The trainer's old_logprobs are the engine's to the bit: copied, or computed by the same kernels."
    yield f"{'nats':<28}{'tokens':>9}{'mean':>12}{'mean |d|':>12}{'max |d|':>12}{'bit-equal':>12}"
    for name, gap in (("engine − scorer", party.engine_scorer), ("trainer − scorer", party.trainer_scorer),
                      ("trainer − engine", party.trainer_engine)):  # fmt: skip
        yield _gap(name, gap)
    if party.objective is not None:
        yield from _objective(party.objective)
    yield from _metrics(party)


def _joined(party: Party) -> str:
    text = (
        f"{party.num_joined} of {plural(party.num_sequences, 'sequence')} joined with "
        f"{plural(party.num_rollouts, 'rollout')} by their ids, {plural(party.num_tokens, 'token')} compared"
    )
    if party.num_ambiguous:
        text += f"; NOT JUDGED: {party.num_ambiguous} that fit several requests"
    if party.num_unknown:
        text += f"; {party.num_unknown} of no request of this run"
    return text


def _gap(name: str, gap: Gap) -> str:
    if not gap.num_tokens:
        return f"{name:<28}{0:>9}" + f"{'–':>12}" * 4
    return (
        f"{name:<28}{gap.num_tokens:>9}{gap.d_mean:>+12.5f}{gap.d_abs_mean:>12.5f}{gap.d_abs_max:>12.4f}"
        f"{gap.bit_equal:>12.1%}"
    )


def _objective(found: Objective) -> Iterator[str]:
    low, high = found.clip_low, found.clip_high
    yield (
        f"{f'clip range {1 - low:g} to {1 + high:g} ({found.clip_source})':<42}"
        f"{'clip rate':>12}{'backend':>12}{'policy':>12}{'kl_new_old':>12}{'ESS':>9}"
    )
    for title, levels in (("as trained", found.as_trained), ("engine put right", found.engine_corrected),
                          ("trainer put right", found.trainer_corrected)):  # fmt: skip
        for level in levels[:2]:
            yield _level(f"{title}, {level.name}", level)
    parts = [f"entropy {found.entropy:.3f} nats"]
    if found.lag is not None:
        parts.append(f"lag {found.lag.smallest:g} to {found.lag.largest:g} (mean {found.lag.mean:.2f})")
    if not found.has_current:
        parts.append("no updated policy in the dump: the policy's share is that of no step")
    if not found.below_is_clean:
        parts.append("a lower layer is not clean: nothing is to be blamed on the objective")
    yield "; ".join(parts)


def _level(name: str, level: Level) -> str:
    return (
        f"{name:<42}{level.total.clip_rate:>12.2%}{level.backend.clip_rate:>12.2%}{level.policy.clip_rate:>12.2%}"
        f"{level.total.kl:>12.5f}{level.total.ess:>9.4f}"
    )


def _metrics(party: Party) -> Iterator[str]:
    """The metrics of the framework that wrote the dump, else a few; all are in the JSON."""
    own = next((name for name in _FRAMEWORKS if party.format.startswith(name)), None)
    for metric in party.metrics:
        name = f"{metric.framework} {metric.name}"
        if (own is None and name in _SHOWN) or (own is not None and metric.framework.startswith(own)):
            yield f"{name:<70}{metric.value:>12.6g}"
