"""The words of causes on the inference path."""

from __future__ import annotations

from collections.abc import Callable

from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.verdict import Verdict
from tracekit.plural import plural
from tracekit.report.causes.saying import Saying, always


def _stale(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"{plural(len(found.rollouts), 'rollout')} began on prefix-cache blocks that older weights computed (version "
        f"{'; '.join(found.names)}): a trainer, who computes the whole prompt under the new weights, is off by "
        f"{numbers['d_abs']:.2g} nats in the mean, over the old blocks by {numbers['d_abs_over_old']:.2g}."
    )


def _foreign(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"{plural(len(found.rollouts), 'rollout')} began on prefix-cache blocks that no request of the same tokens had "
        f"computed: behind the tokens of the prompt whose blocks they are mean |d| is "
        f"{numbers['d_abs_behind_other']:.2g} nats, behind their own {numbers['d_abs']:.2g}."
    )


def _position(found: Explanation, verdict: Verdict) -> str:
    return (
        f"The difference grows with the position, to {found.numbers['growth']:.1f} times in the last quarter of the "
        "positions: engine and trainer differ in what depends on it, as rotary embeddings or an attention window do."
    )


def _circumstance(what: str) -> Callable[[Explanation, Verdict], str]:
    def sentence(found: Explanation, verdict: Verdict) -> str:
        numbers = found.numbers
        return (
            f"The tokens that leave their replay are those {what.format(name=found.names[0])}: they are off by "
            f"{numbers['scale']:.3g} times the noise, all others by {numbers['rest']:.3g}; why is not known."
        )

    return sentence


