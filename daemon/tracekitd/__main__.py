"""`python -m tracekitd`: the sidecar that writes what recorders send."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tracekit.errors import EXIT_FAILED, EXIT_OK, TracekitError
from tracekitd.config import Config, read_config
from tracekitd.log import say
from tracekitd.options import OPTIONS


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line of `tracekitd`."""
    made = argparse.ArgumentParser(
        prog="tracekitd",
        description="Write what tracekit's recorders send to a spool, until SIGTERM or Ctrl-C.",
        epilog="Exits with 0, 1 failed, 2 usage, 3 sealed but data was lost.",
    )
    for option in OPTIONS:
        if not option.metavar:
            made.add_argument(f"--{option.name}", action="store_true", default=None, help=option.help)
            continue
        action = "append" if option.many else "store"
        made.add_argument(f"--{option.name}", action=action, type=option.kind, metavar=option.metavar, help=option.help)
    return made


def load(given: dict[str, Any]) -> Config:
    """Return the settings of options and of the file that they may name.

    Raises:
        UsageError: they cannot be.
    """
    said = {name: value for name, value in given.items() if value is not None}
    said.pop("check_config", None)
    path = said.pop("config", None)
    in_file = {} if path is None else read_config(Path(path))
    return Config.of({name.replace("-", "_"): value for name, value in in_file.items()} | said, path or "the command")


def serve(given: dict[str, Any]) -> int:
    """Do what options say; return the exit code.

    Raises:
        TracekitError: it cannot be done.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or every stranger's failed handshake is a line of the log
    from tracekitd.server import check, run

    config = load(given)
    if given["check_config"]:
        check(config)
        print(json.dumps(asdict(config), indent=2, default=str))
        return EXIT_OK
    return run(config, (lambda: load(given)) if given["config"] else None)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a daemon until SIGTERM or SIGINT and exit: 0, 1 failed, 2 usage, 3 sealed but data was lost."""
    given = vars(parser().parse_args(argv))
    try:
        sys.exit(serve(given))
    except TracekitError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted, what was recorded stays in the spool")
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
