"""Sampled ids that the tokenizer does not have: rows of a padded head that the engine does not mask."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation

CODE: Code = "ids beyond the tokenizer"


def detect(evidence: Evidence) -> list[Explanation]:
    """Count and name them, where the tokenizer is known."""
    run, size = evidence.run, evidence.facts.tokenizer_size
    tokens = np.flatnonzero(run.token_id >= size) if size else np.empty(0, np.int64)
    if not tokens.size:
        return []
    ids, counts = np.unique(run.token_id[tokens], return_counts=True)
    nan = float("nan")
    return [
        Explanation(
            CODE,
            SEMANTIC,
            margin=nan,
            share=nan,
            **place_of(evidence, tokens),
            numbers={"count": float(tokens.size), "size": float(size or 0)},
            names=[str(i) for i in ids[np.argsort(-counts, kind="stable")]],
        )
    ]
