"""Which module of the model is off: one whose output differs by more than its recorded input explains.

Each module's error is divided by its own noise (`tracekit.scoring.modules`), and that by what modules of its kind
typically show: the engine's kernels are not the scorer's, and their rounding is shared by all layers. A kind that is
off as a whole is a kernel of that kind, and is a verdict, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

F8 = npt.NDArray[np.float64]

LINE = 4.0  # times what its kind shows; a clean vLLM 0.18.1 on a CPU shows 1.6 at most, in float32 and bfloat16
ATTENTION = "self_attn"
BETWEEN = "between"  # what a layer adds and hands on between its modules; no module of its own
KIND_LINE = 3.0  # times its own noise, for the median of all layers of a kind
_LEAST_OF_KIND = 3  # modules that make a kind


@dataclass(frozen=True)
class ModuleNoise:
    """One module against its own noise.

    Attributes:
        name: as `layers.3.self_attn`; `norm` is the final one, `lm_head` the output embedding. Of what arrives at
            modules: `embed_tokens`, `layers.3.between` (what the layer adds and hands on) and `lm_head.rows`.
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
class OfFolder:
    """A module that is off, and gives what was recorded under the weights of another folder.

    Attributes:
        name: of the module.
        folder: what a verdict calls the folder.
    """

    name: str
    folder: str


@dataclass(frozen=True)
class RotaryBase:
    """A base of the rotary embedding, fitted.

    Attributes:
        base: that the scorer's configuration has.
        fitted: that explains the recorded outputs best.
        left: of the error of all attention modules, as a share.
    """

    base: float
    fitted: float
    left: float


@dataclass(frozen=True)
class Start:
    """Where a module is off first.

    Attributes:
        engine: its number in the trace.
        request: number of the request within its engine.
        position: 0-based over prompt and completion, of the row.
    """

    engine: int
    request: int
    position: int


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
        scored_with: what a verdict calls the folder whose weights replayed them.
        kept: suspects that are those of another known folder, by their outputs.
        starts: where the worst module is off first, one entry for each request in which it is.
        narrow_head: what a bfloat16 head leaves of the error of the engine's logits, as a share; NaN where the head
            is not a suspect.
        rotary: the base of the rotary embedding that explains what attention gives, where it is off in all layers.
    """

    num_requests: int
    num_positions: int
    dtype: str
    suspects: list[str]
    kinds: list[str]
    modules: list[ModuleNoise]
    graft: list[Boundary]
    scored_with: str = ""
    kept: list[OfFolder] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    narrow_head: float = float("nan")
    rotary: RotaryBase | None = None


def layer_of(name: str) -> int | None:
    """Return the layer of a module; None for the final norm and the head."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else None


def weigh(errors: Sequence[tuple[str, F8, F8]]) -> list[ModuleNoise]:
    """Weigh every module against its own noise and against its kind, all norms being one; the worst first.

    Args:
        errors: name, [T] error and [T] noise of each module; of several requests one after the other.
    """
    rows = [(name, float(e.mean() / n.mean()), float(e.max() / n.max())) for name, e, n in errors]
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for name, ratio, worst in rows:
        by_kind.setdefault(_family(name), []).append((ratio, worst))
    found = []
    for name, ratio, worst in rows:
        own = by_kind[_family(name)]
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


def _family(name: str) -> str:
    return "norm" if name.endswith("norm") else _kind(name)


def first_off(error: F8, noise: F8) -> int | None:
    """Return the first row of [T] whose error is beyond `LINE` times the largest noise; None for none."""
    (beyond,) = np.nonzero(error > LINE * noise.max())
    return int(beyond[0]) if beyond.size else None
