"""The words of causes that a trainer's dump shows: whose ids, mask or values are not what the engine sampled."""

from __future__ import annotations

from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.verdict import Verdict
from tracekit.plural import plural
from tracekit.report.causes.saying import Saying, always

_IDS = "train on the ids that the engine returned, and tokenize or render nothing again"


def _sequences(found: Explanation) -> str:
    return plural(int(found.numbers["count"]), "sequence")


def _where(found: Explanation) -> str:
    engine, trainer = found.names[1:3]
    return f"at position {found.numbers['position']:.0f} (engine {engine}, trainer {trainer})"


def _ids(text: str) -> Saying:
    def sentence(found: Explanation, verdict: Verdict) -> str:
        return f"{text} in {_sequences(found)}, first {_where(found)}."

    return Saying(sentence, always(_IDS), text[0].lower() + text[1:])


def _double(party: str) -> Saying:
    def sentence(found: Explanation, verdict: Verdict) -> str:
        return (
            f"The {party}'s prompt begins with its first token twice in {_sequences(found)}, {_where(found)}: the chat "
            "template and the tokenizer both add it, and the other side's prompt has it once."
        )

    return Saying(
        sentence,
        always("tokenize a rendered chat with add_special_tokens=False, or hand the engine token ids"),
        f"a doubled first token in the {party}'s prompt",
    )


def _truncated(found: Explanation, verdict: Verdict) -> str:
    return (
        f"The trainer's completion ends before the engine's in {_sequences(found)}, first {_where(found)}: "
        f"{plural(int(found.numbers['num_tokens']), 'sampled token is', 'sampled tokens are')} not trained on."
    )


def _shifted_mask(found: Explanation, verdict: Verdict) -> str:
    how = "late" if found.numbers["shift"] > 0 else "early"
    by = plural(abs(int(found.numbers["shift"])), "token")
    return f"The trainer's loss mask is {by} {how} against what the engine sampled, in {_sequences(found)}."


def _wrong_mask(found: Explanation, verdict: Verdict) -> str:
    extra = plural(int(found.numbers["num_extra"]), "token")
    return (
        f"The trainer's loss mask counts {extra} that no recorded request sampled, in {_sequences(found)}: a prompt, "
        "or a turn that was not recorded."
    )


def _version(found: Explanation, verdict: Verdict) -> str:
    numbers = found.numbers
    return (
        f"The trainer believes that {plural(int(numbers['count']), 'token was', 'tokens were')} sampled by other "
        f"weights than the engine ran, first by version {numbers['trainer_version']:.0f} instead of "
        f"{numbers['engine_version']:.0f}."
    )


def _sentinel(found: Explanation, verdict: Verdict) -> str:
    name, value = found.names[1:3]
    count = plural(int(found.numbers["count"]), "token")
    return f"The trainer's {name} of {count} is {value}, which stands for a logprob that is missing."


def _wrong_entry(found: Explanation, verdict: Verdict) -> str:
    count = plural(int(found.numbers["count"]), "token")
    return (
        f"The engine's logprob that the trainer holds is, of {count}, that of the most likely token at this position "
        "and not of the sampled one."
    )


def _held_shifted(found: Explanation, verdict: Verdict) -> str:
    neighbour = "before" if found.names[1] == "late" else "behind"
    count = plural(int(found.numbers["count"]), "token")
    return f"The engine's logprob that the trainer holds is, of {count}, that of the token {neighbour} it."


def _held_other(found: Explanation, verdict: Verdict) -> str:
    count = plural(int(found.numbers["count"]), "token")
    return f"The engine's logprobs that the trainer holds are, of {count}, not those that the engine reported."


def _off(found: Explanation) -> str:
    return f"mean |d| {found.numbers['d_abs_mean']:.3g} nats against the scorer"


def _reading(found: Explanation, verdict: Verdict) -> str:
    name, expected = found.names[1:3]
    return f"The trainer's old_logprobs are {name} ones and not {expected} ({_off(found)})."


def _reading_change(found: Explanation, verdict: Verdict) -> str:
    if found.names[1] in ("raw", "processed without temperature"):
        return "divide the trainer's logits by the temperature that the engine sampled with, before log-softmax"
    if found.names[1] == "processed without truncation":
        return "sample with top_p=1, top_k=-1, min_p=0, or apply the same truncation in the trainer"
    return "give the trainer the sampling parameters that the engine applied"


def _shifted(found: Explanation, verdict: Verdict) -> str:
    neighbour = "before" if found.names[1] == "late" else "behind"
    return f"The trainer's old_logprob of a token is that of the token {neighbour} it ({_off(found)})."


