"""Which module of the model is off: one whose output differs by more than its recorded input explains.

Each module's error is divided by its own noise (`tracekit.scoring.modules`), and that by what modules of its kind
typically show: the engine's kernels are not the scorer's, and their rounding is shared by all layers. A kind that is
off as a whole is a kernel of that kind, and is a verdict, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F8 = npt.NDArray[np.float64]

LINE = 4.0  # times what its kind shows; a clean vLLM 0.18.1 on a CPU shows 1.6 at most, in float32 and bfloat16
KIND_LINE = 6.0  # times its own noise, for the median of all layers of a kind
_LEAST_OF_KIND = 3  # modules that make a kind


@dataclass(frozen=True)
class ModuleNoise:
    """One module against its own noise.

    Attributes:
        name: as `layers.3.self_attn`; `norm` is the final one, `lm_head` the output embedding.
        kind: the name without its layer.
        ratio: mean error over mean noise.
        worst: largest error of a position over largest noise.
        excess: of the two against what modules of its kind show, the larger; no less than against 1.
    """

    name: str
    kind: str
    ratio: float
    worst: float
    excess: float


@dataclass(frozen=True)
class Boundary:
    """The engine's state put into the scorer at one boundary.

    Attributes:
        at: the layer whose input it became; the number of layers is the final norm's.
        d_abs_mean: mean |scorer − engine| of raw logprobs that is left, nats.
    """

    at: int
    d_abs_mean: float


@dataclass(frozen=True)
class Modules:
    """What probing found.

    Attributes:
        num_requests: whose states were recorded.
        num_positions: of theirs.
        dtype: of the engine, which the noise was measured in.
        suspects: names of modules that are off by themselves, the worst first.
        kinds: kinds of which all modules are off.
        modules: all of them, the worst first.
        graft: mean |d| left by boundary, in order of layers; empty where nothing was grafted.
    """

    num_requests: int
    num_positions: int
    dtype: str
    suspects: list[str]
    kinds: list[str]
    modules: list[ModuleNoise]
    graft: list[Boundary]


def layer_of(name: str) -> int | None:
    """Return the layer of a module; None for the final norm and the head."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else None


def weigh(errors: Sequence[tuple[str, F8, F8]]) -> list[ModuleNoise]:
    """Weigh every module, the worst first.

    Args:
        errors: name, [T] error and [T] noise of each module; of several requests one after the other.
    """
    rows = [(name, float(e.mean() / n.mean()), float(e.max() / n.max())) for name, e, n in errors]
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for name, ratio, worst in rows:
        by_kind.setdefault(_kind(name), []).append((ratio, worst))
    found = []
    for name, ratio, worst in rows:
        own = by_kind[_kind(name)]
        typical = np.maximum(np.median(own, axis=0) if len(own) >= _LEAST_OF_KIND else [1.0, 1.0], 1.0)
        excess = max(ratio / typical[0], worst / typical[1])
        found.append(ModuleNoise(name, _kind(name), ratio, worst, float(excess)))
    return sorted(found, key=lambda module: (-module.excess, module.name))


def suspects(modules: Sequence[ModuleNoise]) -> list[str]:
    """Return the modules that are off by themselves, the worst first."""
    return [module.name for module in modules if module.excess > LINE]


def kinds_off(modules: Sequence[ModuleNoise]) -> list[str]:
    """Return the kinds of which the median module is off."""
    ratios: dict[str, list[float]] = {}
    for module in modules:
        ratios.setdefault(module.kind, []).append(module.ratio)
    return sorted(k for k, own in ratios.items() if len(own) >= _LEAST_OF_KIND and np.median(own) > KIND_LINE)


def _kind(name: str) -> str:
    return name.rsplit(".", 1)[-1]
