"""The recorder's settings: a variable, else a line of tracekit.toml, else the default; nonsense is named."""

from pathlib import Path

import pytest

from tracekit.recorder.settings import attach_folder, daemon_address, logprobs_complaint, logprobs_option


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRACEKIT_DAEMON", raising=False)
    monkeypatch.delenv("TRACEKIT_LOGPROBS", raising=False)


def test_nothing_said() -> None:
    assert (daemon_address(), logprobs_option(), logprobs_complaint()) == (None, "client", "")


def test_lines_of_the_file_and_variables_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tracekit.toml").write_text('daemon = "unix:/d.sock"  # ours\nlogprobs = "both"\n')
    assert (daemon_address(), logprobs_option()) == ("unix:/d.sock", "both")
    monkeypatch.setenv("TRACEKIT_LOGPROBS", "engine")
    monkeypatch.setenv("TRACEKIT_DAEMON", "")
    assert (daemon_address(), logprobs_option(), logprobs_complaint()) == (None, "engine", "")


def test_a_wrong_value_is_named_and_the_default_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEKIT_LOGPROBS", "raw")
    assert logprobs_option() == "client"
    assert logprobs_complaint() == "the logprobs option is one of client, engine, both, not 'raw'; client is taken"


@pytest.mark.parametrize("variable", ["TRACEKIT_ATTACH", "HOME"])
def test_where_no_folder_can_be_found_no_orders_are_taken(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("TRACEKIT_ATTACH", "TRACEKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if variable == "HOME":  # a container's user whom nobody knows
        monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])
    else:
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        monkeypatch.setenv("TRACEKIT_ATTACH", "orders")
    assert attach_folder() is None
