"""What an engine that is joined while it runs tells of its requests, and which of them are left out; no engine here."""

from types import SimpleNamespace as Made
from typing import Any

from tracekit.recorder.vllm.events import Admitted, Finished, Joined, Step, TableRow
from tracekit.recorder.vllm.rows import LiveRequest, Rows
from tracekit.recorder.vllm.v1.recording import V1Recording, join_engine


class Named(Rows[LiveRequest]):
    def _add_request(self, event: Admitted) -> None:
        self._live[event.request.request_id] = LiveRequest(self._num_requests, 3, True)
        self._num_requests += 1

    def _family(self, request_id: str) -> str:
        return request_id.partition("-")[2]


def request(name: str) -> Any:
    return Made(request_id=name)


def test_a_share_of_the_requests_is_recorded_families_as_a_whole_and_the_rest_is_not_lost() -> None:
    rows = Named(0.3)
    for i in range(1000):
        for child in range(2):
            rows.add(Admitted(0, request(f"{child}-{i}")))
    assert 500 < rows.num_live() < 700
    assert all(f"1-{name[2:]}" in rows._live for name in rows._live if name.startswith("0-"))
    left_out = next(f"0-{i}" for i in range(1000) if f"0-{i}" not in rows._live)
    assert rows.count(Admitted(0, request(left_out))) == {} and rows._find(left_out, "tokens", 5) is None
    assert rows.take_orphans() == {}


def test_a_request_that_was_under_way_goes_on_behind_what_it_had() -> None:
    rows = Named()
    rows.add(Joined(0, request("0-a"), 7, 4, [11, 12]))
    assert rows._live["0-a"].next_position == 5 and rows._live["0-a"].was_scheduled
    joined = rows.take()["joined"]
    assert joined["num_computed"].tolist() == [4] and joined["token_ids"] == [[11, 12]]
    assert rows.count(Joined(0, request("0-a"), 7, 4, [])) == {"requests": 1, "joined": 1}


class Session:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def append(self, event: Any) -> None:
        self.events.append(event)

    def hurry(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def close(self, timeout_secs: float, whole: bool = True) -> None:
        pass


class Requested:
    """A request of V1's scheduler."""

    def __init__(self, name: str, *token_ids: int) -> None:
        self.request_id, self.output_token_ids, self.finished = name, list(token_ids), ""
        self.num_computed_tokens, self.lora_request = 7 + len(token_ids), None

    def is_finished(self) -> bool:
        return bool(self.finished)

    def get_finished_reason(self) -> str:
        return self.finished


OUTPUT = Made(sampled_token_ids=[[1]], req_id_to_index={"a": 0}, logprobs=None, prompt_logprobs_dict={})


def stepped(recording: V1Recording, scheduled: Any) -> None:
    recording.join(scheduled)
    recording.on_output(scheduled, {}, [[1]], OUTPUT, None)


def test_with_steps_under_way_what_is_joined_has_the_tokens_of_all_steps_before_the_first_recorded() -> None:
    requests = {name: Requested(name, 3, 4) for name in ("a", "ends", "aborted")}
    pool = Made(block_pool=Made(get_num_free_blocks=lambda: 5))
    scheduler = Made(requests=requests, waiting=(), kv_cache_manager=pool)
    recording = V1Recording(scheduler, Session())  # type: ignore[arg-type]
    join_engine(recording, scheduler, 0, {})
    earlier, first, last, very_last = (Made(total_num_scheduled_tokens=1) for _ in range(4))
    recording.on_schedule(scheduler, first)
    requests["a"].output_token_ids.append(5)  # the step before comes back
    requests["ends"].finished = "stop"
    del requests["ends"]
    stepped(recording, earlier)
    requests["new"] = Requested("new")
    recording.admit(requests["new"], first=False)
    requests["aborted"].finished = "abort"
    recording.finished(Finished(["aborted"], "abort", 4, 0))
    told = recording.session.events  # type: ignore[attr-defined]
    assert [type(event) for event in told] == [TableRow, TableRow]  # attach, version 1
    stepped(recording, first)
    joined = {event.request.request_id: event for event in told if isinstance(event, Joined)}
    assert {name: event.token_ids for name, event in joined.items()} == {
        "a": [3, 4, 5],
        "ends": [3, 4],
        "aborted": [3, 4],
    }
    assert all(event.engine_step == 3 and event.num_computed == 9 for event in joined.values())
    rest = [event for event in told[2:] if not isinstance(event, Joined)]
    assert [type(event) for event in rest] == [Finished, Admitted, Finished, Step]
    assert (rest[0].request_ids, rest[0].reason, rest[0].engine_step) == (("ends",), "stop", 2)
    assert rest[3].at.engine_step == 3 and rest[3].at.weight_version == 1
    # a stop takes no new step, and ends with the output of the last one
    recording.on_schedule(scheduler, last)
    recording.on_schedule(scheduler, very_last)
    recording.stop()
    recording.on_schedule(scheduler, earlier)
    assert not recording.over
    stepped(recording, last)
    assert not recording.over
    stepped(recording, very_last)
    assert recording.over and told[-1].row["name"] == "detach" and told[-1].row["engine_step"] == 6
    stepped(recording, earlier)
    assert told[-1].row["name"] == "detach"
