"""The trainer's model folder describes another model, or makes other ids of a text: lint found it."""

from __future__ import annotations

from tracekit.diagnose.data import INFERENCE_PATH, SEMANTIC, Layer
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explanation import Code, Explanation

# rule of lint -> cause
RULES: dict[str, tuple[Code, Layer]] = {
    "trainer-tokenizer-differs": ("trainer tokenizer differs", SEMANTIC),
    "trainer-config-differs": ("trainer config differs", INFERENCE_PATH),
}


def detect(evidence: Evidence) -> list[Explanation]:
    """Take over what lint found in the trainer's folder, one cause per rule."""
    found: list[Explanation] = []
    if not evidence.facts.trainer_config:  # what lint compared with is the folder that was scored
        return found
    for rule, (code, layer) in RULES.items():
        noted = [one for one in evidence.facts.noted if (one.source, one.id) == ("lint", rule)]
        if noted:
            names = ["trainer", *dict.fromkeys(one.what for one in noted)]
            numbers = {"count": float(len(noted))}
            found.append(Explanation(code, layer, float("nan"), float("nan"), numbers=numbers, names=names))
    return found
