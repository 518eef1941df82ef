"""The sentences of a replay, made from the codes and numbers of its result."""

from __future__ import annotations

from collections.abc import Iterator

from tracekit.diagnose.chance import NUM_TESTS
from tracekit.diagnose.look import CHANCE
from tracekit.diagnose.remarks import Remark
from tracekit.diagnose.result import Data, Weights
from tracekit.diagnose.semantic import SAME, UNDECIDED
from tracekit.diagnose.verdict import Verdict
from tracekit.plural import plural
from tracekit.report.causes.table import change, sentence


def cause(verdict: Verdict) -> str:
    """Say what is wrong, and what to do where that is known."""
    semantic = verdict.semantic
    if verdict.causes:
        said, remedy = sentence(verdict.causes[0], verdict), change(verdict.causes[0], verdict)
        return f"{said.removesuffix('.')}: {remedy}."
    if verdict.cause == "unexplained":
        return (
            f"The recorded values are closest to {semantic.closest} logprobs, but their bulk is {semantic.excess:.1f} "
            "times further off than this run's noise allows: other weights, other sampling values or other kernels "
            "made them than were recorded or replayed."
        )
    if verdict.cause == "leaves replay":
        return (
            f"{_meaning(verdict)}, but {with_onset(verdict)} their replay by more than this run's noise: the engine "
            "took the same tokens along another path."
        )
    if verdict.withheld:
        return "What was judged stays within this run's noise, but not all could be judged, so this is not a pass."
    return f"{_meaning(verdict)}, and they stay within this run's noise."


def _meaning(verdict: Verdict) -> str:
    """What is known of the meaning of the values, where they were not found to be wrong."""
    semantic = verdict.semantic
    if semantic.kind == SAME:
        return "The recorded values mean what the trainer expects, because raw and processed are the same numbers here"
    if semantic.kind == UNDECIDED:
        return f"The recorded values fit {semantic.closest} and {semantic.runner_up} equally well"
    return "The recorded values mean what the trainer expects"


def left(verdict: Verdict) -> str | None:
    """Say what a corrected semantic leaves for the layer above; None where the semantic is right."""
    semantic = verdict.semantic
    if verdict.left == "unexplained":
        return (
            f"Even against {semantic.closest} values the residuals are {semantic.excess:.1f} times beyond noise: the "
            "inference path differs, too."
        )
    if verdict.left == "leaves replay":
        return f"Under the right semantic {with_onset(verdict, 'still ')} their replay beyond noise."
    if verdict.left == "none":
        return "Under the right semantic nothing beyond noise is left for the inference path."
    return None


def remark(verdict: Verdict, said: Remark) -> str:
    """Say one finding or limit of a verdict, or one thing that it withholds."""
    numbers, semantic = said.numbers, verdict.semantic
    count = int(numbers.get("count", 0))
    declared = ", ".join(semantic.declared)
    match said.code:
        case "declared otherwise":
            return (
                f"The engine declares {declared}, but its values are {semantic.closest} ones "
                f"(by {numbers['nats']:.0f} nats)."
            )
        case "modes differ":
            return f"The engines of this trace declare different modes: {declared}."
        case "not finite":
            were = plural(count, "token was", "tokens were")
            return (
                f"{were} not judged, because the recorded logprob is NaN or infinite: the first at position "
                f"{numbers['position']:.0f} of request {numbers['request']:.0f}."
            )
        case "not judged":
            were = plural(count, "request was", "requests were")
            return f"{were} not judged, because {said.names[0]}."
        case "meaning not known":
            one, other = said.names
            return (
                f"It is not known what the recorded values mean, because {one} and {other} fit them equally well "
                f"({numbers['nats']:.1f} nats) and are not the same numbers here."
            )
        case "not joined":
            return (
                f"{plural(count, 'sequence')} of the trainer's dump fit several requests of the same ids, and nothing "
                "tells which, so they are not judged."
            )
        case "not compared":
            return "The trainer's dump has no old_logprob, so the trainer's own values are not judged."
        case "above zero":
            return f"{plural(count, 'recorded value is', 'recorded values are')} above 0, which no log-probability is."
        case "outside the kept set":
            return (
                f"{plural(count, 'recorded token is', 'recorded tokens are')} outside the scorer's own kept set; each "
                "is scored as if it were let in."
            )
        case "values say kv recomputed" | "values say kv kept":
            how = said.code.rpartition(" ")[2]
            return (
                f"The values tell another history of the KV than the trace: with KV {how} they are explained better by "
                f"{numbers['nats']:.0f} nats, in {plural(count, 'rollout')}."
            )
        case "update below resolution":
            return (
                f"The update to weight version {numbers['version']:.0f} is too small for the engine's dtype: of "
                f"{plural(int(numbers['moved']), 'tensor')} that moved as stored, {count} did not once cast."
            )
        case "detectable":
            return (
                f"A token of median response must be off by {numbers['nats']:.2g} nats to be beyond noise by itself; a "
                f"fault in half of all tokens or more is seen from {numbers['bulk']:.2g} nats on."
            )
        case "float32 head":
            return "Head and log-softmax are float32 here; an engine whose head is not adds that to its noise."
        case "same numbers":
            return "Temperature 1 and no truncation: raw and processed are the same numbers and cannot be told apart."
        case "not told apart":
            return (
                f"{semantic.closest} and {semantic.runner_up} fit equally well ({numbers['nats']:.1f} nats), "
                "so they are not told apart."
            )
        case "kv recomputed":
            return (
                f"In {plural(count, 'rollout')} weights changed, and what became of the KV the trace does not tell, or "
                "this model cannot be scored over it: it was recomputed under the weights of each token."
            )
        case "whole run":
            return (
                f"The whole run is off, from its first tokens on: its bulk is {numbers['times']:.1f} times what clean "
                f"noise makes it (up to {numbers['allowed']:.1f} is chance), so no token is where it begins."
            )


