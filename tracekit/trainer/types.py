"""One sequence as a trainer used it, whichever framework wrote it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import TrainerDumpError

F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Record = Mapping[str, Any]

COLUMNS = ("old_logprob", "rollout_logprob", "current_logprob", "advantage", "entropy", "version", "train_version")


@dataclass(frozen=True, eq=False)
class Sample:
    """A sequence that was trained on: [N] over prompt and completion, every value at the position of its token.

    Values are nats where they are logprobs, and NaN where the dump has none.

    Attributes:
        where: file and record, for people.
        token_ids: [N] as the trainer's forward saw them, padding left out.
        num_prompt: tokens before the first sampled one, where the dump says so.
        old_logprob: [N] the trainer's recomputation before the update.
        rollout_logprob: [N] the engine's value as the trainer holds it.
        current_logprob: [N] under the policy that is updated.
        advantage: [N].
        entropy: [N] nats, the trainer's.
        version: [N] weight version that the trainer believes sampled the token.
        train_version: [N] weight version that the update starts from.
        mask: [N] tokens that the loss counts; None where the dump does not say.
        step: the trainer's.
        before: ids that lay before it in the same row of the trainer's batch, where the dump says so.
        is_padding: whether those are left padding, and not earlier sequences of a pack.
    """

    where: str
    token_ids: I8
    num_prompt: int | None
    old_logprob: F8
    rollout_logprob: F8
    current_logprob: F8
    advantage: F8
    entropy: F8
    version: F8
    train_version: F8
    mask: Mask | None = None
    step: int | None = None
    before: I8 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    is_padding: bool = False

    @property
    def tells(self) -> int:
        """How many kinds of values it has, for choosing among dumps of the same sequence."""
        return sum(bool(np.isfinite(getattr(self, name)).any()) for name in COLUMNS) + (self.mask is not None)


@dataclass(frozen=True)
class Text:
    """A sequence of which a dump has only the texts, special tokens left out."""

    where: str
    prompt: str
    completion: str
    advantage: float
    step: int | None


@dataclass(frozen=True)
class Dump:
    """All that was read.

    Attributes:
        format: the name of the format.
        samples: sequences with their token ids.
        texts: sequences with their texts alone.
        clip: the clip range that the dump itself names, (low, high) around 1; None where it names none.
        not_read: files of the folder that are of no known kind.
    """

    format: str
    samples: list[Sample]
    texts: list[Text] = field(default_factory=list)
    clip: tuple[float, float] | None = None
    not_read: list[str] = field(default_factory=list)


def sample(
    where: str,
    token_ids: Any,
    *,
    num_prompt: int | None = None,
    mask: Any = None,
    step: Any = None,
    before: Any = (),
    **columns: Any,
) -> Sample:
    """Return a sample; a column may be one number, of all N tokens, or of the last ones (the completion's).

    Raises:
        TrainerDumpError: an id is no id, a column has another length, or a value is not a number.
    """
    ids = _ids(where, token_ids)
    if num_prompt is not None and not 0 <= num_prompt <= ids.size:
        raise TrainerDumpError(f"{where}: a prompt of {num_prompt} tokens in a sequence of {ids.size}")
    lengths = {ids.size} if num_prompt is None else {ids.size, ids.size - num_prompt}
    found: dict[str, Any] = {name: _column(where, name, columns.get(name), ids.size, lengths) for name in COLUMNS}
    trained = None if mask is None else _column(where, "mask", mask, ids.size, lengths)
    return Sample(
        where=where,
        token_ids=ids,
        num_prompt=num_prompt,
        mask=None if trained is None else np.nan_to_num(trained) != 0,
        step=None if step is None else int(step),
        before=np.asarray(before, dtype=np.int64),
        **found,
    )


def plain(values: Any) -> Any:
    """Return a tensor, an array or an Arrow list as Python's lists and numbers."""
    if getattr(values, "is_nested", False):  # verl's, without padding
        return [row.tolist() for row in values.unbind()]
    return values.tolist() if hasattr(values, "tolist") else values


def _ids(where: str, values: Any) -> I8:
    try:
        given = list(plain(values))
        ids = np.asarray(given, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TrainerDumpError(f"{where}: token ids that are not numbers: {str(values)[:60]}") from error
    if ids.ndim != 1 or not ids.size or ids.min() < 0 or ids.max() >= 1 << 32 or ids.tolist() != given:
        raise TrainerDumpError(f"{where}: this is not a list of token ids: {str(given)[:60]}")
    return ids


def _column(where: str, name: str, values: Any, size: int, lengths: set[int]) -> F8:
    out = np.full(size, np.nan)
    values = plain(values)
    if values is None:
        return out
    try:
        numbers = np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError) as error:
        raise TrainerDumpError(f"{where}: {name} has values that are not numbers: {str(values)[:60]}") from error
    if numbers.ndim == 0:
        out[:] = numbers
        return out
    if numbers.ndim != 1 or numbers.size not in lengths:
        wanted = " or ".join(map(str, sorted(lengths)))
        raise TrainerDumpError(f"{where}: {name} has {numbers.size} values for {wanted} tokens")
    if numbers.size:
        out[size - numbers.size :] = numbers
    return out
