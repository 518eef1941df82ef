"""The text format of Prometheus, as far as counters and gauges need it.

Our own and not prometheus_client's: we do not depend on that package, and this is all that is read of the format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tracekit.errors import NotAMetricError

_LABELS = r'(?:[^"}]|"(?:[^"\\]|\\.)*")*'
_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(" + _LABELS + r")\})?[ \t]+(\S+)(?:[ \t]+-?[0-9.]+)?(?:[ \t]+#.*)?"
)
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n"}  # any other character stands for itself


@dataclass(frozen=True)
class Sample:
    """One line: a value under a name and labels.

    Example:
        Sample("vllm:prompt_tokens_total", {"engine": "0", "model_name": "policy"}, 4096.0)
    """

    name: str
    labels: dict[str, str]
    value: float


def parse(text: str) -> Iterator[Sample]:
    """Yield the samples of an exposition, in its order.

    Raises:
        NotAMetricError: a line is neither a sample nor a comment.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _SAMPLE.fullmatch(line.strip())
        if found is None:
            raise NotAMetricError(number, line)
        name, labels, value = found.groups()
        try:
            yield Sample(name, _labels(labels or ""), float(value))
        except ValueError:
            raise NotAMetricError(number, line) from None


def _labels(text: str) -> dict[str, str]:
    labels, at = {}, 0
    while at < len(text.rstrip()):
        found = _LABEL.match(text, at)
        if found is None:
            raise ValueError(text)
        labels[found[1]] = _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), found[2])
        at = found.end()
    return labels
