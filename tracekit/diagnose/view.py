"""What a trainer used for the tokens of a run, joined with them: the third party beside the engine and the scorer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

IdFault = Literal[
    "trainer double bos",
    "engine double bos",
    "trainer prompt differs",
    "trainer history differs",
    "trainer completion truncated",
    "trainer completion extended",
    "trainer completion retokenised",
    "trainer completion differs",
]
MaskFault = Literal["trainer mask shifted", "trainer mask wrong"]


@dataclass(frozen=True)
class Mispaired:
    """A rollout and the sequence that the trainer made of it, which do not have the same ids.

    Attributes:
        code: what differs.
        rollout: index into the run's.
        position: of the first id that differs, 0-based over prompt and completion.
        engine_ids: the engine's from there on, a few.
        trainer_ids: the trainer's, a few.
        num_tokens: sampled tokens that the trainer scored after another context, or does not have.
    """

    code: IdFault
    rollout: int
    position: int
    engine_ids: list[int]
    trainer_ids: list[int]
    num_tokens: int


@dataclass(frozen=True)
class Masked:
    """A sequence whose mask does not cover what the engine sampled.

    Attributes:
        code: what is wrong.
        rollout: index into the run's, of the first rollout in the sequence.
        shift: by how many positions the mask is late, where it is shifted.
        num_extra: tokens that count and that no recorded request sampled.
        num_missing: sampled tokens of rollouts that count in part, and do not.
    """

    code: MaskFault
    rollout: int
    shift: int
    num_extra: int
    num_missing: int


@dataclass(frozen=True)
class TrainerView:
    """The trainer's values of the N tokens of a run; NaN where it has none.

    Attributes:
        format: of the dump.
        old_logprob: [N] nats, the trainer's recomputation before the update.
        held_logprob: [N] nats, the engine's value as the trainer holds it.
        current_logprob: [N] nats, under the policy that is updated.
        advantage: [N].
        entropy: [N] nats.
        version: [N] weight version that the trainer believes sampled the token.
        train_version: [N] weight version that the update starts from.
        trained: [N] tokens that the loss counts; all joined ones where the dump does not say.
        sequence: [N] index of the trainer's sequence, -1 where none was joined.
        paired: [N] tokens whose whole context is the same on both sides.
        best_other: [N] nats, the engine's most likely alternative to the token, where the client asked for some.
        mispaired: sequences whose ids differ.
        masked: sequences whose mask is wrong.
        num_sequences: in the dump.
        num_joined: of these, joined with a rollout.
        num_ambiguous: that fit several rollouts which nothing tells apart.
        num_unknown: that are of no rollout of this run.
        clip: clip range that the dump names, low and high part around 1; None for none.
    """

    format: str
    old_logprob: F8
    held_logprob: F8
    current_logprob: F8
    advantage: F8
    entropy: F8
    version: F8
    train_version: F8
    trained: Mask
    sequence: I8
    paired: Mask
    best_other: F8
    mispaired: list[Mispaired] = field(default_factory=list)
    masked: list[Masked] = field(default_factory=list)
    num_sequences: int = 0
    num_joined: int = 0
    num_ambiguous: int = 0
    num_unknown: int = 0
    clip: tuple[float, float] | None = None
