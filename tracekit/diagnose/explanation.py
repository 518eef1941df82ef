"""A cause that a verdict names: what it is, how much it explains, and by how much it beats what else was tested."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tracekit.diagnose.data import Layer
from tracekit.diagnose.onset import Onset

Code = Literal[
    "ids beyond the tokenizer",
    "rounded logprobs",
    "shifted by one",
    "values of another row",
    "another unit",
    "constant offset",
    "most likely token's value",
    "hidden mask",
    "hidden bias",
    "padded head",
    "rounded sampling values",
    "other temperature",
    "other top_p",
    "other top_k",
    "other min_p",
    "other repetition_penalty",
    "other frequency_penalty",
    "other presence_penalty",
    "sentinel values",
    "other reading",
    "drawn otherwise",
    "engine double bos",
    "trainer double bos",
    "trainer prompt differs",
    "trainer history differs",
    "trainer completion truncated",
    "trainer completion extended",
    "trainer completion retokenised",
    "trainer completion differs",
    "trainer mask shifted",
    "trainer mask wrong",
    "trainer version differs",
    "trainer sentinel",
    "trainer wrong entry",
    "trainer holds shifted",
    "trainer holds other values",
    "trainer tokenizer differs",
    "trainer reading",
    "trainer shifted",
    "trainer offset",
    "bfloat16 head",
    "version numbers differ",
    "other checkpoint",
    "kept tensors",
    "unknown weights",
    "state",
    "older weights",
    "newer weights",
    "stale prefix blocks",
    "foreign blocks",
    "grows with position",
    "certain batch sizes",
    "decode steps",
    "from a position on",
    "one engine",
    "one weight version",
    "cached requests",
    "preempted requests",
    "module",
    "trainer bfloat16 head",
    "trainer packed",
    "trainer padded",
    "trainer agrees with engine",
    "trainer unexplained",
    "trainer config differs",
]
"""Of every cause, in the order of `tracekit.diagnose.causes.CAUSES`."""


@dataclass(frozen=True)
class Explanation:
    """One cause, with its proof in numbers.

    Attributes:
        code: the cause, a row of `tracekit.diagnose.causes.CAUSES`.
        layer: the layer of mismatch that it belongs to.
        margin: log-likelihood by which it beats the best alternative that was tested, nats; NaN where it is proved
            without numerics.
        share: the log-likelihood that it gains over that which a perfect replay would gain, 0 to 1; NaN where it is
            proved without numerics.
        since: the first token that it concerns, null where no token does.
        since_rollout: index into the verdict's rollouts of that token.
        rollouts: that it concerns, indices into the verdict's.
        numbers: by name, what its sentence needs.
        names: tensors, settings, modules, versions and the like that it is about, as text.
        cited: findings of doctor and lint that it rests on, as "source: id".
        alternatives: codes of causes that the data cannot tell from this one.
    """

    code: Code
    layer: Layer
    margin: float
    share: float
    since: Onset | None = None
    since_rollout: int | None = None
    rollouts: list[int] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    cited: list[str] = field(default_factory=list)
    alternatives: list[Code] = field(default_factory=list)
