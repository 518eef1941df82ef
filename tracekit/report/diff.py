"""What `tracekit diff` says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tracekit.diagnose.diff import Difference
from tracekit.diagnose.gate import Checked
from tracekit.diagnose.plain import plain
from tracekit.diagnose.result import Result
from tracekit.plural import plural
from tracekit.report.check import rule_line, rules_of
from tracekit.report.columns import side_by_side
from tracekit.report.grid import grid

_OUTCOMES = {
    "equal": "EQUAL: every compared log-probability is the same to the bit",
    "within noise": "WITHIN NOISE: the two differ by no more than both replays call noise",
    "beyond noise": "MOVED: the two differ by more than both replays call noise",
    "differs": "DIFFERENT: not equal to the bit; --model tells whether by more than noise",
    "nothing compared": "NOTHING COMPARED: no completion begins with the same token and a log-probability in both",
}
_METRICS = {
    "ratio_mean": ("mean ratio", ".4f"),
    "mismatch_kl": ("mismatch_kl (nats)", ".2e"),
    "d_abs_mean": ("mean |d| (nats)", ".2e"),
    "d_abs_max": ("largest |d| (nats)", ".2e"),
    "clip_rate": ("clip rate", ".1%"),
    "bit_equal": ("bit-equal tokens", ".0%"),
}


def to_facts(
    paths: Sequence[str],
    difference: Difference,
    settings: Mapping[str, tuple[Any, Any]],
    results: Sequence[Result],
    checked: Sequence[Checked] = (),
    *,
    lost: bool,
) -> dict[str, Any]:
    """Return what was found as JSON types; `replays` is empty where the traces were not replayed."""
    return {
        "paths": list(paths),
        "difference": plain(difference),
        "settings": {name: list(values) for name, values in settings.items()},
        "replays": [result.to_dict() for result in results],
        "rules": rules_of(checked),
        "lost": lost,
    }


def to_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for the terminal; `facts` as `to_facts` gives them."""
    found = facts["difference"]
    yield _OUTCOMES[found["outcome"]]
    if found["num_pairs_beyond"] is not None:
        yield (
            f"  {found['num_pairs_beyond']} of {plural(found['num_pairs'], 'pair')} have a token beyond noise; equal "
            f"engines show as many with probability {found['chance']:.2g}"
        )
    for name, what in (("first_beyond", "beyond noise"), ("first_not_equal", "not bit-equal")):
        if found[name]:
            yield f"  first {what}: {_place(found[name])}"
    yield ""
    yield (
        f"{plural(found['num_pairs'], 'pair')} of requests with the same prompt ({found['num_only_first']} only in the "
        f"first, {found['num_only_second']} only in the second), {found['num_same_ids']} with the same completion"
    )
    yield (
        f"{plural(found['num_tokens'], 'token')} compared ({found['lens']} logprobs), {found['num_tokens_after']} of "
        "the first behind an id that differs"
    )
    yield from _metrics(found["metrics"])
    if facts["replays"]:
        yield ""
        yield from side_by_side(dict(zip(("first", "second"), facts["replays"], strict=True)))
    yield ""
    if facts["settings"]:
        cells = [[name, *map(_value, values)] for name, values in facts["settings"].items()]
        yield from grid([["setting", "first", "second"], *cells])
    else:
        yield "no setting that is compared differs"
    yield from map(rule_line, facts["rules"])
    if facts["lost"]:
        yield "data was lost in these traces: what is missing could not be compared"


def _metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    for name, (title, form) in _METRICS.items():
        value = metrics[name]
        yield f"  {title:24}{'-' if value is None else format(value, form)}"


def _place(token: Mapping[str, Any]) -> str:
    return (
        f"output token {token['output_index']} of request {token['request']} (engine {token['engine']}; request "
        f"{token['other_request']} of the second): {token['first']:.6f} and {token['second']:.6f}, d {token['d']:+.2e}"
    )


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