def _offset(found: Explanation, verdict: Verdict) -> str:
    offset = found.numbers["offset"]
    more, share = ("more", 1 - 2.718281828459045**offset) if offset < 0 else ("less", 1 - 2.718281828459045**-offset)
    return (
        f"The trainer's old_logprobs are {offset:+.4f} nats off throughout: its distribution spreads over {share:.2%} "
        f"{more} mass than the scorer's, as with a padded vocabulary or a mask on one side."
    )


def _packed(found: Explanation, verdict: Verdict) -> str:
    return (
        "The trainer's old_logprobs are those of sequences that see the one before them in the same pack "
        f"({_off(found)})."
    )


def _padded(found: Explanation, verdict: Verdict) -> str:
    return f"The trainer's old_logprobs are those of sequences that see their left padding ({_off(found)})."


def _agrees(found: Explanation, verdict: Verdict) -> str:
    return (
        f"Trainer and engine agree with each other and not with the scorer ({_off(found)}): what was scored with is "
        "not what both computed with."
    )


def _unexplained(found: Explanation, verdict: Verdict) -> str:
    return (
        f"The trainer's old_logprobs leave the scorer's ({_off(found)}) and nothing that was tested explains it: other "
        "weights, dropout, another precision or other kernels."
    )


def _config(found: Explanation, verdict: Verdict) -> str:
    return f"The trainer's model folder is not what the engine ran: {'; '.join(found.names[1:])}."


TRAINER_WORDS: dict[Code, Saying] = {
    "engine double bos": _double("engine"),
    "trainer double bos": _double("trainer"),
    "trainer prompt differs": _ids("The trainer's prompt is not the engine's"),
    "trainer history differs": _ids("The trainer's history of earlier turns is not the engine's"),
    "trainer completion truncated": Saying(
        _truncated, always("keep completions whole, or leave truncated ones out of the loss"), "a truncated completion"
    ),
    "trainer completion extended": _ids("The trainer's completion goes on behind the engine's last token"),
    "trainer completion retokenised": _ids("The trainer's completion is the engine's text in other ids"),
    "trainer completion differs": _ids("The trainer's completion is not the engine's"),
    "trainer mask shifted": Saying(
        _shifted_mask, always("a mask is true at the positions of sampled tokens, as their ids stand"), "a shifted mask"
    ),
    "trainer mask wrong": Saying(_wrong_mask, always("let the mask count sampled tokens alone"), "a wrong mask"),
    "trainer version differs": Saying(
        _version, always("stamp tokens with the version that the engine reports at dispatch"), "another weight version"
    ),
    "trainer sentinel": Saying(
        _sentinel, always("ask the engine for logprobs=0, and leave tokens without one out of the loss"), "a sentinel"
    ),
    "trainer wrong entry": Saying(
        _wrong_entry, always("index the engine's dict by the sampled token's id"), "the wrong entry of the dict"
    ),
    "trainer holds shifted": Saying(
        _held_shifted, always("pair each logprob with its token, not with its neighbour"), "logprobs shifted by one"
    ),
    "trainer holds other values": Saying(
        _held_other, always("hand the engine's logprobs on as they are"), "other logprobs than the engine's"
    ),
    "trainer reading": Saying(_reading, _reading_change, "another reading in the trainer"),
    "trainer shifted": Saying(
        _shifted, always("take the logits at position p − 1 for the token at p"), "old_logprobs shifted by one"
    ),
    "trainer offset": Saying(
        _offset,
        always("mask the rows that stand for no token, or those that the engine masks"),
        "a constant offset of old_logprobs",
    ),
    "trainer bfloat16 head": Saying(
        always("The trainer's values are those of logits rounded to bfloat16: its head works in that type."),
        always("compute the trainer's logits and log-softmax in float32"),
        "a bfloat16 head in the trainer",
    ),
    "trainer packed": Saying(
        _packed, always("reset positions and block attention at each sequence of a pack"), "a leak within a pack"
    ),
    "trainer padded": Saying(
        _padded, always("hand the attention mask and the positions of left-padded prompts to the model"), "left padding"
    ),
    "trainer agrees with engine": Saying(
        _agrees, always("give replay the weights of that step (--model, --weights) and the trainer's dtype"),
        "weights that neither used",
    ),
    "trainer tokenizer differs": Saying(
        _config, always("use the engine's tokenizer files in the trainer, and train on the ids that it returned"),
        "another tokenizer",
    ),
    "trainer config differs": Saying(
        _config, always("give both sides the same config.json, and no hf_overrides"), "another configuration"
    ),
    "trainer unexplained": Saying(
        _unexplained, always("compare the trainer with itself first: twice, in eval mode, each sequence alone"),
        "something else in the trainer",
    ),
}  # fmt: skip
