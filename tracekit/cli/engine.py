"""``tracekit engine``: install and list engine environments."""

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

    with Talk() as talk:
        found = env.ensure(name, talk, torch_index=torch_index)
    click.echo(f"{found.name}: vLLM {found.vllm_version} ({found.variant}) {found.python}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_command(as_json: bool) -> None:
    """List the engine environments."""
    from tracekit.engines import env

    rows = env.list_envs()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    columns = ("name", "vllm", "variant", "state", "recorder", "path")
    table = [columns, *(tuple(str(row[column] or "-") for column in columns) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
