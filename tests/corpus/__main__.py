"""python -m corpus all|make|score|page|list [NAME...]: recordings, what replay says of them, and docs/accuracy.md.

`page` writes what was scored with this code before; names are patterns, all rows for reporting where there is none.
"""

from __future__ import annotations

import fnmatch
import sys

from corpus.table import CASES


def main(verb: str, *patterns: str) -> None:
    patterns = patterns or ("report-*",)
    chosen = [c for c in CASES if any(fnmatch.fnmatch(c.name, p) for p in patterns)]
    if verb == "list":
        for case in chosen:
            print(case.name, case.kind, case.truth.layer, *case.truth.causes, sep="\t")
        return
    if verb in ("make", "all"):
        from corpus.making import make

        make(chosen)
    from corpus.judging import mark
    from corpus.page import write
    from corpus.scoring import kept, score, talk

    if verb in ("score", "all"):
        said = score(chosen, talk)
        for case in chosen:
            if case.name in said and (miss := mark(case, said[case.name]).miss):
                print(case.name, case.truth.layer, *case.truth.causes, case.truth.first, miss, sep=" | ")
    if verb in ("page", "all"):
        write(CASES, kept(CASES))


if __name__ == "__main__":
    main(*sys.argv[1:])
