"""What is shown of engines while they are recorded: a table on a terminal, a line elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Seen:
    """One engine at one moment.

    Attributes:
        engine: its number.
        state: recording, away (its stream is not connected) or ended.
        num_tokens: sampled tokens that the daemon has.
        tokens_per_sec: over the last seconds; None before the second look.
        num_lost: rows of all tables that will never come.
        engine_step: its newest step; None before the first, as all below.
        weight_version: of that step.
        num_running: requests in it.
        num_waiting: requests left out of it.
        kv_usage: share of its KV blocks in use, 0 to 1.
        mismatch_kl: nats, over the newest train step that a trainer annotated; None where none did.
        ratio_mean: the same.
    """

    engine: int
    state: str
    num_tokens: int
    tokens_per_sec: float | None
    num_lost: int
    engine_step: int | None = None
    weight_version: int | None = None
    num_running: int | None = None
    num_waiting: int | None = None
    kv_usage: float | None = None
    mismatch_kl: float | None = None
    ratio_mean: float | None = None


# column -> its cell
_COLUMNS: dict[str, Callable[[Seen], str]] = {
    "engine": lambda s: str(s.engine),
    "state": lambda s: s.state,
    "tokens": lambda s: f"{s.num_tokens:,}",
    "tokens/s": lambda s: _number(s.tokens_per_sec, ",.0f"),
    "step": lambda s: _number(s.engine_step, ",d"),
    "weights": lambda s: _number(s.weight_version, "d"),
    "running": lambda s: _number(s.num_running, "d"),
    "waiting": lambda s: _number(s.num_waiting, "d"),
    "KV": lambda s: _number(s.kv_usage, ".0%"),
    "lost": lambda s: f"{s.num_lost:,}",
    "ratio": lambda s: _number(s.ratio_mean, ".4f"),
    "mismatch_kl": lambda s: _number(s.mismatch_kl, ".5f"),
}
_STYLES = {"recording": "green", "away": "yellow", "ended": "dim"}


def line(seen: Seen) -> str:
    """Return one engine in one line."""
    cells = {name: cell(seen) for name, cell in _COLUMNS.items() if name not in ("engine", "state")}
    told = ", ".join(f"{name} {text}" for name, text in cells.items() if text != "–")
    return f"tracekit: engine {seen.engine} {seen.state}: {told}"


def table(seen: Sequence[Seen], title: str) -> Table:
    """Return all engines as a table of rich; what nobody knows of any engine has no column."""
    from rich.table import Table
    from rich.text import Text

    rows = [{name: cell(one) for name, cell in _COLUMNS.items()} for one in seen]
    names = [name for name in _COLUMNS if not rows or any(row[name] != "–" for row in rows)]
    made = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        made.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for one, row in zip(seen, rows, strict=True):
        styles = {"state": _STYLES.get(one.state, ""), "lost": "bold red" if one.num_lost else ""}
        made.add_row(*(Text(row[name], styles.get(name, "")) for name in names))
    if not rows:
        made.add_row(*(Text("no engine yet", "dim") if name == "state" else Text("") for name in names))
    return made


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
