"""The README is true: its snippets run on a sealed trace, and it names every command and only options that exist."""

import importlib
import re
from pathlib import Path

import click
import pytest

from helpers.factories import make_engine, make_tables, write_trace
from tracekit.cli.main import COMMANDS

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["pyarrow", "polars", "duckdb"])
def test_snippets_read_a_sealed_trace(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_trace(tmp_path / "trace.arrow", [make_tables(3, 5, engine=make_engine())])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert capsys.readouterr().out.strip()
    if "tokens" in names:
        assert len(names["tokens"]) == 15  # type: ignore[arg-type]


def test_every_command_is_in_the_readme_and_has_help() -> None:
    for name, line in COMMANDS.items():
        command = importlib.import_module(f"tracekit.cli.{name}").command
        assert isinstance(command, click.Command) and command.help and line
        assert f"tracekit {name}" in README or f"`{name}`" in README, name


def test_every_option_in_the_readme_exists() -> None:
    known = {"--no-deps"}  # pip's
    for name in COMMANDS:
        command = importlib.import_module(f"tracekit.cli.{name}").command
        commands = [command, *getattr(command, "commands", {}).values()]
        known |= {option for c in commands for p in c.params for option in p.opts}
    named = set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", README))
    assert named <= known, named - known
