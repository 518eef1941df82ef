"""`python -m tracekitd`: the sidecar that writes what recorders send."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tracekit.errors import EXIT_FAILED, TracekitError
from tracekitd.config import Config


def main(argv: list[str] | None = None) -> None:
    """Run a daemon until SIGTERM or SIGINT and exit: 0, 1 failed, 2 usage, 3 sealed but data was lost."""
    parser = argparse.ArgumentParser(prog="tracekitd", description="Write what tracekit's recorders send to a spool.")
    parser.add_argument("--listen", required=True, metavar="unix:PATH", help="the socket, in a folder of yours alone")
    parser.add_argument("--spool", required=True, type=Path, metavar="DIR", help="folder of the hot segments")
    parser.add_argument("--seal", type=Path, metavar="OUT", help="at the end, make this trace and remove the spool")
    parser.add_argument("--grace", type=float, default=Config.grace_secs, metavar="SECS", help="wait for open engines")
    parser.add_argument("--attached", action="store_true", help="end at a line on standard input, not at signals")
    given = parser.parse_args(argv)
    from tracekitd.server import run

    try:
        sys.exit(run(Config(given.listen, given.spool, given.seal, given.grace, given.attached)))
    except TracekitError as error:
        print(f"tracekitd: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"tracekitd: interrupted, the spool stays: {given.spool}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
