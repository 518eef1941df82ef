"""vLLM V0 (0.8.5), forced: an LLMEngine of our own in this process, whose sampler returns recorded tokens.

`LLMEngine.step` schedules, runs and takes in one call (vllm/engine/llm_engine.py). What replaces the sampled ids stands
around `_sample`, before logprobs are gathered (vllm/model_executor/layers/sampler.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tracekit.jobs.forced_engine import CannotForceError, Token
from tracekit.jobs.forced_setup import check_settings, compare_parts, know_model, sampling_params, settings_of
from tracekit.recorder.vllm import worker as recorder_worker


class V0Forced:
    """One LLMEngine, stepped by hand.

    Args:
        job: see `tracekit.jobs.forced`.

    Raises:
        CannotForceError: the engine resolves a setting otherwise than the recorded one did.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        from vllm import EngineArgs, LLMEngine

        know_model(job["model_class"])
        known = {field.name for field in fields(EngineArgs)} - {"skip_tokenizer_init"}  # stop strings end requests here
        arguments = {name: value for name, value in job["engine_args"].items() if name in known}
        config = EngineArgs(**arguments).create_engine_config()
        check_settings(config, job["expected"])
        self._config = config
        self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._worker = self._engine.model_executor.driver_worker.worker
        self._requests = job["requests"]
        self._number = {own["id"]: number for number, own in enumerate(self._requests)}
        self._names: dict[int, str] = {}  # of requests, by the ids of their sequences
        self._forced: dict[str, int] = {}
        self._computed: dict[str, int] = {}  # tokens with KV, by request
        self._check: Callable[[list[Any]], None] = _nothing
        self._ran: tuple[list[Any], list[Any]] = [], []
        self.fingerprints: dict[str, list[Any]] = {}
        self._note_weights(job["engine_args"]["model"])
        self._force()

    def facts(self) -> dict[str, Any]:
        """Return what the engine is, as a recording of it would say."""
        return {**settings_of(self._config), "worker": recorder_worker.describe(self._worker)["config"]}

    def reload(self, folder: str) -> None:
        """Load the weights of a folder; the prefix cache stays."""
        from vllm.model_executor.model_loader.weight_utils import safetensors_weights_iterator

        files = sorted(map(str, Path(folder).glob("*.safetensors")))
        self._worker.get_model().load_weights(safetensors_weights_iterator(files, use_tqdm_on_load=False))
        self._note_weights(folder)

    def begin(self) -> None:
        """Let go of all requests and of all that is cached."""
        for name in {*self._names.values()}:
            self._engine.abort_request(name)
        self._names.clear()
        self.reset(running=False)

    def room(self, num_tokens: int) -> None:
        """Leave the bound as it is: V0 computes what is cached only where it is not."""

    def add(self, request: int, cached: bool) -> None:
        """Admit a request."""
        self._admit(self._requests[request])

    def step(self, engine_step: int, rows: list[list[Any]], preempted: list[int]) -> list[Token]:
        """Schedule and run one step; raise CannotForceError where it is not the recorded one."""
        self._forced = {self._requests[row[0]]["id"]: row[3][0] for row in rows if row[3]}
        self._ran = [], []
        there = {request: (n, computed) for request, n, computed, _ in rows}
        self._check = lambda groups: compare_parts(engine_step, there, self._parts(groups))
        self._engine.step()
        values = dict(zip((group.request_id for group in self._ran[0]), self._ran[1], strict=True))
        sampled = [row[0] for row in rows if row[3]]
        return [(request, engine_step, _logprob(values[self._requests[request]["id"]])) for request in sampled]

    def take(self, engine_step: int) -> None:
        """Do nothing: the step took its own output."""

    def abort(self, requests: list[int]) -> None:
        """Abort requests."""
        for request in requests:
            self._engine.abort_request(self._requests[request]["id"])

    def reset(self, running: bool) -> None:
        """Reset the prefix cache; V0 does so only while nothing runs."""
        self._engine.reset_prefix_cache()

    def alone(self, request: int, token_ids: list[int]) -> list[Token]:
        """Run one request from an empty cache to its end."""
        self.reset(running=False)
        own = self._requests[request]
        self._admit(own)
        outputs = self._outputs(own["id"], token_ids)
        return [(request, index, _logprob(output)) for index, output in enumerate(o for o in outputs if o.samples)]

    def prefill(self, request: int, token_ids: list[int]) -> list[Token]:
        """Run the tokens of one request as a part of its prompt; the last is sampled."""
        self.reset(running=False)
        own = self._requests[request]
        name, num_prompt = f"prefill-{own['id']}", len(own["prompt"])
        sampling = {**own["sampling"], "prompt_logprobs": 0, "max_tokens": 1, "min_tokens": 0}
        self._admit({**own, "id": name, "prompt": [*own["prompt"], *token_ids[:-1]], "sampling": sampling})
        scores: list[float] = []
        last = 0.0
        for output in self._outputs(name, token_ids[-1:]):
            scores += [next(iter(row.values())).logprob for row in output.prompt_logprobs or ()]
            last = _logprob(output) if output.samples else last
        return [(request, index, value) for index, value in enumerate([*scores[num_prompt - 1 :], last])]

    def found(self) -> list[list[Any]]:
        """Return nothing: which blocks were found, V0 tells by their count alone."""
        return []

    def _admit(self, own: Mapping[str, Any]) -> None:
        self._computed.pop(own["id"], None)
        params = sampling_params(own["sampling"])
        self._engine.add_request(own["id"], {"prompt_token_ids": list(own["prompt"])}, params)
        (sequence,) = self._engine.scheduler[0].waiting[-1].seqs
        self._names[sequence.seq_id] = own["id"]

    def _outputs(self, name: str, token_ids: list[int]) -> list[Any]:
        """Step until a request that is alone has ended; return the outputs of its steps."""
        outputs: list[Any] = []
        self._check = _nothing
        while self._engine.has_unfinished_requests():
            num_made = sum(bool(output.samples) for output in outputs)
            if num_made == len(token_ids):
                self._engine.abort_request(name)
                break
            self._forced, self._ran = {name: token_ids[num_made]}, ([], [])
            self._engine.step()
            if not self._ran[1]:
                raise CannotForceError(f"request {name} is not scheduled when it is alone")
            outputs += self._ran[1]
        return outputs

    def _parts(self, groups: list[Any]) -> dict[int, tuple[int, int]]:
        """Tokens that a step computes for each request, and from which on, as the recorder counts them."""
        parts = {}
        for group in groups:
            ((_, data),) = group.seq_data.items()
            first = self._computed.get(group.request_id, 0)
            if group.is_prompt and not data.get_num_computed_tokens():
                first = 0  # it begins, or lost its KV
            end = first + int(group.token_chunk_size)
            if group.is_prompt and group.computed_block_nums:
                first = max(first, min(len(group.computed_block_nums) * self._config.cache_config.block_size, end - 1))
            self._computed[group.request_id] = end
            parts[self._number[group.request_id]] = end - first, first
        return parts

    def _force(self) -> None:
        """Let the sampler return recorded tokens, and keep what each forward ran and said."""
        from vllm.model_executor.layers import sampler

        sample: Any = sampler._sample
        execute = self._engine.model_executor.execute_model

        def forced(probs: Any, logprobs: Any, metadata: Any, *args: Any, **kwargs: Any) -> Any:
            results, tensor = sample(probs, logprobs, metadata, *args, **kwargs)
            names = [self._names.get(group.seq_ids[0], "") for group in metadata.seq_groups]
            # what samples nothing has no ids
            results = [
                ([self._forced[name]], parents) if ids and name in self._forced else (ids, parents)
                for name, (ids, parents) in zip(names, results, strict=True)
            ]
            return results, tensor

        def executed(execute_model_req: Any, *args: Any, **kwargs: Any) -> Any:
            groups = execute_model_req.seq_group_metadata_list
            self._check(groups)
            outputs = execute(execute_model_req, *args, **kwargs)
            self._ran = list(groups), list(outputs[0].outputs)
            return outputs

        sampler._sample, self._engine.model_executor.execute_model = forced, executed

    def _note_weights(self, folder: str) -> None:
        told = recorder_worker.fingerprint(self._worker)
        self.fingerprints[folder] = [[name, digest] for name, _, _, digest in told.get("tensors", ())]


def _logprob(output: Any) -> float:
    """What is reported of a sampled token, in nats."""
    (sample,) = output.samples
    return float(sample.logprobs[sample.output_token].logprob)


def _nothing(groups: list[Any]) -> None:
    """Compare a step with nothing."""
