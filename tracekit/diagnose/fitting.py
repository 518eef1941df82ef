"""Which sampling parameters, at which values, explain recorded logprobs: from coarse noise to that of the run.

Under the noise of a float32 engine a value has to be right to six digits before it explains anything, so the search
begins with densities as wide as what is to be explained and narrows them step by step. A parameter is taken in where it
explains more than any other, as long as something is left to explain; all that are in are refined together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.settings import F8, NEUTRAL, Settings
from tracekit.diagnose.trial import Trial, blended

MOST = 3  # parameters that are fitted together
FEW = 512  # tokens that values are searched on
_COARSEST = 0.25  # logit noise
_FINEST_CHOICE = 0.01  # below, no other parameter is taken in: coarse grids would not meet its peak
_FINER = 4.0
_LEAST_NATS = 8.0
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Parameter:
    """One parameter, and where its value is looked for."""

    name: str
    grid: F8
    reach: float = 1.0  # change of the value that moves logprobs by about a nat
    whole: bool = False  # an integer, searched on the grid and near it


_PENALTY = np.linspace(-2.0, 2.0, 17)
PARAMETERS = (
    Parameter("temperature", np.geomspace(0.1, 4.0, 24)),
    Parameter("top_p", np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 1.0])),
    Parameter("top_k", np.array([1, 2, 3, 4, 5, 7, 10, 14, 20, 28, 40, 50, 64, 80, 100, 127, 0.0]), whole=True),
    Parameter("min_p", np.array([0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5]), 0.3),
    Parameter("repetition_penalty", np.array([0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 1.8, 2]), 0.2),
    Parameter("frequency_penalty", _PENALTY),
    Parameter("presence_penalty", _PENALTY),
)


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        values: of the parameters that differ from what was recorded, by name, in the order in which they were found.
        rivals: for each, other parameters by the nats by which they fell short when it was taken in.
    """

    values: dict[str, float]
    rivals: dict[str, dict[str, float]]


def fit(trial: Trial) -> Fit:
    """Fit the settings of a trial."""
    few = trial[np.linspace(0, trial.index.size - 1, min(FEW, trial.index.size)).astype(int)]
    least = trial.density.logit_noise
    noise = max(min(_COARSEST, _deviation(few)), least)
    found = Fit({}, {})
    while True:
        _take_in(few, noise, found)
        if found.values:
            _refine(few, noise, found)
        if noise <= least:
            _refine(few, noise, found, finest=4)
        if noise <= least or (not found.values and noise < _FINEST_CHOICE):
            return found
        noise = max(noise / _FINER, least)


def with_values(settings: Settings, values: dict[str, float]) -> Settings:
    """Return settings with other values of some parameters."""
    for name, value in values.items():
        settings = settings.but(name, value)
    return settings


def _deviation(trial: Trial) -> float:
    told = trial.predict(trial.settings)
    off = np.abs(trial.recorded - told.logprob) / np.hypot(told.gain, 0.02)
    off = off[np.isfinite(off)]
    return float(np.quantile(off, 0.8)) if off.size else _COARSEST


def _take_in(few: Trial, noise: float, found: Fit) -> None:
    """Add parameters while they explain what is left."""
    density = few.density.wider(noise)
    recorded = few.weigh(few.settings, density)
    while len(found.values) < MOST and (noise >= _FINEST_CHOICE or not found.values):
        base = with_values(few.settings, found.values)
        told = few.predict(base)
        now = blended(few.weigh_told(told, density), recorded)
        left = float((density.usual(told.gain) - now).sum())
        if left < max(_LEAST_NATS, 0.05 * few.index.size):
            return
        tried = {}
        for parameter in PARAMETERS:
            if parameter.name not in found.values:
                values = _grid(parameter, base, noise)
                sums = [blended(few.weigh(base.but(parameter.name, v), density), recorded).sum() for v in values]
                tried[parameter.name] = float(max(sums) - now.sum()), float(values[int(np.argmax(sums))])
        name = max(tried, key=lambda key: tried[key][0])
        gain, value = tried[name]
        if gain < max(_LEAST_NATS, _LEAST_SHARE * left):
            return
        found.rivals[name] = {other: gain - nats for other, (nats, _) in tried.items() if other != name}
        found.values[name] = value
        _refine(few, noise, found, finest=3)


def _grid(parameter: Parameter, base: Settings, noise: float) -> F8:
    """Values to try: the parameter's own, and close to what is recorded."""
    if parameter.whole:
        return parameter.grid
    now = float(np.median(getattr(base, parameter.name)))
    near = now + parameter.reach * noise * np.array([-4, -2, -1, -0.5, 0.5, 1, 2, 4])
    return np.unique(np.clip(np.concatenate([parameter.grid, near]), parameter.grid.min(), parameter.grid.max()))


def _refine(few: Trial, noise: float, found: Fit, *, finest: int = 1) -> None:
    """Improve all values in turn, in steps that become finer."""
    density = few.density.wider(noise)
    recorded = few.weigh(few.settings, density)
    parameters = {parameter.name: parameter for parameter in PARAMETERS}
    for finer in range(finest):
        for _ in range(3 if len(found.values) > 1 else 1):
            for name in found.values:
                values = _near(parameters[name], found.values[name], noise / 4**finer)
                others = with_values(few.settings, found.values)
                sums = [blended(few.weigh(others.but(name, v), density), recorded).sum() for v in values]
                found.values[name] = float(values[int(np.argmax(sums))])


def _near(parameter: Parameter, value: float, noise: float) -> F8:
    if parameter.whole:
        low, high = (max(round(value * 0.7), 1), round(value * 1.45) + 1) if value else (0, 1)
        return np.unique(np.append(np.linspace(low, high, 24).round(), value))
    steps: F8 = value + parameter.reach * noise * np.linspace(-4, 4, 17)
    tried: F8 = np.clip(np.append(steps, NEUTRAL[parameter.name]), parameter.grid.min(), parameter.grid.max())
    return tried
