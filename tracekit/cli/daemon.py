"""`tracekit daemon`: tracekitd in the foreground."""

from __future__ import annotations

from typing import Any

import click

from tracekitd.options import OPTIONS


def _options() -> list[click.Parameter]:
    return [
        click.Option([f"--{o.name}"], type=o.kind, multiple=o.many, metavar=o.metavar, help=o.help)
        if o.metavar
        else click.Option([f"--{o.name}"], is_flag=True, default=None, help=o.help)
        for o in OPTIONS
    ]


def _run(**given: Any) -> int:
    """Run tracekitd, the sidecar that writes traces, until SIGTERM or Ctrl-C.

    Exits with 3 when it sealed a trace that is not complete.
    """
    from tracekitd.__main__ import serve

    return serve(given | {"listen": given["listen"] or None})


command = click.Command("daemon", params=_options(), callback=_run, help=_run.__doc__)
