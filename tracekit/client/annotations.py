"""One annotation, checked and copied on the trainer's thread, and annotations as rows of the table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, SupportsInt

import numpy as np
import numpy.typing as npt

from tracekit.recorder.vllm.columns import Columns
from tracekit.rpc import messages

TABLE = "annotations"
_MAX_U4 = (1 << 32) - 1


@dataclass(frozen=True, eq=False)
class Annotation:
    """A row of the table `annotations`.

    Example:
        Annotation(1_700_000_000_000_000_000, "job-7", None, "chatcmpl-1", 0, 120, "prompt-7", 1.0, [0.4], [-0.1], [])
    """

    wall_ns: int
    run: str | None
    engine_id: str | None
    request_id: str
    index: int
    train_step: int | None
    group: str | None
    reward: float | None
    advantages: npt.NDArray[np.float32]
    old_logprobs: npt.NDArray[np.float32]
    token_ids: npt.NDArray[np.uint32]


def annotation(
    request_id: object,
    *,
    run: str | None,
    engine_id: str | None,
    index: SupportsInt,
    train_step: SupportsInt | None,
    group: object,
    reward: Any,
    advantage: Any,
    old_logprob: Any,
    token_ids: Any,
) -> Annotation:
    """Check and copy what a trainer said; `Client.annotate` has the meaning of each.

    Raises:
        ValueError, TypeError: a value is not of its kind.
    """
    return Annotation(
        wall_ns=time.time_ns(),
        run=_text(run),
        engine_id=_text(engine_id),
        request_id=_text(request_id) or "",
        index=_count(index),
        train_step=None if train_step is None else _count(train_step),
        group=_text(group),
        reward=None if reward is None else float(reward),
        advantages=np.atleast_1d(_array(advantage, np.float32)),
        old_logprobs=_list(old_logprob, np.float32),
        token_ids=_list(token_ids, np.uint32),
    )


class Annotations(Columns):
    """Collects annotations until they are sent: the encoder of a `tracekit.recorder.session.Session`."""

    def add(self, event: Annotation) -> None:
        """Collect one."""
        self._append(TABLE, vars(event))

    def count(self, _event: Any) -> dict[str, int]:
        """Return the rows by table that an annotation stands for."""
        return {TABLE: 1}

    def num_tokens(self) -> int:
        """Return how many values of tokens were collected."""
        columns = self._rows.get(TABLE, {})
        lists = [values for name in ("advantages", "old_logprobs", "token_ids") for values in columns.get(name, ())]
        return sum(map(len, lists))

    def take_orphans(self) -> dict[str, int]:
        """Nothing: an annotation stands for itself."""
        return {}

    def take_shed(self) -> dict[str, int]:
        """Nothing: none is left out."""
        return {}

    def num_live(self) -> int:
        """Zero: nothing is under way between two annotations."""
        return 0


def _text(value: object) -> str | None:
    if value is None:
        return None
    text = str(value)
    if len(text) > messages.MAX_TEXT:
        raise ValueError(f"a text has at most {messages.MAX_TEXT} characters")
    return text


def _count(value: SupportsInt) -> int:
    number = int(value)
    if not 0 <= number <= _MAX_U4:
        raise ValueError(f"{number} is not a number from 0 to {_MAX_U4}")
    return number


def _list(values: Any, dtype: type[Any]) -> npt.NDArray[Any]:
    found = _array(values, dtype)
    if found.ndim != 1:
        raise ValueError(f"the values of a completion are a list, not of shape {found.shape}")
    return found


def _array(values: Any, dtype: type[Any]) -> npt.NDArray[Any]:
    """Copy a number, a list, an array or a tensor."""
    if values is None:
        return np.empty(0, dtype)
    if hasattr(values, "detach"):  # torch's, which numpy takes from the CPU only, and not in bfloat16
        values = values.detach().cpu()
        values = (values.float() if dtype is np.float32 else values).numpy()
    found = np.asarray(values)
    if dtype is np.float32:
        found = found.astype(np.float64)  # None becomes NaN
    elif found.size and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() > _MAX_U4):
        raise ValueError("token ids are whole numbers from 0")
    if found.ndim > 1:
        raise ValueError(f"the values of one rollout are a list, not of shape {found.shape}")
    with np.errstate(over="ignore"):
        return found.astype(dtype)
