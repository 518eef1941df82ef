"""README.md and docs/ are true: snippets run, commands and options exist where they are named, links lead somewhere."""

import importlib
import json
from pathlib import Path

import click
import pytest

from helpers import pages
from helpers.factories import make_engine, make_tables, write_trace
from helpers.pages import PAGES, ROOT
from scripts import gen_trace_format
from tracekit.audit.lint.from_file import read_arguments, subject_of
from tracekit.cli.main import COMMANDS, GROUPS
from tracekit.report.demo import table

README = (ROOT / "README.md").read_text()


def click_command(name: str, word: str = "") -> click.Command:
    command: click.Command = importlib.import_module(f"tracekit.cli.{name}").command
    return command.commands.get(word, command) if isinstance(command, click.Group) else command


@pytest.mark.parametrize("snippet", pages.blocks(README, "python"), ids=["pyarrow", "polars", "duckdb"])
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_is_only_shown_compiles_and_imports_what_exists(page: Path) -> None:
    for snippet in pages.blocks(page.read_text(), "py"):
        compile(snippet, str(page), "exec")
        exec("\n".join(line for line in snippet.splitlines() if line.startswith(("import ", "from "))))


def test_the_engine_config_shown_is_one_that_lint_reads(tmp_path: Path) -> None:
    (config,) = pages.blocks((ROOT / "docs" / "checking.md").read_text(), "toml")
    (tmp_path / "engine.toml").write_text(config)
    _, unread = subject_of(read_arguments(tmp_path / "engine.toml"), "v1", "engine.toml")
    assert not unread


def test_every_command_is_in_the_readme_and_has_help() -> None:
    for name, line in COMMANDS.items():
        command = click_command(name)
        assert command.help and line
        assert f"`tracekit {name}`" in README, name
    assert sum(map(len, GROUPS.values())) == len(COMMANDS)
    assert {path.stem for path in (ROOT / "tracekit" / "cli").glob("*.py")} >= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists_where_it_is_named(page: Path) -> None:
    text = page.read_text()
    assert not pages.unknown_commands(text, set(COMMANDS))
    for name, word, option in pages.options(text, set(COMMANDS)):
        if not name:
            assert option in ("--help", "--version"), f"{option} is named before any command"
            continue
        known = {o for parameter in click_command(name, word).params for o in parameter.opts}
        assert option in known | {"--help"}, f"tracekit {name} has no option {option}"


def test_an_option_of_another_command_is_found() -> None:
    text = "`tracekit doctor --only 1`, or `--live FILE`.\n\n```\ntracekit cat t --head 5 -- --x\npip --no-deps\n```\n"
    assert list(pages.options(text, set(COMMANDS))) == [
        ("doctor", "", "--only"),
        ("doctor", "", "--live"),
        ("cat", "t", "--head"),
    ]
    assert pages.unknown_commands("```\n.venv/bin/tracekit tac t\n```\n", set(COMMANDS)) == ["tac"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in pages.links(page):
        assert path.exists(), path
        assert not anchor or anchor in pages.anchors(path), f"{path}#{anchor}"


def test_files_that_docs_name_exist() -> None:
    assert not [line for page in PAGES for line in pages.missing_files(page.read_text())]


def test_the_readme_is_short_and_shows_the_demo_of_a_real_run() -> None:
    assert len(README.splitlines()) <= 150
    shown = README.partition("<!-- demo:")[2].partition("<!-- /demo -->")[0]
    (block,) = pages.blocks(shown.partition("\n")[2], "")
    facts = json.loads((ROOT / "docs" / "demo.json").read_text())
    assert block == "".join(f"{line}\n" for line in table(facts))
    assert README[: README.index("<!-- /demo -->")].count("\n") < 30  # the first screen


def test_the_page_of_the_trace_format_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gen_trace_format.py", "--check"])
    assert gen_trace_format.main() == 0, "make docs"


def test_a_column_that_says_nothing_is_an_error() -> None:
    head = 'TABLES: dict[str, int] = {\n    "t": {  # a row is a thing\n'
    assert gen_trace_format.tables(head + '        # above\n        "a": "u4",  # beside\n    },\n}\n') == {
        "t": ("a row is a thing", {"a": ("u4", "above beside")})
    }
    with pytest.raises(ValueError, match=r"t\.a does not say"):
        gen_trace_format.tables(head + '        "a": "u4",\n    },\n}\n')
