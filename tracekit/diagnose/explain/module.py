"""A module of the model whose output its recorded input does not explain."""

from __future__ import annotations

from tracekit.diagnose.data import INFERENCE_PATH
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explanation import Code, Explanation

CODE: Code = "module"
MOST = 5  # modules that are named; faults of more are a kind, or other weights


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the modules, or the kinds of modules, that are off by themselves, where the engine was probed."""
    modules = evidence.run.modules
    if modules is None or not (modules.suspects or modules.kinds):
        return []
    by_name = {module.name: module for module in modules.modules}
    named = modules.suspects[:MOST]
    numbers = {"num_suspects": float(len(modules.suspects)), "num_modules": float(len(modules.modules))}
    if named:
        worst = by_name[named[0]]
        numbers |= {"excess": worst.excess, "ratio": worst.ratio, "worst": worst.worst}
    if modules.graft and named:
        before, behind = modules.graft
        numbers |= {"before": before.d_abs_mean, "behind": behind.d_abs_mean}
    nan = float("nan")
    return [
        Explanation(
            CODE,
            INFERENCE_PATH,
            margin=nan,
            share=nan,
            numbers=numbers,
            names=named or [f"all of kind {kind}" for kind in modules.kinds],
        )
    ]
