"""A replay on one screen: the verdict in words first, then the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.diagnose.data import NONE
from tracekit.diagnose.metrics import Metrics
from tracekit.diagnose.onset import RolloutOnsets
from tracekit.diagnose.result import Result, Scoring
from tracekit.diagnose.verdict import Verdict
from tracekit.plural import plural
from tracekit.report import party, words
from tracekit.report.causes.table import SAYINGS, change, proof, sentence
from tracekit.report.modules import module_lines
from tracekit.report.parts import parts_lines

_TOP = 8
# field, name on the screen, format
_ROWS = (
    ("ratio_mean", "ratio (mean e^d)", ".4f"),
    ("mismatch_kl", "mismatch_kl (k3, nats)", ".5f"),
    ("k1", "k1 (mean −d, nats)", ".5f"),
    ("d_mean", "mean d (nats)", "+.5f"),
    ("d_abs_mean", "mean |d| (nats)", ".5f"),
    ("d_abs_max", "max |d| (nats)", ".4f"),
    ("clip_rate", "clip rate, epsilon {epsilon}", ".2%"),
    ("ess", "ESS (share)", ".4f"),
    ("bit_equal", "bit-equal", ".1%"),
    ("bit_equal_free", "bit-equal, not forced", ".1%"),
    ("forced", "forced (one survivor)", ".1%"),
    ("num_outside", "outside the kept set", "d"),
)


def to_text(result: Result) -> str:
    """Return the screen."""
    return "\n\n".join("\n".join(lines) for lines in map(list, sections(result)) if lines)


def sections(result: Result) -> list[Iterator[str]]:
    """Return the lines of each part of the screen, the verdict first."""
    verdict = result.verdict
    return [
        headline(verdict),
        _what(result),
        party.to_lines(verdict.party) if verdict.party else iter(()),
        _metrics(verdict),
        _noise(verdict),
        parts_lines(verdict.parts),
        module_lines(verdict.modules),
        _first_tokens(verdict),
        (f"note: {words.remark(verdict, limit)}" for limit in verdict.limits),
    ]


def headline(verdict: Verdict) -> Iterator[str]:
    """Yield the verdict in a sentence, and what it rests on."""
    if verdict.layer == NONE:
        yield "VERDICT: " + ("withheld" if verdict.withheld else "no divergence beyond this run's noise")
    else:
        yield f"VERDICT: {verdict.layer} mismatch" + _since(verdict)
    yield f"  {words.cause(verdict)}"
    for found in verdict.causes[1:]:
        yield f"  and: {sentence(found, verdict)} To change: {change(found, verdict)}."
    left = words.left(verdict)
    if left:
        yield f"  {left}"
    semantic = verdict.semantic
    line = f"  recorded values are: {semantic.kind}"
    if semantic.runner_up:
        closest = "" if semantic.kind == semantic.closest else f"closest {semantic.closest}, "
        line += f" ({closest}{semantic.margin:.0f} nats ahead of {semantic.runner_up})"
    yield line + f"; the trainer expects: {verdict.expect}"
    for found in verdict.causes:
        yield f"  proof of {SAYINGS[found.code].noun}: {proof(found)}"
    for finding in verdict.findings:
        yield f"  ! {words.remark(verdict, finding)}"
    for noted in verdict.noted if verdict.layer != NONE else ():
        yield f"  {noted.source} ({noted.id}, engine {noted.engine}): {noted.what}"
    for unknown in verdict.withheld:
        yield f"  WITHHELD: {words.remark(verdict, unknown)}"


def _since(verdict: Verdict) -> str:
    if verdict.since is None or verdict.since_rollout is None:
        return ", spread over the run: no single token stands out"
    rollout = verdict.rollouts[verdict.since_rollout]
    return f", since output token {verdict.since.output_index} of request {rollout.request} (engine {rollout.engine})"


def _what(result: Result) -> Iterator[str]:
    data, scoring = result.data, result.scoring
    yield (
        f"{plural(data.num_tokens, 'token')} of {plural(data.num_rollouts, 'rollout')}, scored by {scoring.model} "
        f"({scoring.dtype} body, float32 head, {scoring.device})"
    )
    yield (
        f"sequences {scoring.packing}, {scoring.arithmetic}, token multiplier {scoring.token_multiplier:.2f}; "
        f"{scoring.secs:.0f} s, peak memory {scoring.peak_bytes / 2**30:.1f} GiB{_of_workers(scoring)}"
    )
    yield from filter(None, map(words.weights, scoring.weights))
    yield from filter(None, map(words.cast, scoring.weights))
    yield from words.losses(data)


def _of_workers(scoring: Scoring) -> str:
    peak = scoring.worker_peak_bytes
    return "" if peak is None else f", of a worker at most {peak / 2**30:.1f} GiB"


def _metrics(verdict: Verdict) -> Iterator[str]:
    before, after = verdict.before, verdict.after
    columns = [(f"against {verdict.expect}", before)]
    if verdict.semantic.lens != verdict.expect and verdict.semantic.hypotheses:
        columns.append((f"against {verdict.semantic.lens}", after))
    yield f"{'d = replay − rollout':<28}" + "".join(f"{title:>20}" for title, _ in columns)
    for name, label, form in _ROWS:
        cells = "".join(f"{_cell(metrics, name, form):>20}" for _, metrics in columns)
        yield f"{label.format(epsilon=before.epsilon):<28}{cells}"


def _cell(metrics: Metrics, name: str, form: str) -> str:
    value = getattr(metrics, name)
    return "–" if value != value else format(value, form)


def _noise(verdict: Verdict) -> Iterator[str]:
    noise = verdict.noise
    yield (
        f"noise floor ({noise.semantic}, logit noise): batch shape {noise.shape_noise:.2g}, precision "
        f"{noise.precision_noise:.2g}, the engine's head {noise.head_noise:.2g}; a clean engine's {noise.scale:.2g}, "
        f"recorded {noise.engine_noise:.2g}"
    )
    yield (
        f"a token is beyond noise above {noise.threshold:.1f} sigma (a tail of {noise.degrees:g} degrees of freedom, "
        f"from {noise.num_shape_tokens + noise.num_tokens} self-differences)"
    )
    yield (
        f"packed and shared against each rollout alone: mean |d| {noise.shape_d_mean:.2g} nats, largest "
        f"{noise.shape_d_max:.2g}"
    )
    yield from words.kv(verdict)
    yield from filter(None, [words.masters(verdict)])


def _first_tokens(verdict: Verdict) -> Iterator[str]:
    hit = [r for r in verdict.rollouts if r.onset]
    equal = sum(r.first_not_bit_equal is None for r in verdict.rollouts)
    yield (f"{words.with_onset(verdict)} their replay beyond noise; {equal} are bit-equal throughout")
    yield from words.changes(verdict)
    yield from words.coincidences(verdict)
    if not hit:
        return
    yield (
        "first output token not bit-equal (bits), most likely on one side only (choice), outside the clip range, "
        "beyond noise, of a sustained shift; values at the earlier of the last two:"
    )
    yield f"{'engine':>6}{'request':>8}{'bits':>6}{'choice':>8}{'clip':>6}{'noise':>6}{'shift':>6}{'token':>8}" + (
        f"{'recorded':>10}{'replayed':>10}{'d':>10}{'sigma':>9}"
    )
    hit.sort(key=_strength, reverse=True)
    for rollout in hit[:_TOP]:
        yield _row(rollout)
    if len(hit) > _TOP:
        yield f"{'…':>6} {len(hit) - _TOP} more"


def _row(rollout: RolloutOnsets) -> str:
    onset = rollout.onset
    assert onset is not None
    decisions = rollout.first_other_choice, rollout.first_clipped
    found = (rollout.first_not_bit_equal, *decisions, rollout.first_beyond_noise, rollout.shift_start)
    widths = (6, 8, 6, 6, 6)
    where = "".join(f"{'–' if o is None else o.output_index:>{w}}" for o, w in zip(found, widths, strict=True))
    return (
        f"{rollout.engine:>6}{rollout.request:>8}{where}{onset.token_id:>8}{onset.recorded:>10.4f}"
        f"{onset.replayed:>10.4f}{onset.d:>+10.4f}{onset.sigma:>9.4f}"
    )


def _strength(rollout: RolloutOnsets) -> tuple[int, float]:
    """Rollouts with the most tokens beyond noise first, then those with the strongest shift."""
    return rollout.num_beyond_noise, rollout.log_e
