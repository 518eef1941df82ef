"""The sampler ran with other values than the request says: which, fitted to the recorded logprobs."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.cited import cited
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.fitting import fit, with_values
from tracekit.diagnose.part import Part
from tracekit.diagnose.semantic import MARGIN, NEITHER
from tracekit.diagnose.settings import F8, Settings, neutral
from tracekit.diagnose.trial import Trial, choices
from tracekit.scores import PROCESSED, RAW

CODES: dict[str, Code] = {
    "temperature": "other temperature",
    "top_p": "other top_p",
    "top_k": "other top_k",
    "min_p": "other min_p",
    "repetition_penalty": "other repetition_penalty",
    "frequency_penalty": "other frequency_penalty",
    "presence_penalty": "other presence_penalty",
}
LEAST_NATS = 12.0  # for the choice of a parameter, of its value and of a part of the run
LEAST_SHARE = 0.25  # of what a perfect replay would gain: what explains less may be the shadow of another fault
POOLED_NATS = 25.0  # from here on a small change is named that no token shows by itself ...
LEAST_CHANGE = 0.01  # ... where it is no smaller than what an engine's own rounding does to all logits alike
PROFILED = 1e-3  # logit noise as large as what a profile leaves out: the tail between its temperatures, penalties there
_SOURCES = (  # of lint: where a value comes from that no request names, on either side
    "generation-config-sampling",
    "engine-sampling-defaults",
    "trainer-generation-config-differs",
)
_SIGNED = ("frequency_penalty", "presence_penalty")
_LEAST = {"temperature": 0.05, "top_p": 0.05, "top_k": 1.0, "min_p": 0.0, "repetition_penalty": 0.1}
_MOST = {"top_p": 1.0, "min_p": 1.0}


def detect(evidence: Evidence) -> list[Explanation]:
    """Fit the parameters together, and weigh each against doing without it."""
    trial = evidence.trial(PROCESSED, least_noise=PROFILED)
    if trial is None or not _is_asked(evidence, trial):
        return []
    fitted = fit(trial)
    if not fitted.values:
        return []
    settings = with_values(trial.settings, fitted.values)
    before, after = trial.weigh(trial.settings), trial.weigh(settings)
    tried = trial.attempt(after, before, trial.density.usual(trial.predict(trial.settings).gain))
    part = tried.part
    if not tried.enough(LEAST_NATS, LEAST_SHARE) and (
        part.nats < LEAST_NATS or evidence.diverges or not _is_clear(trial, fitted.values, part)
    ):
        return []
    nats = {name: _alone(trial, fitted.values, name, after, part) for name in fitted.values}
    moved = _moved(evidence, trial, settings, part)
    found = []
    for name, value in fitted.values.items():
        if nats[name] < LEAST_NATS:
            continue
        rivals = fitted.rivals[name]
        found.append(
            Explanation(
                CODES[name],
                SEMANTIC,
                margin=min([nats[name], *(short for short in rivals.values() if short >= MARGIN)]),
                share=tried.share * nats[name] / sum(nats.values()),
                **place_of(evidence, moved),
                numbers={**_numbers(trial, settings, part, name, value), "nats": nats[name]},
                names=[name],
                cited=cited(evidence, *_SOURCES),
                alternatives=[CODES[other] for other, short in rivals.items() if short < MARGIN],
            )
        )
    return found


def _alone(trial: Trial, values: dict[str, float], name: str, weights: F8, part: Part) -> float:
    """Nats that one parameter is worth on top of the others."""
    if len(values) == 1:
        return part.nats
    without = with_values(trial.settings, {key: value for key, value in values.items() if key != name})
    return max(float((weights - trial.weigh(without))[part.which].sum()), 0.0)


def _is_asked(evidence: Evidence, trial: Trial) -> bool:
    """Whether there is something to fit: values that nothing explains, a hint, or tokens drawn as raw values say."""
    semantic = evidence.semantic
    if semantic.closest == RAW:
        if semantic.kind == RAW == evidence.expect:
            return False
        as_raw = choices(trial, neutral(trial.index.size)) - choices(trial, trial.settings)
        return as_raw >= MARGIN  # else the values are raw ones, in which no sampling parameter shows
    return semantic.kind == NEITHER or evidence.diverges or _hint(trial)


def _hint(trial: Trial) -> bool:
    """Whether all tokens together speak for another temperature although none does alone."""
    weights = trial.weigh(trial.settings)
    changed = (trial.settings.but("temperature", trial.settings.temperature * f) for f in (0.94, 0.98, 1.02, 1.06))
    return any(float((trial.weigh(settings) - weights).sum()) >= POOLED_NATS for settings in changed)


def _is_clear(trial: Trial, values: dict[str, float], part: Part) -> bool:
    """Whether a change that explains little of all that is off is nevertheless one of its own."""
    if part.nats < POOLED_NATS or not part.which.all() or set(values) != {"temperature"}:
        return False
    recorded = float(np.median(trial.settings.temperature[part.which]))
    return abs(values["temperature"] / recorded - 1) >= LEAST_CHANGE


def _moved(evidence: Evidence, trial: Trial, settings: Settings, part: Part) -> np.typing.NDArray[np.int64]:
    """Tokens of the part that the change moves by more than noise."""
    off = np.abs(trial.predict(settings).logprob - trial.predict(trial.settings).logprob)
    moved = part.which & (off > evidence.noise[PROCESSED].sigma[trial.index])
    return trial.index[moved if moved.any() else part.which]


def _numbers(trial: Trial, settings: Settings, part: Part, name: str, value: float) -> dict[str, float]:
    inside, own = trial[part.which], settings[part.which]
    low, high = (_bound(inside, own, name, value, sign) for sign in (-1.0, 1.0))
    residuals = [inside.recorded - inside.predict(s).logprob for s in (inside.settings, own)]
    numbers = {
        "fitted": value,
        "low": low,
        "high": high,
        "recorded": float(np.median(getattr(inside.settings, name))),
        "d_abs_before": _mean(residuals[0]),
        "d_abs_after": _mean(residuals[1]),
        "num_tokens": float(inside.index.size),
    }
    steps = {"since_step": part.since_step, "until_step": part.until_step}
    return numbers | {key: float(step) for key, step in steps.items() if step is not None}


def _bound(trial: Trial, settings: Settings, name: str, value: float, sign: float) -> float:
    """One end of the values that are likely within 1.92 nats of the best: a 95 % interval (Wilks)."""
    own = float(trial.weigh(settings).sum())
    bound, scale = value, 1.0 if name in _SIGNED else max(abs(value), 0.01)
    for step in np.geomspace(1e-6, 0.5, 24) if name != "top_k" else np.arange(1, 9) / scale:
        other = value + sign * step * scale
        if not _LEAST.get(name, -np.inf) <= other <= _MOST.get(name, np.inf):
            break
        if float(trial.weigh(settings.but(name, other)).sum()) < own - 1.92:
            break
        bound = float(other)
    return bound


def _mean(values: F8) -> float:
    values = np.abs(values[np.isfinite(values)])
    return float(values.mean()) if values.size else float("nan")
