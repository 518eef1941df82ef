"""The heat map of modules: a row is a kind, a column a layer, a colour how far a module is off what its kind shows."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.diagnose.modules import LINE, ModuleNoise, Modules, layer_of
from tracekit.plural import plural
from tracekit.report.page.markup import esc, folded, table

STEPS = (1.5, 2.5, LINE, 8.0, 32.0, 128.0)  # of excess, where colours change; a suspect is above `LINE`


def heat_section(modules: Modules | None) -> Iterator[str]:
    """Yield the section; nothing where nothing was probed."""
    if modules is None:
        return
    by_name = {module.name: module for module in modules.modules}
    layers = sorted({layer for name in by_name if (layer := layer_of(name)) is not None})
    kinds = sorted({m.kind for m in modules.modules if layer_of(m.name) is not None}, key=_order)
    off = ", ".join(modules.suspects) or "none"
    yield '<section id="modules"><h2>Modules</h2>'
    yield (
        f"<p>{plural(len(by_name), 'module')} replayed on {plural(modules.num_positions, 'recorded position')} of "
        f"{plural(modules.num_requests, 'request')}, in {esc(modules.dtype)}. A colour is its error over its kind's. "
        f"Off by themselves, {LINE:g} times and more: <strong>{esc(off)}</strong>.</p>"
    )
    if modules.kinds:
        yield f"<p>Off as a whole kind: <strong>{esc(', '.join(modules.kinds))}</strong>.</p>"
    head = "".join(f'<th scope="col">{layer}</th>' for layer in layers)
    yield '<div class="wide"><table class="heat"><caption>Columns are layers</caption>'
    yield f"<thead><tr><td></td>{head}</tr></thead><tbody>"
    for kind in kinds:
        cells = "".join(_cell(by_name.get(f"layers.{layer}.{kind}"), modules) for layer in layers)
        yield f'<tr><th scope="row">{esc(kind)}</th>{cells}</tr>'
    for name in sorted(name for name in by_name if layer_of(name) is None):
        yield f'<tr><th scope="row">{esc(name)}</th>{_cell(by_name[name], modules, len(layers))}</tr>'
    yield "</tbody></table></div>"
    yield f'<p class="key" aria-hidden="true">{_key()}</p>'
    rows = [(m.name, f"{m.ratio:.3g}", f"{m.worst:.3g}", f"{m.excess:.3g}") for m in modules.modules]
    yield folded("Modules as a table", table("The worst first", ("module", "mean", "worst", "excess"), rows))
    if modules.graft:
        left = [(f"layer {b.at}", f"{b.d_abs_mean:.3g}") for b in modules.graft]
        yield folded("Engine's state put in", table("mean |d| that is left, nats", ("at", "mean |d|"), left))
    yield "</section>"


def _cell(module: ModuleNoise | None, modules: Modules, wide: int = 1) -> str:
    if module is None:
        return "<td></td>"
    level = sum(module.excess >= step for step in STEPS)
    kind = f"h{level}" + (" suspect" if module.name in modules.suspects else "")
    said = f"{module.name}: {module.excess:.3g} times its kind"
    return f'<td class="{kind}" colspan="{max(wide, 1)}" title="{esc(said)}"><span>{module.excess:.3g}</span></td>'


def _key() -> str:
    bounds = ("1", *(f"{step:g}" for step in STEPS))
    return "".join(f'<span class="h{i}">{low}×</span>' for i, low in enumerate(bounds))


def _order(kind: str) -> int:
    known = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    return known.index(kind) if kind in known else len(known)
