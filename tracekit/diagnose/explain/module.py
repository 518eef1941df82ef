"""A module of the model whose output its recorded input does not explain."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.diagnose.data import INFERENCE_PATH
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain import checkpoint, head
from tracekit.diagnose.explain.place import Place, place_of_onsets, place_under_lens
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.modules import BETWEEN, Modules

CODE: Code = "module"
HEAD = "lm_head"
ROTARY = "rotary_emb"
EXPLAINED = 0.25  # of the error of attention that another base of the rotary embedding leaves
MOST_KEPT = 0.8  # of all modules; more are another checkpoint
MOST = 5  # modules that are named; faults of more are a kind, or other weights


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the kinds of modules that are off in all layers, and the single modules that are off by themselves."""
    modules = evidence.run.modules
    if modules is None or not (modules.suspects or modules.kinds):
        return []
    by_name = {module.name: module for module in modules.modules}
    alone = [name for name in modules.suspects if by_name[name].kind not in modules.kinds]
    if any(e.code == head.CODE for e in evidence.found):
        alone = [name for name in alone if name != HEAD]
    rotary = [ROTARY] if modules.rotary is not None and modules.rotary.left < EXPLAINED else []
    names = [*rotary, *(f"all of kind {kind}" for kind in modules.kinds), *alone]
    if not names:
        return []
    numbers = {"num_suspects": float(len(names)), "num_modules": float(len(modules.modules))}
    if modules.rotary is not None and rotary:
        numbers |= {"base": modules.rotary.base, "fitted": modules.rotary.fitted, "left": modules.rotary.left}
    if not modules.kinds:
        worst = by_name[alone[0]]
        numbers |= {"excess": worst.excess, "ratio": worst.ratio, "worst": worst.worst}
        if modules.graft:
            before, behind = modules.graft
            numbers |= {"before": before.d_abs_mean, "behind": behind.d_abs_mean}
    nan, place = float("nan"), _place(evidence)
    found = Explanation(CODE, INFERENCE_PATH, margin=nan, share=nan, **place, numbers=numbers, names=names[:MOST])
    return [*_kept(evidence, modules, place), found]


def _kept(evidence: Evidence, modules: Modules, place: Place) -> Iterator[Explanation]:
    """The weights that some modules are known to have, in place of those that they are scored with."""
    if any(e.code in (checkpoint.KEPT, checkpoint.OTHER) for e in evidence.found):
        return  # told by fingerprints, tensor by tensor
    nan, num = float("nan"), sum(module.kind != BETWEEN for module in modules.modules)
    for folder in sorted({module.folder for module in modules.kept}):
        names = [module.name for module in modules.kept if module.folder == folder]
        code = checkpoint.OTHER if len(names) > MOST_KEPT * num else checkpoint.KEPT
        numbers = {"modules": float(len(names)), "of": float(num)}
        names = [modules.scored_with, folder, *names]
        yield Explanation(code, INFERENCE_PATH, margin=nan, share=nan, **place, numbers=numbers, names=names)


def _place(evidence: Evidence) -> Place:
    """The first token that a row in which the module is off leads to, or an earlier onset of the run."""
    run = evidence.run
    numbers = {(info.engine, info.request): i for i, info in enumerate(run.rollouts)}
    reached = np.zeros(run.token_id.size, dtype=bool)
    assert run.modules is not None
    for start in run.modules.starts:
        rollout = numbers.get((start.engine, start.request))
        if rollout is not None:
            reached |= (run.rollout == rollout) & (run.position > start.position)
    proved = place_under_lens(evidence, reached)
    seen = place_of_onsets(evidence.rollouts)
    if proved["since"] is None or seen["since"] is None:
        return proved if seen["since"] is None else seen
    return seen if seen["since"].engine_step < proved["since"].engine_step else proved
