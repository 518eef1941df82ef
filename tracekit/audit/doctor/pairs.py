"""A completion as its client has it beside the request of the trace that it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc

from tracekit.audit.doctor import stops
from tracekit.audit.findings import Array, Columns, select
from tracekit.audit.rows import EngineRows

Completion = Mapping[str, Any]  # a row of jobs.rollout.read_view


@dataclass(frozen=True)
class Pair:
    """A completion and a request with the same name."""

    seen: Completion
    rows: EngineRows
    row: int  # in requests

    @property
    def number(self) -> int:
        """The request's number."""
        return int(self.rows["requests"]["request"][self.row])

    @property
    def key(self) -> tuple[int, int]:
        """Names the request among all engines."""
        return self.rows.engine, self.row

    @property
    def prompt(self) -> list[int]:
        """The prompt that the engine computed."""
        found: list[int] = self.rows.requests.column("prompt_token_ids")[self.row].as_py()
        return found

    @cached_property
    def tokens(self) -> Columns:
        """The request's accepted tokens."""
        begin, end = np.searchsorted(self.rows.accepted["request"], [self.number, self.number + 1])
        return select(self.rows.accepted, slice(begin, end))

    def part_of(self, seen: Completion) -> Completion:
        """Return what the trace can have of a completion: a part, where an attach or a detach was within it."""
        begin = int(self.rows.before_of(np.array([self.number]))[0])
        goes_on = self.rows.is_part and self.reason is None
        if not begin and not goes_on:
            return seen
        joined = self.rows.joined.filter(pc.field("request") == self.number).column("token_ids")
        if begin and list(seen["token_ids"][:begin]) != joined[0].as_py():
            return seen
        end = begin + self.tokens["token_id"].size if goes_on else None
        parts = {name: seen[name][begin:end] for name in ("token_ids", "logprobs") if seen.get(name) is not None}
        return {**seen, **parts}

    @cached_property
    def prompt_logprobs(self) -> list[Array]:
        """Those of the request and of the others of its n: the client has one list, of whichever came last."""
        scored, names = self.rows["prompt_logprobs"], self.rows.requests.column("external_id").to_pylist()
        own = [self.row] if self.rows.requests.column("parent_id")[self.row].as_py() is None else range(len(names))
        numbers = [self.rows["requests"]["request"][row] for row in own if names[row] == names[self.row]]
        ends = [np.searchsorted(scored["request"], [number, number + 1]) for number in numbers]
        return [scored["logprob"][begin:end] for begin, end in ends]

    @property
    def reason(self) -> str | None:
        """Why it finished; None where it did not."""
        at = np.flatnonzero(self.rows["finishes"]["request"] == self.number)
        return self.rows.reasons[int(at[0])] if at.size else None

    @property
    def told(self) -> str | None:
        """Why it finished, as the client was told."""
        found: str | None = self.seen.get("finish_reason")
        return found

    @property
    def sampling(self) -> dict[str, Any]:
        """What the client asked for."""
        return self.rows.sampling[self.row]

    @property
    def client_left(self) -> bool:
        """Whether the client ended it itself: it may have any part of the tokens."""
        return self.told == "abort" or (self.told is None and self.reason in (None, "abort"))

    @property
    def frontend_ended(self) -> bool:
        """Whether V1's frontend may have ended it on a stop string; V0's engine looks for them itself."""
        strings = bool(self.sampling.get("stop"))
        return strings and self.told in (None, "stop") and self.rows.about.get("kind") != "v0"

    @property
    def hangs_on_stops(self) -> bool:
        """Whether `stops` decides if this is what its client may have."""
        ours, theirs = self.tokens["token_id"].size, len(self.seen["token_ids"])
        return self.frontend_ended and (theirs < ours or self.told not in (None, self.reason))

    @cached_property
    def stops(self) -> frozenset[int] | None:
        """How many tokens it may have where a stop string ended it; None where nobody can tell."""
        ours = self.tokens
        # vLLM does not decode the stop token that ends a completion, unless the client wants to see it
        hidden = self.reason == "stop" and not self.sampling.get("include_stop_str_in_output")
        decoded = ours["token_id"][: ours["token_id"].size - hidden].tolist()
        return stops.counts(self.rows, self.prompt, decoded, ours["engine_step"], self.sampling)
