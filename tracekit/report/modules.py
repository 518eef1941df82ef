"""The table of modules: each against its own noise, where the engine was probed."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.diagnose.modules import Modules
from tracekit.plural import plural

_TOP = 5


def module_lines(modules: Modules | None) -> Iterator[str]:
    """Yield the lines; none where nothing was probed."""
    if modules is None:
        return
    yield (
        f"{plural(len(modules.modules), 'module')} replayed on {plural(modules.num_positions, 'recorded position')} of "
        f"{plural(modules.num_requests, 'request')}; error over the noise of {modules.dtype}, excess over its kind's:"
    )
    yield f"{'module':<34}{'mean':>10}{'worst':>10}{'excess':>10}"
    for module in modules.modules[: max(_TOP, len(modules.suspects))][: 3 * _TOP]:
        mark = "  <" if module.name in modules.suspects else ""
        yield f"{module.name:<34}{module.ratio:>10.3g}{module.worst:>10.3g}{module.excess:>10.3g}{mark}"
    for boundary in modules.graft:
        yield f"engine's state put in at layer {boundary.at}: mean |d| {boundary.d_abs_mean:.3g} nats left"