def changes(verdict: Verdict) -> Iterator[str]:
    """Say where all rollouts together change, where that is beyond chance."""
    for found in verdict.changes:
        if NUM_TESTS * found.chance < CHANCE:
            where = "output token" if found.engine is None else f"engine {found.engine}'s step"
            more = "further off" if found.rises else "nearer"
            yield (
                f"over {plural(found.num_rollouts, 'rollout')} tokens are {more} from {where} {found.at} on (between "
                f"{found.first} and {found.last}): median {found.median_before:.2g} before, "
                f"{found.median_after:.2g} from there, in clean deviations; by chance {found.chance:.2g}"
            )


def coincidences(verdict: Verdict) -> Iterator[str]:
    """Say which recorded events onsets fall on."""
    for found in verdict.coincidences:
        yield (
            f"{found.num_coincide} of {plural(found.num_onsets, 'onset')} fall on a {found.kind}, where chance has "
            f"{found.expected:.1f} (probability {found.chance:.2g})"
        )


def kv(verdict: Verdict) -> Iterator[str]:
    """Say how the recorded history of the KV stands against others, where weights changed within a rollout."""
    for other in verdict.kv:
        yield (
            f"KV as recorded against {other.name}: better in {other.num_recorded_better} of "
            f"{plural(other.num_rollouts, 'rollout')}, median {other.median_nats:+.1f} nats (mean |d| "
            f"{other.d_abs_mean_recorded:.2g} against {other.d_abs_mean:.2g})"
        )


def masters(verdict: Verdict) -> str | None:
    """Say what casting the stored weights does; None where it does nothing."""
    found = verdict.masters
    if found is None:
        return None
    return (
        f"the stored weights against their cast: mean |d| {found.d_abs_mean:.2g} nats, largest {found.d_abs_max:.2g}, "
        f"ratio {found.ratio_mean:.4f} (both in float32, {plural(found.num_tokens, 'token')}): a trainer that computes "
        "with what is stored differs from the engine by as much"
    )


def cast(taken: Weights) -> str | None:
    """Say that stored weights were cast; None where they were not."""
    if not taken.is_cast:
        return None
    return (
        f"weight version {_version(taken)} is stored in {taken.stored}; what is scored is its cast to "
        f"{taken.received}, as the engine received it"
    )


def weights(taken: Weights) -> str | None:
    """Say where the weights of one version were taken from, where the caller did not give them."""
    match taken.source:
        case "trace":
            return f"the weights are those in {taken.folder}, the model folder that the trace names"
        case "claim":
            return (
                f"weight version {_version(taken)} is taken from {taken.folder}, as the label {taken.label!r} in the "
                "trace says: its caller's claim, not compared with the engine's weights"
            )
        case "same":
            return (
                f"weight version {_version(taken)} was scored with the weights of {taken.same_as}: no fingerprint of "
                "the model's differs"
            )
        case "given":
            return None


def _version(taken: Weights) -> str:
    return str(taken.version) if taken.engine is None else f"{taken.version} of engine {taken.engine}"


def losses(data: Data) -> Iterator[str]:
    """Say what was there and is not scored."""
    if data.sample:
        yield (
            f"SAMPLE: {data.num_rollouts} of {plural(data.sample.num_rollouts, 'rollout')}, {data.num_tokens} of "
            f"{plural(data.sample.num_tokens, 'token')}, spread evenly: what {data.sample.budget_secs:g} s allow; "
            "a first token is the first of these"
        )
    if data.num_discarded:
        one, several = "sampled token never became output and was", "sampled tokens never became output and were"
        yield f"{plural(data.num_discarded, one, several)} not scored"
    if data.num_before:
        one, several = (
            "token was sampled before the recorder was attached and is",
            "tokens were sampled before the recorder was attached and are",
        )
        yield f"{plural(data.num_before, one, several)} not scored"
    for skipped in data.skipped_requests:
        yield f"SKIPPED: {plural(skipped.count, 'request')} {skipped.what}"
    if data.num_lost_rows:
        missing = plural(data.num_lost_rows, "row is", "rows are")
        yield f"DATA LOST: at least {missing} missing from the trace"


def with_onset(verdict: Verdict, still: str = "") -> str:
    """How many rollouts leave, as the beginning of a sentence."""
    leave = "leaves" if verdict.num_with_onset == 1 else "leave"
    return f"{verdict.num_with_onset} of {plural(len(verdict.rollouts), 'rollout')} {still}{leave}"
