"""A trainer's sequences joined with recorded rollouts: by what they hold, never by their order.

A rollout belongs to a sequence that begins with its prompt and its completion; a sequence of several turns holds one
rollout per turn. Where several rollouts are the same to the id, the engine's logprobs that the trainer holds tell them
apart, or the weight version; else they are ambiguous and none of them is joined. What is left is looked up by its
completion alone (the prompts differ) and by its prompt alone (the completions differ).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from tracekit.diagnose.view import IdFault, Mispaired
from tracekit.replay.numbers import OWN
from tracekit.replay.rollouts import Rollout
from tracekit.scoring.forest import num_common
from tracekit.trace.prefixes import prefix_digests
from tracekit.trainer.types import I8, Sample

_EXTENDED: IdFault = "trainer completion extended"
SHOWN = 4  # ids that are shown from the first difference on
Decode = Callable[[Seq[int]], str]
_Kind = Callable[[Rollout, int, Sample, int, int, "Decode | None"], tuple[Mispaired, int]]


@dataclass(frozen=True)
class Span:
    """Tokens start..stop of a sequence, which are output tokens 0..stop - start of a rollout."""

    rollout: int
    sample: int
    start: int
    stop: int
    exact: bool = True


@dataclass
class Joined:
    """What was found."""

    spans: list[Span] = field(default_factory=list)
    mispaired: list[Mispaired] = field(default_factory=list)
    ambiguous: set[int] = field(default_factory=set)

    @property
    def num_ambiguous(self) -> int:
        """Sequences that fit several rollouts which nothing tells apart."""
        return len(self.ambiguous - {span.sample for span in self.spans})


def join_samples(
    rollouts: Seq[Rollout], samples: Seq[Sample], decode: Decode | None = None, cut: Set[int] = frozenset()
) -> Joined:
    """Join.

    Args:
        rollouts: of the run.
        samples: of the dump.
        decode: ids to text, with which other ids of the same text are told.
        cut: rollouts that their client ended: it may have any part of them.
    """
    found = Joined()
    _exact(rollouts, samples, found)
    _near(rollouts, samples, found, decode, cut)
    return found


def _exact(rollouts: Seq[Rollout], samples: Seq[Sample], found: Joined) -> None:
    by_content: dict[bytes, list[int]] = defaultdict(list)
    ids = [_whole(rollout) for rollout in rollouts]
    for i, whole in enumerate(ids):
        by_content[_digest(whole)].append(i)
    lengths = np.unique([whole.size for whole in ids])
    fitting: dict[bytes, list[int]] = defaultdict(list)
    for s, one in enumerate(samples):
        for _, content in prefix_digests(one.token_ids, lengths.tolist()):
            if content in by_content:
                fitting[content].append(s)
    for content, which in fitting.items():
        own = by_content[content]
        start, stop = rollouts[own[0]].num_prompt_tokens, ids[own[0]].size
        pairs = _tell_apart(rollouts, own, [samples[s] for s in which], slice(start, stop))
        found.spans += [Span(r, which[at], start, stop) for r, at in pairs]
        if not pairs:
            found.ambiguous.update(which)


def _tell_apart(rollouts: Seq[Rollout], own: Seq[int], fitting: Seq[Sample], part: slice) -> list[tuple[int, int]]:
    """Pairs of a rollout and an index into `fitting`; nothing where it is not known which belongs to which."""
    left = list(range(len(fitting)))
    for tells in (_is_trained, _has_values):
        left = [i for i in left if tells(fitting[i], part)] or left
    left.sort(key=lambda i: -fitting[i].tells)
    distinct = [i for n, i in enumerate(left) if not any(_same(fitting[i], fitting[k], part) for k in left[:n])]
    if len(own) == 1:
        return [(own[0], distinct[0])] if len(distinct) == 1 else []
    if len(distinct) == 1 and len(left) >= len(own):
        return [(r, i) for r, i in zip(own, left, strict=False)]
    for matches in (_holds_its_logprobs, _is_of_its_version):
        hits = [[r for r in own if matches(rollouts[r], fitting[i], part)] for i in distinct]
        if all(len(hit) == 1 for hit in hits) and len({hit[0] for hit in hits}) == len(hits):
            return [(hit[0], i) for hit, i in zip(hits, distinct, strict=True)]
    return []


def _is_trained(one: Sample, part: slice) -> bool:
    return one.mask is None or bool(one.mask[part].any())


def _has_values(one: Sample, part: slice) -> bool:
    return bool(np.isfinite(one.old_logprob[part]).any())


def _same(one: Sample, other: Sample, part: slice) -> bool:
    names = ("old_logprob", "rollout_logprob", "current_logprob", "advantage")
    return all(np.array_equal(getattr(one, n)[part], getattr(other, n)[part], equal_nan=True) for n in names)


def _holds_its_logprobs(rollout: Rollout, one: Sample, part: slice) -> bool:
    return np.array_equal(one.rollout_logprob[part].astype(np.float32), rollout.rollout_logprob.astype(np.float32))


def _is_of_its_version(rollout: Rollout, one: Sample, part: slice) -> bool:
    return np.array_equal(one.version[part], (rollout.weight_version % OWN).astype(np.float64))


def _near(rollouts: Seq[Rollout], samples: Seq[Sample], found: Joined, decode: Decode | None, cut: Set[int]) -> None:
    """Look up what is left by its completion, then by its prompt."""
    taken = {span.rollout for span in found.spans}
    by_completion: dict[bytes, list[int]] = defaultdict(list)
    by_prompt: dict[bytes, list[int]] = defaultdict(list)
    for i, rollout in enumerate(rollouts):
        if i not in taken:
            by_completion[_digest(rollout.sequence.token_ids)].append(i)
            by_prompt[_digest(rollout.sequence.prompt_token_ids)].append(i)
    covered: dict[int, list[Span]] = defaultdict(list)
    for span in found.spans:
        covered[span.sample].append(span)
    for s, one in enumerate(samples):
        for start, stop in () if s in found.ambiguous else _unjoined(one, covered[s]):
            before = next((span for span in covered[s] if span.stop == start and _is_whole(one, span)), None)
            if before is not None:
                whole = _whole(rollouts[before.rollout])
                found.mispaired.append(
                    _mispaired(_EXTENDED, before.rollout, start, whole, one.token_ids[:stop], stop - start)
                )
                continue
            context, own = one.token_ids[:start], one.token_ids[start:stop]
            free = [r for r in by_completion[_digest(own)] if r not in taken]
            at = _closest([(num_common(_prompt(rollouts[r]), context), r) for r in free])
            kind: _Kind = _other_context
            if at is None and not free:
                free = [r for r in by_prompt[_digest(context)] if r not in taken]
                at = _closest([(num_common(_completion(rollouts[r]), own), r) for r in free])
                kind = _other_completion
            if at is None:
                if len(free) > 1:
                    found.ambiguous.add(s)
                continue
            taken.add(at)
            mispaired, stop = kind(rollouts[at], at, one, start, stop, decode)
            as_asked = at in cut and mispaired.code == "trainer completion truncated"
            if not as_asked:
                found.mispaired.append(mispaired)
            found.spans.append(Span(at, s, start, stop, exact=as_asked))


def _other_context(
    rollout: Rollout, at: int, one: Sample, start: int, stop: int, _: Decode | None
) -> tuple[Mispaired, int]:
    engine, trainer = _prompt(rollout), one.token_ids[:start]
    position = num_common(engine, trainer)
    before = one.mask is not None and bool(one.mask[:position].any())
    code: IdFault = "trainer history differs" if before else "trainer prompt differs"
    if engine.size and np.array_equal(trainer, np.r_[engine[:1], engine]):
        code, position = "trainer double bos", 1
    elif trainer.size and np.array_equal(engine, np.r_[trainer[:1], trainer]):
        code, position = "engine double bos", 1
    return _mispaired(code, at, position, engine, trainer, stop - start), stop


def _other_completion(
    rollout: Rollout, at: int, one: Sample, start: int, stop: int, decode: Decode | None
) -> tuple[Mispaired, int]:
    engine, trainer = _completion(rollout), one.token_ids[start:stop]
    same = num_common(engine, trainer)
    code: IdFault = "trainer completion differs"
    if same == trainer.size:
        code = "trainer completion truncated"
    elif same == engine.size:
        code = _EXTENDED
    elif decode is not None and decode(engine.tolist()) == decode(trainer.tolist()):
        code = "trainer completion retokenised"
    affected = trainer.size - engine.size if code == _EXTENDED else engine.size - same
    return _mispaired(code, at, start + same, np.r_[_prompt(rollout), engine], one.token_ids, affected), start + same


def _mispaired(code: IdFault, at: int, position: int, engine: I8, trainer: I8, num_tokens: int) -> Mispaired:
    shown = slice(position, position + SHOWN)
    return Mispaired(code, at, position, engine[shown].tolist(), trainer[shown].tolist(), int(num_tokens))


def _unjoined(one: Sample, spans: Seq[Span]) -> Iterator[tuple[int, int]]:
    """Runs of tokens that are trained on, or that are the completion, and that no rollout was joined with."""
    left = np.zeros(one.token_ids.size, dtype=bool)
    if one.mask is not None and one.mask.any():
        left |= one.mask
    elif one.num_prompt is not None:
        left[one.num_prompt :] = True
    if one.num_prompt is not None and not spans:  # a mask may leave the end of a completion out
        left[: one.num_prompt], left[one.num_prompt :] = False, True
    for span in spans:
        left[span.start : span.stop] = False
    edges = np.flatnonzero(np.diff(np.r_[0, left.astype(np.int8), 0]))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _is_whole(one: Sample, span: Span) -> bool:
    """Whether all of a rollout is trained on: else its mask is shifted, and what follows was not added."""
    return one.mask is None or bool(one.mask[span.start : span.stop].all())


def _closest(ranked: Seq[tuple[int, int]]) -> int | None:
    """The rollout with the most ids in common; None where two have as many."""
    best = sorted(ranked, reverse=True)[:2]
    if not best or (len(best) == 2 and best[0][0] == best[1][0]):
        return None
    return best[0][1]


def _prompt(rollout: Rollout) -> I8:
    return rollout.sequence.prompt_token_ids.astype(np.int64)


def _completion(rollout: Rollout) -> I8:
    return rollout.sequence.token_ids.astype(np.int64)


def _whole(rollout: Rollout) -> I8:
    return np.concatenate([_prompt(rollout), _completion(rollout)])


def _digest(ids: np.ndarray) -> bytes:
    return blake2b(ids.astype("<u4").tobytes(), digest_size=16).digest()