def _low_head(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    if "left" in numbers:
        return (
            "The engine's head works in bfloat16: a bfloat16 head leaves "
            f"{numbers['left']:.1%} of what its logits are off by on their recorded input."
        )
    return (
        f"The engine's head works in bfloat16: with rounded logits mean |d| is {numbers['d_abs_after']:.2g} in place "
        f"of {numbers['d_abs_before']:.2g} nats."
    )


def _where(what: str) -> Saying:
    def sentence(found: Explanation, verdict: Verdict) -> str:
        numbers = found.numbers
        return (
            f"The rollouts that leave their replay are those {what.format(name=found.names[0])}: "
            f"{numbers['hit']:.0f} of {numbers['having']:.0f} leave it, of all others {numbers['outside']:.0f}; why is "
            "not known."
        )

    return Saying(sentence, always(_CHANGES[what]), what.format(name="alone"))


_FEW = 4
_ENGINE, _VERSION = "of engine {name}", "under weight version {name}"
_CACHED, _PREEMPTED = "with a prefix-cache hit", "that were preempted"
_CHANGES = {
    _ENGINE: "compare this engine's weights and settings with those of the others (tracekit lint)",
    _VERSION: "give the weights of this version (--weights V=PATH), or look at how they were sent to the engine",
    _CACHED: "record again with enable_prefix_caching=False; if that is clean, reset the cache with each weight update",
    _PREEMPTED: "give the engine more KV cache (gpu_memory_utilization, fewer max_num_seqs) and record again",
}


def _numbers(found: Explanation, verdict: Verdict) -> str:
    return (
        f"Engine {found.numbers['engine']:.0f} missed an update, or began with other weights: by the fingerprints of "
        f"its tensors its weight version {', its '.join(found.names)}."
    )


def _checkpoint(found: Explanation, verdict: Verdict) -> str:
    if "modules" in found.numbers:
        return _by_module(found)
    numbers, (believed, *others) = found.numbers, found.names[: 1 if found.code == "unknown weights" else 2]
    whose = f"engine {numbers['engine']:.0f} under weight version {numbers['version']:.0f}"
    count = f"{numbers['tensors']:.0f} of {plural(int(numbers['of']), 'tensor')}"
    if found.code == "other checkpoint":
        return f"By their fingerprints the weights of {whose} are those of {others[0]}, not those of {believed}."
    tensors = found.names[len(others) + 1 :]
    listed = ", ".join(tensors[:_FEW]) + (f" and {len(tensors) - _FEW} more" if len(tensors) > _FEW else "")
    if found.code == "kept tensors":
        return f"In {whose} {count} that an update changes have the values of {others[0]}, not of {believed}: {listed}."
    return f"In {whose} {count} are neither those of {believed} nor of any folder that is known: {listed}."


def _by_module(found: Explanation) -> str:
    believed, other, *modules = found.names
    listed = ", ".join(modules[:_FEW]) + (f" and {len(modules) - _FEW} more" if len(modules) > _FEW else "")
    return (
        f"{plural(len(modules), 'module')} of {found.numbers['of']:.0f} on recorded inputs gave what the weights of "
        f"{other} give, not those of {believed}: {listed}."
    )


def _weights(which: str) -> Saying:
    def sentence(found: Explanation, verdict: Verdict) -> str:
        numbers = found.numbers
        return (
            f"{plural(len(found.rollouts), 'rollout')} of {numbers['tested']:.0f} that were tested sampled what is "
            f"called {', '.join(found.names)} with the weights of the version {which} it: mean |d| is "
            f"{numbers['d_abs_with']:.2g} nats with those, {numbers['d_abs']:.2g} with its own."
        )

    return Saying(sentence, always(_SEND), f"weights of the version {which}")


_SEND = (
    "see that each update reaches every worker and every tensor before requests run on it; where only the label is "
    "wrong, give the right folder with --weights V=PATH"
)
PATH_WORDS: dict[Code, Saying] = {
    "version numbers differ": Saying(
        _numbers,
        lambda found, verdict: (
            f"give engine {found.numbers['engine']:.0f}'s own folders (--weights ENGINE:VERSION=PATH), and see why an "
            "update did not reach it"
        ),
        "version numbers that differ",
    ),
    "other checkpoint": Saying(_checkpoint, always(_SEND), "weights of another checkpoint"),
    "kept tensors": Saying(
        _checkpoint,
        always(
            "send these tensors with each update: compare the names that the trainer sends with those that vLLM loads"
        ),
        "tensors that kept their values",
    ),
    "unknown weights": Saying(
        _checkpoint, always("give the folder that the engine loaded (--model, --weights)"), "weights that are not known"
    ),
    "older weights": _weights("before"),
    "newer weights": _weights("after"),
    "bfloat16 head": Saying(
        _low_head,
        always("run the engine's head in float32 (hf_overrides head_dtype, or the framework's own switch)"),
        "a bfloat16 head",
        proof="proved by its recorded input",
    ),
    "stale prefix blocks": Saying(
        _stale,
        always(
            "reset the prefix cache with every weight update (reset_prefix_cache), or give each version a cache_salt"
        ),
        "stale prefix blocks",
    ),
    "foreign blocks": Saying(
        _foreign,
        always("use a longer hash for prefix caching (prefix_caching_hash_algo), or enable_prefix_caching=False"),
        "blocks of another prompt",
    ),
    "grows with position": Saying(
        _position,
        always("give engine and trainer the same rope_parameters, sliding_window and max_position_embeddings"),
        "a growth with the position",
    ),
    "certain batch sizes": Saying(
        _circumstance("sampled in batches {name}"),
        always("compare the kernels that the engine chooses for these batch sizes; a batch-invariant mode has one"),
        "certain batch sizes",
    ),
    "decode steps": Saying(
        _circumstance("of decode steps, in which no prompt of theirs was computed"),
        always("compare the engine's decode attention with its prefill (another attention backend)"),
        "decode steps",
    ),
    "from a position on": Saying(
        _circumstance("from position {name} on, whatever the rollout"),
        always("give engine and trainer the same sliding_window and rope_parameters; try another attention backend"),
        "an edge in the position",
    ),
    "one engine": _where(_ENGINE),
    "one weight version": _where(_VERSION),
    "cached requests": _where(_CACHED),
    "preempted requests": _where(_PREEMPTED),
}
