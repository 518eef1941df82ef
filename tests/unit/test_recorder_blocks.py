"""Versions of the weights that computed a KV block, against a small engine whose memory holds them token by token."""

import random
from types import SimpleNamespace as Made
from typing import Any

import pytest

from tracekit.recorder.vllm.blocks import Provenance, parts
from tracekit.recorder.vllm.v1.blocks import V1Blocks
from tracekit.recorder.vllm.v1.groups import KvGroup, kv_groups

SIZE = 4
NUM_BLOCKS = 40


class Engine:
    """A paged engine that hits, chunks, preempts, copies on write, aborts, and lets its worker lengthen our lists."""

    def __init__(self, seed: int, sub_block: bool) -> None:
        self.random = random.Random(seed)
        self.sub_block = sub_block
        self.lookahead = seed % 3 * 3  # tokens, as for drafts
        self.memory: dict[int, list[int]] = {}  # the version of each token, by block
        self.free = list(range(1, NUM_BLOCKS))
        self.cached: dict[tuple[int, ...], int] = {}  # whole blocks by all tokens up to their end
        self.refs: dict[int, int] = {}
        self.version = 0
        self.live: dict[str, Made] = {}
        self.waiting: list[Made] = []
        self.truth: list[tuple[str, int, int, set[int]]] = []
        self.names = 0
        self.just_gone: set[str] = set()

    def admit(self) -> str:
        prefix = self.random.choice([[1] * 17, [2] * 9, [1] * 8 + [3] * 9])
        tokens = prefix + [self.random.randrange(4, 6) for _ in range(self.random.randrange(1, 6))]
        self.names += 1
        request = Made(name=f"r{self.names}", tokens=tokens, table=[], computed=0, seen=False)
        self.waiting.append(request)
        return request.name

    def allocate(self) -> int | None:
        if not self.free:
            return None
        block = self.free.pop(0)
        self.cached = {key: found for key, found in self.cached.items() if found != block}
        self.memory[block], self.refs[block] = [], 1
        return block

    def release(self, request: Made) -> None:
        for block in reversed(request.table):
            self.refs[block] -= 1
            if not self.refs[block]:
                self.free.append(block)
        request.table = []

    def hit(self, request: Made) -> list[tuple[int, int]]:
        """Take what is cached of a request; a hit of a part of a block is copied."""
        most = len(request.tokens) - 1
        while (request.computed + SIZE) <= most:
            block = self.cached.get(tuple(request.tokens[: request.computed + SIZE]))
            if block is None:
                break
            if not self.refs[block]:
                self.free.remove(block)
            self.refs[block] += 1
            request.table.append(block)
            request.computed += SIZE
        longer = tuple(request.tokens[: request.computed + SIZE])
        source = next((b for key, b in self.cached.items() if key[: len(longer) - 2] == longer[:-2]), None)
        if self.sub_block and source is not None and request.computed + SIZE - 2 <= most and len(longer) % SIZE == 0:
            if len(next(k for k, b in self.cached.items() if b == source)) == len(longer) and self.memory[source]:
                if self.refs[source] == 0:
                    self.free.remove(source)  # held until the copy is done
                block = self.allocate()
                if self.refs[source] == 0:
                    self.free.append(source)
                if block is not None:
                    self.memory[block] = list(self.memory[source])
                    request.table.append(block)
                    request.computed += SIZE - 2
                    return [(source, block)]
        return []

    def fill(self, request: Made, count: int) -> list[int] | None:
        new = []
        while len(request.table) * SIZE < request.computed + count + self.lookahead:
            block = self.allocate()
            if block is None:
                return None
            request.table.append(block)
            new.append(block)
        return new

    def compute(self, request: Made, count: int) -> None:
        for position in range(request.computed, request.computed + count):
            block = self.memory[request.table[position // SIZE]]
            del block[position % SIZE :]
            block.append(self.version)
        request.computed += count
        for end in range(SIZE, request.computed + 1, SIZE):
            self.cached.setdefault(tuple(request.tokens[:end]), request.table[end // SIZE - 1])

    def step(self) -> Any:
        numbers: dict[str, int] = {}
        new: list[Any] = []
        rows: list[tuple[str, int, Any]] = []
        resumed, preempted, copies = set(), set(), []
        running = []
        for request in list(self.live.values()):
            if request.name not in self.live:
                continue
            count = min(len(request.tokens) - request.computed, 7)
            added = self.fill(request, count)
            while added is None:
                victim = list(self.live.values())[-1]
                del self.live[victim.name]
                self.release(victim)
                victim.computed = 0
                preempted.add(victim.name)
                self.waiting.insert(0, victim)
                numbers.pop(victim.name, None)
                running = [one for one in running if one[0] is not victim]
                if victim is request:
                    break
                added = self.fill(request, count)
            if request.name in self.live:
                numbers[request.name] = count
                running.append((request, count, request.table[: len(request.table)], added))
        started = []
        while not preempted and self.waiting and len(self.live) < 6 and len(self.free) > 8:
            request = self.waiting.pop(0)
            copies += self.hit(request)
            count = min(len(request.tokens) - request.computed, 7)
            if self.fill(request, count) is None:
                raise AssertionError("a small engine")
            self.live[request.name] = request
            numbers[request.name] = count
            started.append((request, count))
            # blocks are in the cache as soon as they are scheduled: who comes later in this step may hit them
            for end in range(SIZE, request.computed + count + 1, SIZE):
                self.cached.setdefault(tuple(request.tokens[:end]), request.table[end // SIZE - 1])
        for request, count, _, added in running:
            rows.append((request.name, request.computed, ([*(added or [])],) if added else None))
            self.compute(request, count)
        for request, count in started:
            for i, num_tokens in enumerate(parts(request.computed, SIZE)):
                self.truth.append((request.name, i, num_tokens, set(self.memory[request.table[i]])))
            if request.seen:
                resumed.add(request.name)
                request.shared = list(request.table)
                rows.append((request.name, request.computed, (request.shared,)))
            else:
                request.seen = True
                request.shared = list(request.table)
                new.append(Made(req_id=request.name, num_computed_tokens=request.computed, block_ids=(request.shared,)))
            self.compute(request, count)
        for request, _, _, added in running:
            request.shared.extend(added or [])  # as a worker in the same process does
        cached = Made(
            req_ids=[r for r, *_ in rows],
            num_computed_tokens=[c for _, c, _ in rows],
            new_block_ids=[b for *_, b in rows],
            resumed_req_ids=resumed,
        )
        gone, self.just_gone = self.just_gone, set()
        for request in list(self.live.values()):
            request.tokens.append(self.random.randrange(4, 6)) if request.computed == len(request.tokens) else None
            if len(request.tokens) > 30 or self.random.random() < 0.03:
                self.release(self.live.pop(request.name))
                self.just_gone.add(request.name)
        return Made(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=numbers,
            preempted_req_ids=preempted,
            finished_req_ids=gone,
            scheduled_spec_decode_tokens={},
            kv_cache_block_copies=copies or None,
        )


@pytest.mark.parametrize("sub_block", [False, True])
@pytest.mark.parametrize("late", [0, 3])
def test_every_hit_has_the_versions_that_the_memory_has(sub_block: bool, late: int) -> None:
    mixed = old = partly = 0
    for seed in range(25):
        engine = Engine(seed, sub_block)
        blocks = V1Blocks([KvGroup(SIZE, True, True)])
        queue, found = [], []
        for number in range(120):
            if engine.random.random() < 0.5:
                engine.admit()
            engine.version += engine.random.random() < 0.1
            queue.append((number, engine.version, engine.step(), len(engine.truth)))
            # the background thread is some steps behind
            if len(queue) > late:
                found += encode(blocks, *queue.pop(0)[:3])
        for number, version, scheduled, _ in queue:
            found += encode(blocks, number, version, scheduled)
        assert len(found) == len(engine.truth) > 50
        for hit, (name, i, num_tokens, versions) in zip(found, engine.truth, strict=True):
            assert (hit.request_id, hit.block, hit.num_tokens) == (name, i, num_tokens)
            assert hit.versions == (min(versions), max(versions)), (seed, hit, versions)
            mixed += len(versions) > 1
            partly += num_tokens < SIZE
            old += 1
    assert mixed > 20 and old > 1000 and (partly > 20) == sub_block


def encode(blocks: V1Blocks, number: int, version: int, scheduled: Any) -> list[Any]:
    count = blocks.count(scheduled, scheduled.num_scheduled_tokens)
    found = blocks.step(number, version, scheduled)
    assert len(found) == count
    return found


def test_after_a_missing_step_no_version_is_wrong() -> None:
    unknown = known = 0
    for seed in range(40):
        engine = Engine(seed, seed % 2 == 0)
        blocks = V1Blocks([KvGroup(SIZE, True, True)])
        for number in range(120):
            if engine.random.random() < 0.5:
                engine.admit()
            engine.version += engine.random.random() < 0.1
            before = len(engine.truth)
            scheduled = engine.step()
            if engine.random.random() < 0.04:
                continue
            for hit, (*_, versions) in zip(
                blocks.step(number, engine.version, scheduled), engine.truth[before:], strict=True
            ):
                if hit.versions is None:
                    unknown += 1
                else:
                    assert hit.versions == (min(versions), max(versions))
                    known += 1
    assert unknown > 100 and known > 100


def output(
    new: dict[str, Any] | None = None, rows: dict[str, Any] | None = None, drafts: Any = None, **more: Any
) -> Any:
    """A scheduler output: new is id -> (computed, scheduled, tables), rows the same with the blocks that are new."""
    new, rows = new or {}, rows or {}
    cached = Made(
        req_ids=list(rows),
        num_computed_tokens=[computed for computed, _, _ in rows.values()],
        new_block_ids=[blocks for *_, blocks in rows.values()],
        resumed_req_ids=set(),
    )
    fields = {
        "scheduled_new_reqs": [Made(req_id=r, num_computed_tokens=c, block_ids=b) for r, (c, _, b) in new.items()],
        "scheduled_cached_reqs": cached,
        "num_scheduled_tokens": {r: n for r, (_, n, _) in {**rows, **new}.items()},
        "preempted_req_ids": None,
        "finished_req_ids": set(),
        "scheduled_spec_decode_tokens": drafts or {},
    }
    return Made(**{**fields, **more})


def versions(hits: list[Any]) -> list[Any]:
    return [(hit.kv_group, hit.block, hit.block_id, hit.num_tokens, hit.versions) for hit in hits]


def test_each_kv_group_has_its_rows_and_a_null_block_has_no_versions() -> None:
    blocks = V1Blocks([KvGroup(4, True, True), KvGroup(8, False, True), KvGroup(4, True, False)])
    blocks.step(0, 3, output({"a": (0, 8, ([1, 2], [3], [4, 5]))}))
    found = versions(blocks.step(1, 4, output({"b": (8, 2, ([0, 2, 6], [3, 7], [4, 5, 8]))})))
    assert found == [
        (0, 0, 0, 4, None),
        (0, 1, 2, 4, (3, 3)),
        (1, 0, 3, 8, (3, 3)),
        (2, 0, 4, 4, None),
        (2, 1, 5, 4, None),
    ]


def test_a_draft_rejected_after_the_next_step_was_scheduled_may_be_computed_by_either() -> None:
    blocks = V1Blocks([KvGroup(4, True, True)], late_rejections=True)
    blocks.step(0, 0, output({"a": (0, 3, ([1, 2, 3],))}))
    blocks.step(1, 0, output(rows={"a": (3, 4, None)}, drafts={"a": [7, 8, 9]}))
    # all three drafts count as computed; none was accepted: positions 4 to 6 are computed here
    blocks.step(2, 1, output(rows={"a": (7, 4, None)}, drafts={"a": [7, 8, 9]}))
    found = versions(blocks.step(3, 1, output({"b": (8, 1, ([1, 2, 4],))})))
    assert found == [(0, 0, 1, 4, (0, 0)), (0, 1, 2, 4, (0, 1))]


def test_blocks_of_an_ended_request_are_followed_while_its_steps_may_come_and_no_longer() -> None:
    blocks = V1Blocks([KvGroup(4, True, True)])
    blocks.step(0, 0, output({"a": (0, 6, ([1, 2],))}))
    blocks.end("a", 2)  # aborted while this one is in flight
    blocks.step(1, 1, output(rows={"a": (6, 2, None)}))
    assert versions(blocks.step(2, 1, output({"b": (8, 1, ([1, 2, 3],))})))[1][-1] == (0, 1)
    for number in range(3, 40):
        blocks.step(number, 1, output())
    assert set(blocks._tables) == {"b"} and not blocks._ended
    blocks.step(40, 1, output({"c": (0, 4, ([7],))}, finished_req_ids={"b"}))
    blocks.step(41, 1, output(preempted_req_ids={"c"}))
    assert not blocks._tables


def test_a_table_that_cannot_be_makes_everything_unknown() -> None:
    blocks = V1Blocks([KvGroup(4, True, True)])
    blocks.step(0, 0, output({"a": (0, 4, ([1],))}))
    blocks.step(1, 0, output(rows={"a": (4, 1, None)}))  # a fifth token without a second block
    assert versions(blocks.step(2, 0, output({"b": (4, 1, ([1, 2],))}))) == [(0, 0, 1, 4, None)]


def test_a_copy_takes_what_was_there_and_the_unknown_stays_so() -> None:
    memory = Provenance()
    memory.write([1, 2], 4, 0, 8, 5)
    memory.move([(1, 2), (2, 3), (9, 1)])
    assert [memory.get(block) for block in (1, 2, 3)] == [None, (5, 5), (5, 5)]
    memory.write([1, 2], 4, 2, 8, 6)
    assert memory.get(1) is None and memory.get(2) == (6, 6)
    memory.forget([2, 7])
    assert memory.get(2) is None


def test_a_block_is_not_known_further_than_it_was_computed() -> None:
    memory, host = Provenance(), Provenance()
    memory.write([1, 2], 4, 0, 6, 5)
    assert memory.get(1, 4) == (5, 5) and memory.get(2, 2) == (5, 5) and memory.get(2, 3) is None
    memory.write([1, 2], 4, 6, 7, 6)
    host.move([(2, 70)], memory)
    assert host.get(70, 3) == (5, 6) and host.get(70, 4) is None


def test_groups_are_read_from_the_scheduler() -> None:
    class AttentionSpec:
        pass

    class CrossAttentionSpec(AttentionSpec):
        pass

    class MambaSpec:
        pass

    specs = [AttentionSpec(), CrossAttentionSpec(), MambaSpec(), Made(kv_cache_specs={"layer": AttentionSpec()})]
    manager = Made(
        block_pool=Made(hash_block_size=16),
        coordinator=Made(single_type_managers=[Made(block_size=16 * (i + 1)) for i in range(4)]),
    )
    groups = [Made(kv_cache_spec=spec) for spec in specs]
    scheduler = Made(kv_cache_manager=manager, kv_cache_config=Made(kv_cache_groups=groups), connector=None)
    assert [(g.block_size, g.hashed, g.tracked) for g in kv_groups(scheduler)] == [
        (16, True, True),
        (32, False, False),
        (48, False, False),
        (64, False, True),
    ]
    scheduler.connector = object()  # blocks come from elsewhere
    assert not any(group.tracked for group in kv_groups(scheduler))
