"""vLLM V1, forced: an engine core of our own in this process, whose sampler returns recorded tokens.

The scheduler, its block pool and the model runner are vLLM's own, so that requests get the chunks, hits and physical
blocks that they had (vllm/v1/core/sched/scheduler.py, vllm/v1/engine/core.py `step`). What replaces the sampled ids
stands in `Sampler.sample`, before logprobs are gathered (vllm/v1/sample/sampler.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tracekit.jobs.forced_engine import CannotForceError, Token
from tracekit.jobs.forced_setup import check_settings, know_model, settings_of
from tracekit.jobs.forced_v1_request import engine_request
from tracekit.jobs.forced_v1_step import compare, found_blocks, logprob_of
from tracekit.recorder.vllm import worker as recorder_worker

IDLE_STEPS = 4  # a request that is alone and is not scheduled in as many calls never will be


class V1Forced:
    """One engine core, stepped by hand.

    Args:
        job: see `tracekit.jobs.forced`.

    Raises:
        CannotForceError: the engine resolves a setting otherwise than the recorded one did.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import EngineArgs
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor.abstract import Executor

        know_model(job["model_class"])
        config = EngineArgs(**job["engine_args"]).create_engine_config()
        check_settings(config, job["expected"])
        if job["async_scheduling"]:
            _schedule_ahead(config.scheduler_config)
        self._core = EngineCore(config, Executor.get_class(config), log_stats=False)
        self._config = config
        self._scheduler = self._core.scheduler
        self._runner = self._core.model_executor.driver_worker.worker.model_runner
        self._requests = job["requests"]
        self._number = {own["id"]: number for number, own in enumerate(self._requests)}
        self._forced: dict[str, int] = {}
        self._in_flight: dict[int, Any] = {}
        self._blocks: list[list[Any]] = []
        self.fingerprints: dict[str, list[Any]] = {}
        self._note_weights(job["engine_args"]["model"])
        self._force()

    def facts(self) -> dict[str, Any]:
        """Return what the engine is, as a recording of it would say."""
        worker = self._core.model_executor.driver_worker.worker
        return {**settings_of(self._config), "worker": recorder_worker.describe(worker)["config"]}

    def reload(self, folder: str) -> None:
        """Load the weights of a folder; the prefix cache stays."""
        self._core.model_executor.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self._note_weights(folder)

    def begin(self) -> None:
        """Let go of all requests and of all that is cached."""
        self._end([*self._scheduler.requests])
        self._in_flight.clear()
        self.reset(running=False)

    def room(self, num_tokens: int) -> None:
        """Bound the tokens that steps compute from here on."""
        self._scheduler.max_num_scheduled_tokens = num_tokens

    def add(self, request: int, cached: bool) -> None:
        """Admit a request, which may read the prefix cache or not."""
        own = self._requests[request]
        skips = {} if cached else {"skip_reading_prefix_cache": True}
        self._admit({**own, "sampling": {**own["sampling"], **skips}})

    def step(self, engine_step: int, rows: list[list[Any]], preempted: list[int]) -> list[Token]:
        """Schedule and run one step; raise CannotForceError where it is not the recorded one."""
        scheduled = self._scheduler.schedule()
        compare(engine_step, scheduled, self._number, rows, preempted)
        for name, blocks in found_blocks(scheduled, self._config.cache_config.block_size):
            self._blocks.append([engine_step, self._number[name], blocks])
        self._forced = {self._requests[row[0]]["id"]: row[3][0] for row in rows if row[3]}
        output = self._execute(scheduled)
        self._in_flight[engine_step] = scheduled, output
        sampled = [row[0] for row in rows if row[3]]
        return [(request, engine_step, logprob_of(output, self._requests[request]["id"])) for request in sampled]

    def take(self, engine_step: int) -> None:
        """Let the scheduler have the step's output."""
        scheduled, output = self._in_flight.pop(engine_step)
        self._scheduler.update_from_output(scheduled, output)

    def abort(self, requests: list[int]) -> None:
        """Abort requests."""
        self._end([self._requests[request]["id"] for request in requests])

    def reset(self, running: bool) -> None:
        """Reset the prefix cache, and where `running` the requests that hold blocks."""
        self._core.reset_prefix_cache(reset_running_requests=running)

    def alone(self, request: int, token_ids: list[int]) -> list[Token]:
        """Run one request from an empty cache to its end."""
        own = self._requests[request]
        self.reset(running=False)
        self._admit(own)
        made: list[Token] = []
        for output in self._outputs(own["id"], token_ids):
            made.append((request, len(made), logprob_of(output, own["id"])))
        return made

    def prefill(self, request: int, token_ids: list[int]) -> list[Token]:
        """Run the tokens of one request as a part of its prompt; the last is sampled."""
        own = self._requests[request]
        self.reset(running=False)
        name, num_prompt = f"prefill-{own['id']}", len(own["prompt"])
        sampling = {**own["sampling"], "prompt_logprobs": 0, "max_tokens": 1, "min_tokens": 0}
        self._admit({**own, "id": name, "prompt": [*own["prompt"], *token_ids[:-1]], "sampling": sampling})
        made: list[Token] = []
        for output in self._outputs(name, token_ids[-1:]):
            scores = output.prompt_logprobs_dict[name].logprobs[num_prompt - 1 :, 0].tolist()
            made += [(request, index, value) for index, value in enumerate([*scores, logprob_of(output, name)])]
        return made

    def found(self) -> list[list[Any]]:
        """Return, and forget, which blocks admissions found computed."""
        found, self._blocks = self._blocks, []
        return found

    def _admit(self, own: Mapping[str, Any]) -> None:
        self._scheduler.add_request(self._core.preprocess_add_request(engine_request(own))[0])

    def _outputs(self, name: str, token_ids: list[int]) -> Any:
        """Step until a request that is alone has ended; give the outputs of those steps that sample."""
        num_made = num_idle = 0
        while self._scheduler.has_requests():
            scheduled = self._scheduler.schedule()
            num_idle = 0 if scheduled.total_num_scheduled_tokens else num_idle + 1
            if num_idle > IDLE_STEPS:
                raise CannotForceError(f"request {name} is not scheduled when it is alone")
            self._forced = {name: token_ids[min(num_made, len(token_ids) - 1)]}
            output = self._execute(scheduled)
            samples = bool(output.sampled_token_ids) and any(output.sampled_token_ids)
            if samples and num_made < len(token_ids):
                num_made += 1
                yield output
            self._scheduler.update_from_output(scheduled, output)
            if num_made == len(token_ids) and name in self._scheduler.requests:
                self._end([name])

    def _end(self, ids: list[str]) -> None:
        from vllm.v1.request import RequestStatus

        self._scheduler.finish_requests(ids, RequestStatus.FINISHED_ABORTED)

    def _note_weights(self, folder: str) -> None:
        told = recorder_worker.fingerprint(self._core.model_executor.driver_worker.worker)
        self.fingerprints[folder] = [[name, digest] for name, _, _, digest in told.get("tensors", ())]

    def _execute(self, scheduled: Any) -> Any:
        executor = self._core.model_executor
        output = executor.execute_model(scheduled, non_block=True).result()
        return executor.sample_tokens(None) if output is None else output

    def _force(self) -> None:
        """Let the runner's sampler return recorded tokens."""
        of_runner = self._runner.sampler
        sample = of_runner.sample

        def forced(*args: Any, **kwargs: Any) -> Any:
            sampled, processed = sample(*args, **kwargs)
            sampled = sampled.clone()
            for row, name in enumerate(self._runner.input_batch.req_ids):
                if name in self._forced:
                    sampled[row] = self._forced[name]
            return sampled, processed

        of_runner.sample = forced


def _schedule_ahead(scheduler_config: Any) -> None:
    """Let the scheduler be the one that plans a step before the last one's tokens are known; the runner need not."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    type(scheduler_config).get_scheduler_cls = lambda _config: AsyncScheduler
