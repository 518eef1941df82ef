"""`tracekit engine`: install and list engine environments."""

from __future__ import annotations

import json

import click

from tracekit.engines.talk import Talk


@click.group("engine")
def command() -> None:
    """Install and list engine environments.

    An engine environment is a Python of its own with one version of vLLM and the recorder, kept in the cache folder
    ($TRACEKIT_CACHE, else ~/.cache/tracekit): CPU builds where there is no GPU, the ordinary vllm where there is one.
    """


@command.command("install")
@click.argument("name", metavar="v0|v1|latest")
@click.option("--torch-index", envvar="TRACEKIT_TORCH_INDEX", metavar="URL", help="An index with +cpu builds of torch.")
def install(name: str, torch_index: str | None) -> None:
    """Build the environment NAME (v0: vLLM 0.8.5, v1: 0.18.1, latest: 0.32.0), or update the recorder in it."""
    from tracekit.engines import env
    from tracekit.report.engines import installed_line

    with Talk() as talk:
        found = env.ensure(name, talk, torch_index=torch_index)
    click.echo(installed_line(found.name, found.vllm_version, found.variant, found.python))


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_command(as_json: bool) -> None:
    """List the engine environments."""
    from tracekit.engines.listing import list_envs
    from tracekit.report.engines import engine_lines

    rows = list_envs()
    click.echo(json.dumps(rows, indent=1) if as_json else "\n".join(engine_lines(rows)))
