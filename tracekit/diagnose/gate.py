"""Rules over a result, for CI: `mismatch_kl>1e-3` fires where the result's number is larger."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from tracekit.diagnose.metrics import Metrics
from tracekit.diagnose.plain import words_of
from tracekit.errors import UsageError

DEFAULT = "layer!=none"  # what is asked where nobody gives a rule
State = Literal["holds", "fires", "cannot tell"]

_OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_TOP = ("outcome", "exit_code")  # of a result, and not of its verdict
_RULE = re.compile(r"\s*([a-z_][\w.]*)\s*(<=|>=|==|!=|<|>)\s*(\S(?:.*\S)?)\s*")


@dataclass(frozen=True)
class Predicate:
    """One rule: it fires where `number operator bound` is true.

    Attributes:
        text: as it was given.
        path: of the field in the result's JSON, dots between the names.
        sign: one of <, <=, >, >=, == and !=.
        bound: a number, or for == and != a word.
    """

    text: str
    path: str
    sign: str
    bound: float | str


@dataclass(frozen=True)
class Checked:
    """What a result says to one rule; `value` is None where it has none."""

    predicate: Predicate
    state: State
    value: float | str | None


def parse_predicate(text: str, metrics: str = "verdict.before", others: str = "verdict") -> Predicate:
    """Read a rule.

    A name is a metric (`mismatch_kl`), another field of `others` (`layer`, `after.clip_rate`), or the path of any field
    (`data.num_tokens`, `verdict.noise.detectable`).

    Args:
        text: the rule.
        metrics: path of the metrics that a bare name means.
        others: path of what holds every other bare name.

    Raises:
        UsageError: it is not one.
    """
    found = _RULE.fullmatch(text)
    if not found:
        raise UsageError(f"this is not a rule like mismatch_kl>1e-3 or layer==semantic: {text}")
    name, sign, bound = found.groups()
    value: float | str = bound
    try:
        value = float(bound)
    except ValueError:
        if sign not in ("==", "!="):
            raise UsageError(f"{bound!r} is not a number, and only numbers can be larger or smaller: {text}") from None
    if value != value:
        raise UsageError(f"nothing compares with NaN: {text}")
    return Predicate(text.strip(), _path(name, metrics, others), sign, value)


def check(result: Mapping[str, Any], predicate: Predicate, kinds: Mapping[str, Any] | None = None) -> Checked:
    """Apply a rule to a result in JSON's types.

    A field that is null cannot be judged, and that is not a pass.

    Args:
        result: the value.
        predicate: the rule.
        kinds: the types of the result's fields, which say where the rule's word is none that can be there.

    Raises:
        UsageError: the result has no such field, or one that cannot be compared with the rule's bound.
    """
    value: Any = result
    first, *rest = path = predicate.path.split(".")
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            raise UsageError(f"a result has no {predicate.path}: {predicate.text}")
        value = value[name]
    if value is None:
        return Checked(predicate, "cannot tell", None)
    if isinstance(value, list | Mapping):
        raise UsageError(f"{predicate.path} is not one number or word: {predicate.text}")
    if isinstance(value, str) != isinstance(predicate.bound, str):
        raise UsageError(f"{predicate.path} is {value!r}, which does not compare with the bound: {predicate.text}")
    words = words_of((kinds or {}).get(first), rest)
    if words and predicate.bound not in words:
        # a rule that can never fire would pass everything
        raise UsageError(f"{predicate.path} is one of {', '.join(words)}: {predicate.text}")
    fires = _OPERATORS[predicate.sign](value, predicate.bound)
    return Checked(predicate, "fires" if fires else "holds", value)


def _path(name: str, metrics: str, others: str) -> str:
    first, _, rest = name.partition(".")
    if others == "verdict" and name in _TOP:
        return name
    if name in {field.name for field in fields(Metrics)}:
        return f"{metrics}.{name}"
    if not rest or first == "after":
        return f"{others}.{name}"
    return name
