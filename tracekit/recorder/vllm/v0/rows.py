"""Events of the V0 hooks → rows of the trace's tables. Runs on the recorder's background thread."""

from __future__ import annotations

from typing import Any

from tracekit.recorder.vllm.events import Admitted, Dispatch, Joined, Preempted, Step
from tracekit.recorder.vllm.rows import LiveRequest, Rows, prompt_topk_of, topk_of
from tracekit.recorder.vllm.v0.blocks import Part, V0Blocks
from tracekit.recorder.vllm.v0.sampling import sampling_of
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED

# a child of an n>1 request is named so (vllm/sequence.py, ParallelSampleSequenceGroup)
CHILD = "_parallel_sample_"


class V0Request(LiveRequest):
    """A live request of a V0 engine."""

    __slots__ = ("computed", "decodes", "epoch", "scheduled", "step")

    def __init__(self, number: int, num_prompt: int, asked: bool, params: Any = None) -> None:
        super().__init__(number, num_prompt, asked, params)
        self.computed = 0  # tokens with KV
        self.scheduled = NEW  # flag of the next time it is scheduled
        self.step = 0  # of its last token
        self.decodes = False  # its last step computed no prompt
        self.epoch = 0  # of `V0Blocks`: since when all its steps were seen


class V0Rows(Rows[V0Request]):
    """The encoder of one V0 engine.

    Args:
        num_blocks: KV blocks of the engine.
        block_size: tokens in one.
        logprobs: whose are recorded, one of `settings.LOGPROBS`.
        sample: share of requests that are recorded.
        first_step: that is recorded; None: it is not known.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        logprobs: str = "client",
        sample: float = 1.0,
        first_step: int | None = None,
    ) -> None:
        super().__init__(sample)
        self._logprobs = logprobs
        self._num_blocks = max(num_blocks, 1)
        self._block_size = block_size
        self._preempted: list[int] = []
        self._blocks = V0Blocks(block_size, first_step or 0)
        self._next_step = first_step

    def _count_step(self, event: Step) -> dict[str, int]:
        outputs = {s.request_id: output for s, output in zip(event.scheduled, event.outputs, strict=True)}
        scheduled = [s for s in event.scheduled if self.is_sampled(s.request_id)]
        rows = {"steps": 1, "scheduled": len(scheduled), "tokens": sum(s.do_sample for s in scheduled)}
        num_topk = sum(topk_of(s.sampling_params) for s in scheduled if s.do_sample)
        num_hits = sum(self._count_hits(s) for s in scheduled)
        more = {"topk": num_topk, "cache": num_hits}
        for group in scheduled:
            of_prompt = _count_prompt(prompt_topk_of(group.sampling_params), outputs[group.request_id])
            for table, count in of_prompt.items():
                more[table] = more.get(table, 0) + count
        return {**rows, **{t: n for t, n in more.items() if n}}

    def _family(self, request_id: str) -> str:
        return family_of(request_id)

    def _add_to(self, live: V0Request, event: Joined) -> None:
        live.computed = event.num_computed
        live.step = event.engine_step - 1
        live.decodes = bool(event.token_ids)
        status = event.request.seqs[0].status.name
        if live.was_scheduled:
            live.scheduled = 0 if status == "RUNNING" else RESUMED
            live.epoch = -1  # not all of its steps were seen

    def _add_request(self, event: Admitted) -> None:
        group = event.request
        external, child, index = group.request_id.rpartition(CHILD)
        is_child = bool(child) and index.isdecimal()
        (sequence,) = group.seqs
        params = group.sampling_params
        asked = getattr(params, "logprobs", None) is not None
        live = V0Request(self._num_requests, sequence.get_prompt_len(), asked, params)
        live.epoch = self._blocks.epoch
        self._admit(
            event,
            live,
            external_id=external if is_child else group.request_id,
            index=int(index) if is_child else None,
            prompt=sequence.prompt_token_ids,
            num_mm_features=len(getattr(sequence, "multi_modal_data", None) or ()),
            sampling=sampling_of(params),
        )

    def _add_preempted(self, event: Preempted) -> None:
        request = self._live.get(event.request_id)
        if request is None:
            return
        request.scheduled = RESUMED
        if event.recomputes:
            request.computed, request.epoch = 0, self._blocks.epoch
        if request.shed:
            self._miss(request, {"scheduled": 1})
        else:
            self._preempted.append(request.number)

    def _add_step(self, event: Step) -> None:
        at, scheduled, outputs = event.at, event.scheduled, event.outputs
        assert at is not None  # V0 stamps every step that has an output
        if self._next_step is not None and at.engine_step > self._next_step:
            # V0 does not tell the positions of a step: what requests sample from here on is counted as lost
            self._live.clear()
            self._finished.clear()
        self._next_step = -1  # until all of this is done
        self._blocks.follow(at.engine_step)
        scores = getattr(outputs, "scores", None) or [None] * len(scheduled)
        found = [(self._find(s.request_id, "scheduled", 1), s, o) for s, o in zip(scheduled, outputs, strict=True)]
        for q, s, _ in found:
            if q is None and s.do_sample and self.is_sampled(s.request_id):
                self._miss_token(s)
        # the blocks of a request that is shed are there like any others
        shares = [self._part(self._known(s.request_id), s) for s in scheduled]
        hits = self._blocks.step(at.engine_step, at.weight_version, event.moves, shares)
        num_tokens = self._add_scheduled(at.engine_step, [(q, s) for q, s, _ in found if q is not None])
        num_tokens += self._pass_shed([s for q, s, _ in found if q is None])
        self._add_hits(at.engine_step, hits)
        for (q, s, output), share in zip(found, shares, strict=True):
            if q is None and not self.is_sampled(s.request_id):
                continue
            if q is None:
                self._miss(self._known(s.request_id), _count_prompt(prompt_topk_of(s.sampling_params), output))
            elif output.prompt_logprobs:
                self._add_prompt(at.engine_step, q, share.first + 1, output.prompt_logprobs)
        sampled = [q is not None and s.do_sample for q, s, _ in found]
        picked = [(q, s.request_id, o) for (q, s, o), was in zip(found, sampled, strict=True) if was and q is not None]
        self._add_tokens(at, picked, [score for score, was in zip(scores, sampled, strict=True) if was])
        usage = 1 - at.num_free_blocks / self._num_blocks
        self._append_step(at, event.output_ns, len(scheduled), num_tokens, usage)
        self._next_step = at.engine_step + 1

    def _add_scheduled(self, engine_step: int, picked: list[tuple[V0Request, Any]]) -> int:
        """Append a row for each request and each preempted one; return the tokens computed.

        V0 counts tokens of a prefix hit to the chunk, we do not.
        """
        columns = self._columns("scheduled")
        spans = [self._span(request, group) for request, group in picked]
        gone, self._preempted = self._preempted, []
        columns["request"] += [request.number for request, _ in picked] + gone
        columns["num_tokens"] += [end - first for first, end in spans] + [0] * len(gone)
        columns["num_computed"] += [first for first, _ in spans] + [0] * len(gone)
        columns["num_draft"] += [0] * (len(picked) + len(gone))  # an engine with speculation is not recorded
        columns["flags"] += [
            request.scheduled | (PREFILL if group.is_prompt else 0) | (0 if group.do_sample else PARTIAL)
            for request, group in picked
        ] + [PREEMPTED] * len(gone)
        columns["engine_step"] += [engine_step] * (len(picked) + len(gone))
        for (request, _), (_, end) in zip(picked, spans, strict=True):
            request.computed = end
            request.scheduled = 0
        return sum(end - first for first, end in spans)

    def _miss_token(self, group: Any) -> None:
        request = self._known(group.request_id)
        num_topk = topk_of(group.sampling_params) if request is not None else 0
        self._miss(request, {"tokens": 1, "topk": num_topk} if num_topk else {"tokens": 1})

    def _pass_shed(self, groups: list[Any]) -> int:
        """Follow requests that are shed; return the tokens computed for them."""
        total = 0
        for group in groups:
            if (request := self._known(group.request_id)) is not None:
                first, request.computed = self._span(request, group)
                request.scheduled = 0
                total += request.computed - first
        return total

    def _part(self, request: V0Request | None, group: Any) -> Part:
        if request is None:
            return Part(group.request_id, group.block_tables, 0, 0, False, False)
        # one that computes its prompt again was preempted: where that was not seen, its place is not known
        again = group.is_prompt and request.decodes and not request.scheduled
        request.decodes = not group.is_prompt
        known = request.epoch == self._blocks.epoch and not again
        return Part(group.request_id, group.block_tables, *self._span(request, group), request.scheduled != 0, known)

    def _count_hits(self, group: Any) -> int:
        request = self._live.get(group.request_id) or self._finished.get(group.request_id)
        if request is not None and not request.scheduled:
            return 0
        if group.is_prompt:
            return len(group.computed_block_nums or ())
        return self._blocks.count(request.computed) if request else 0

    def _span(self, request: V0Request, group: Any) -> tuple[int, int]:
        first = request.computed
        end = first + int(group.token_chunk_size)
        if group.is_prompt and group.computed_block_nums:
            cached = len(group.computed_block_nums) * self._block_size
            # as the model runners do: of a prompt that is cached whole, the last token is computed again
            first = max(first, min(cached, end - 1))
        return first, end

    def _add_tokens(
        self, at: Dispatch, picked: list[tuple[V0Request, str, Any]], scores: list[tuple[float, float | None] | None]
    ) -> None:
        columns = self._columns("tokens")
        samples = [output.samples[0] for _, _, output in picked]
        reported = [
            sample.logprobs[sample.output_token] if request.asked else None
            for (request, _, _), sample in zip(picked, samples, strict=True)
        ]
        accepted = [request_id in self._live for _, request_id, _ in picked]
        columns["request"] += [request.number for request, _, _ in picked]
        columns["position"] += [request.next_position for request, _, _ in picked]
        columns["token_id"] += [sample.output_token for sample in samples]
        processed = [score[0] if score else None for score in scores]
        columns["rollout_logprob"] += [r.logprob if r else p for r, p in zip(reported, processed, strict=True)]
        columns["rank"] += [r.rank if r else None for r in reported]
        columns["raw_logprob"] += [score[1] if score else None for score in scores]
        columns["processed_logprob"] += processed if self._logprobs == "both" else [None] * len(picked)
        columns["flags"] += [ACCEPTED if a else DISCARDED for a in accepted]
        columns["engine_step"] += [at.engine_step] * len(picked)
        columns["weight_version"] += [at.weight_version] * len(picked)
        for (request, _, _), sample in zip(picked, samples, strict=True):
            if request.num_topk:
                self._add_topk("topk", request, request.next_position, sample.logprobs, request.num_topk)
        for (request, _, _), a in zip(picked, accepted, strict=True):
            if a:
                request.next_position += 1
                request.step = at.engine_step

    def _add_prompt(self, engine_step: int, request: V0Request, first: int, reported: list[dict[int, Any]]) -> None:
        """Append what the engine reports of the prompt tokens from position `first` on."""
        own = [next(iter(row.items())) for row in reported]  # the prompt's token comes first
        columns = self._columns("prompt_logprobs")
        columns["request"] += [request.number] * len(own)
        columns["position"] += range(first, first + len(own))
        columns["token_id"] += [token_id for token_id, _ in own]
        columns["logprob"] += [value.logprob for _, value in own]
        columns["rank"] += [value.rank for _, value in own]
        columns["engine_step"] += [engine_step] * len(own)
        if request.num_prompt_topk:
            for position, row in enumerate(reported, first):
                self._add_topk("prompt_topk", request, position, row, request.num_prompt_topk)

    def _add_topk(self, table: str, request: V0Request, position: int, row: dict[int, Any], num_topk: int) -> None:
        # the token itself comes first, and is one too many where it is not among the most likely
        found = list(row.items())[-num_topk:]
        found.sort(key=lambda item: item[1].rank)
        columns = self._columns(table)
        columns["request"] += [request.number] * len(found)
        columns["position"] += [position] * len(found)
        columns["rank"] += range(1, len(found) + 1)
        columns["token_id"] += [token_id for token_id, _ in found]
        columns["logprob"] += [reported.logprob for _, reported in found]

    def _finish(
        self, request_id: str, reason: str, engine_step: int, time_ns: int, num_output_tokens: int | None = None
    ) -> None:
        request = self._live.get(request_id)
        if request is not None and reason != "abort":
            # with async output processing the engine learns of the end one step later
            engine_step = request.step
        if request is not None and num_output_tokens is not None and not request.shed:
            self._miss(None, {"tokens": max(num_output_tokens - (request.next_position - request.num_prompt), 0)})
        super()._finish(request_id, reason, engine_step, time_ns, num_output_tokens)


def _count_prompt(num_topk: int, output: Any) -> dict[str, int]:
    """Rows by table of the prompt tokens that an output of a group has."""
    count = len(output.prompt_logprobs or ())
    return {table: n for table, n in (("prompt_logprobs", count), ("prompt_topk", count * num_topk)) if n}


def family_of(request_id: str) -> str:
    """What the ids of one n>1 request have in common (vllm/sequence.py `ParallelSampleSequenceGroup`)."""
    parent, child, index = request_id.rpartition(CHILD)
    return parent if child and index.isdecimal() else request_id
