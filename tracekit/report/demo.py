"""The demo on one screen: the two runs side by side, and what each verdict says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tracekit.diagnose.result import Result
from tracekit.report.columns import side_by_side
from tracekit.report.words import cause

RUNS = {"defaults": "V1 defaults", "parity": "parity settings"}


def story(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines.

    Args:
        facts: what `tracekit demo --json` prints: `vllm`, `model`, `sampling`, `parity_settings`, and the replay of
            each run as `tracekit replay --json` prints it.
    """
    sampling = facts["sampling"]
    yield (
        f"vLLM {facts['vllm']}, {facts['model']}, {facts['defaults']['data']['num_rollouts']} rollouts of "
        f"{sampling['max_tokens']} tokens at most, temperature {sampling['temperature']}, top-p {sampling['top_p']}."
    )
    yield "The trainer (bf16 body, fp32 head) expects processed logprobs; ratio = trainer / engine."
    yield ""
    yield from table(facts)
    for name in RUNS:
        yield ""
        yield f"{name}: {cause(Result.from_dict(facts[name]).verdict)}"
    changed = ", ".join(f"{key}={_value(value)}" for key, value in facts["parity_settings"].items())
    yield ""
    yield f"Changed between the two: {changed}."
    yield "The first moves these numbers; the others matter once weights change while rollouts run."


def table(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table alone; `facts` as in `story`."""
    return side_by_side({title: facts[name] for name, title in RUNS.items()})


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
