"""The words of what only a re-run of the engine can tell."""

from __future__ import annotations

from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.verdict import Verdict
from tracekit.plural import plural
from tracekit.report.causes.saying import Saying

_CHANGE = (
    "look for what changes KV or weights beside the engine's own steps at that token: a connector, a transfer that "
    "overlaps a step, a reset or an update that the recorder did not see"
)


def _state(found: Explanation, verdict: Verdict) -> str:
    rollouts, since = len(found.rollouts), found.since
    leave = "is not repeated" if rollouts == 1 else "are not repeated"
    where = f", first at output token {since.output_index}" if since else ""
    after = f", right after a {' and a '.join(found.names)}" if found.names else ""
    return (
        f"{rollouts} of {plural(len(verdict.rollouts), 'rollout')} {leave} when the engine itself is given the same "
        f"tokens in the same steps under the same weights{where}{after}: it computed over KV or weights that are not "
        f"what the trace tells, in {plural(int(found.numbers['count']), 'token')} by up to "
        f"{found.numbers['nats']:.3g} nats."
    )


STATE_WORDS: dict[Code, Saying] = {"state": Saying(_state, lambda found, verdict: _CHANGE, "state")}
