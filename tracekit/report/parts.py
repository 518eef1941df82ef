"""The table of parts: what makes recorded and replayed values differ, where the engine ran again."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.diagnose.parts import BATCH, CACHING, DECODING, KERNELS, PRECISION, STATE, Parts
from tracekit.diagnose.reran import ALONE, COMPOSED, PREFILLED, UNCACHED, RerunOf
from tracekit.plural import plural

_WAYS = {COMPOSED: "as recorded", UNCACHED: "uncached", ALONE: "one at a time", PREFILLED: "as prompts"}
_WORDS = {
    STATE: "recorded − re-run: state",
    CACHING: "− nothing cached: caching",
    BATCH: "− alone: batch",
    DECODING: "− as a prompt: decoding",
    KERNELS: "− scorer in {dtype}: kernels, weights",
    PRECISION: "− scorer in float32: precision",
}


def parts_lines(parts: Parts | None) -> Iterator[str]:
    """Yield the lines; none where no engine ran again."""
    if parts is None:
        return
    for own in parts.engines:
        yield from _engine_lines(own)
    yield f"{'part (nats)':<40}{'tokens':>8}{'not 0':>8}{'mean':>12}{'mean |.|':>12}{'largest':>12}"
    for part in parts.parts:
        label = _WORDS[part.name].format(dtype=parts.scorer_dtype)
        if part.name == STATE and not all(own.is_same for own in parts.engines):
            label = "recorded − re-run: that, or state"
        yield (
            f"{label:<40}{part.num_tokens:>8}{part.num_nonzero:>8}{part.mean:>+12.3g}{part.mean_abs:>12.3g}"
            f"{part.max_abs:>12.3g}"
        )
    yield f"the parts of a token add up to recorded − its last rung; residual at most {parts.residual_max:.3g} nats"


def _engine_lines(own: RerunOf) -> Iterator[str]:
    if not own.num_steps and COMPOSED in own.stopped:
        yield f"engine {own.engine} was not run again: {own.stopped[COMPOSED]}; the scorer's parts stand alone"
        return
    yield (
        f"engine {own.engine} ran again in vLLM {own.version}: {plural(own.num_steps, 'step')} of "
        f"{plural(own.num_requests, 'request')} as recorded, {plural(own.num_tokens, 'token')} in all; {own.secs:.0f} s"
    )
    for how, reason in own.stopped.items():
        yield f"  {_WAYS[how]} it could not be played to its end: {reason}"
    if own.num_moved:
        yield f"  {plural(own.num_moved, 'prefix hit lies', 'prefix hits lie')} in other blocks than recorded"
    for what in own.unlike:
        yield f"  not the recorded engine: {what}"
