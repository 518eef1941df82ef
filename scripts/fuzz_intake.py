"""Fuzz what the daemon does with one message off the wire: `python scripts/fuzz_intake.py [atheris' options] [CORPUS]`.

Needs atheris, which is no dependency: pip install atheris. An input that ends in anything but a batch or a sentence is
written to a file named crash-…; put it into tests/golden/frames, where a test runs it for ever.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
with atheris.instrument_imports(include=["helpers", "tracekit", "tracekitd"]):
    from helpers.intake import outcome


def look(data: bytes) -> None:
    outcome(data)
    outcome(data, mend=True)


if __name__ == "__main__":
    atheris.Setup(sys.argv, look)
    atheris.Fuzz()
