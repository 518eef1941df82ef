"""`tracekit daemon`: tracekitd in the foreground."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("daemon")
@click.option("--listen", required=True, metavar="unix:PATH", help="The socket, in a folder of yours alone.")
@click.option("--spool", required=True, type=click.Path(path_type=Path), help="Folder of the hot segments.")
@click.option("--seal", type=click.Path(path_type=Path), help="At the end, make this trace and remove the spool.")
@click.option("--grace", default=10.0, show_default=True, metavar="SECS", help="How long to wait for open engines.")
def command(listen: str, spool: Path, seal: Path | None, grace: float) -> int:
    """Run tracekitd, the sidecar that writes traces, until SIGTERM or Ctrl-C.

    Exits with 3 when it sealed a trace that is not complete.
    """
    from tracekitd.config import Config
    from tracekitd.server import run

    return run(Config(listen=listen, spool=spool, seal=seal, grace_secs=grace))
