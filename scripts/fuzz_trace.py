"""Fuzz what reads a trace: `python scripts/fuzz_trace.py [atheris' options] [CORPUS]`.

Needs atheris, which is no dependency: pip install atheris. The inputs are files, sealed ones and segments of a spool;
`tests/golden/traces` has some to begin with. An input that ends in anything but rows or a sentence, or in rows that
nobody wrote, is written to a file named crash-…; put it into that folder, where a test reads it for ever.
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
with atheris.instrument_imports(include=["helpers", "tracekit"]):
    from helpers.damaged import outcome

FOLDER = Path(tempfile.mkdtemp(prefix="tk-"))


def look(data: bytes) -> None:
    outcome(data, FOLDER)


if __name__ == "__main__":
    atheris.Setup(sys.argv, look)
    atheris.Fuzz()
