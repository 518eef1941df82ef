"""All cases, one row each."""

from __future__ import annotations

from corpus.rows import clean, composite, more, path, second, semantic, short, weights
from corpus.rows.whys import with_why

ROWS = (*semantic.ROWS, *weights.ROWS, *path.ROWS, *composite.ROWS, *clean.ROWS, *more.ROWS, *second.ROWS, *short.ROWS)
CASES = [with_why(case) for case in ROWS]

assert len({case.name for case in CASES}) == len(CASES), "two cases have one name"
