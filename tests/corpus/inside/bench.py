"""An engine in this process that is recorded once for each case: the recorder's own functions open and close it."""

import os


def _unnamed():
    """How an engine is recorded that will be told where to."""
    from tracekit.recorder.settings import Options, access, logprobs_option

    return Options("", access(), logprobs_option())


class V1:
    """vLLM 0.18 and 0.32."""

    def __init__(self, model, args):
        from tracekit.recorder.vllm.v1 import attach

        attach.attach()  # no daemon is named yet: the engine is built unrecorded
        attach.watch(_unnamed())
        from vllm import EngineArgs, LLMEngine

        self.folder = model
        self.engine = LLMEngine.from_engine_args(EngineArgs(model=model, **args))
        self.core = self.engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        self.tokenizer = self.engine.get_tokenizer()
        self.recording = None

    @property
    def model(self):
        return self.runner.get_model()

    @property
    def sampler(self):
        return self.runner.sampler

    @property
    def logits_owner(self):
        return self.model

    def open(self, daemon):
        from tracekit.recorder.settings import options
        from tracekit.recorder.vllm.v1.recording import open_for

        os.environ["TRACEKIT_DAEMON"] = daemon
        self.recording = open_for(self.scheduler, options())

    def close(self):
        from tracekit.recorder.vllm.opening import PLACE

        self.recording.close(60)
        delattr(self.scheduler, PLACE)
        del os.environ["TRACEKIT_DAEMON"]

    def probe(self, folder):
        """Keep states of the first requests there; None: keep no more."""
        from tracekit.recorder.vllm.v1 import probe

        if folder is None:
            getattr(self.runner, probe.PLACE).stop()
            return
        probe.attach(folder)
        vars(self.runner).pop(probe.PLACE, None)
        probe.probing_of(self.runner, folder)

    def set_mode(self, mode):
        """Let its sampler return what an engine of this logprobs_mode returns, and its configuration say so."""
        name = f"{mode}_logprobs"
        self.scheduler.vllm_config.model_config.logprobs_mode = name
        for sampler in (self.sampler, self.sampler.topk_topp_sampler):
            sampler.logprobs_mode = name

    def load(self, folder):
        self.engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})

    def load_quietly(self, folder):
        """Load while nothing is recorded; the folder that the engine says it serves stays what it was."""
        self.load(folder)
        self.scheduler.vllm_config.model_config.model = self.folder

    def reset_cache(self):
        assert self.engine.reset_prefix_cache()

    def end_requests(self):
        """Leave nothing behind of a job that failed."""
        self.engine.abort_request([name for name in self.engine.output_processor.external_req_ids])
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def add(self, name, prompt, params, lora=None):
        self.engine.add_request(name, {"prompt_token_ids": prompt}, params, lora_request=lora)


class V0:
    """vLLM 0.8.5."""

    def __init__(self, model, args):
        from tracekit.recorder.vllm.v0 import attach

        attach.attach()
        attach.watch(_unnamed())
        from vllm import EngineArgs, LLMEngine

        self.folder = model
        self.engine = LLMEngine.from_engine_args(EngineArgs(model=model, **args))
        self.worker = self.engine.model_executor.driver_worker.worker
        self.tokenizer = self.engine.get_tokenizer()
        self.recording = None

    @property
    def model(self):
        return self.worker.get_model()

    @property
    def sampler(self):
        return self.worker.model_runner.sampler

    @property
    def logits_owner(self):
        return self.model

    def open(self, daemon):
        from tracekit.recorder.settings import options
        from tracekit.recorder.vllm.v0 import attach, recording

        os.environ["TRACEKIT_DAEMON"] = daemon
        told = options()
        self.recording = recording.open_for(self.engine, told)
        attach._watch_driver(self.recording, self.engine.model_executor, told)

    def close(self):
        from tracekit.recorder.vllm.opening import PLACE

        self.recording.close(60)
        owners = (self.engine, self.engine.model_executor, *self.engine.scheduler, *self.engine.scheduler_contexts)
        for owner in (*owners, self.worker):
            delattr(owner, PLACE)
        del os.environ["TRACEKIT_DAEMON"]

    def probe(self, folder):
        """Keep states of the first requests there; None: keep no more."""
        from tracekit.recorder.vllm.v0 import probe

        if folder is None:
            getattr(self.worker, probe.PLACE).stop()
            return
        probe.attach(folder)
        probe.probe(self.worker, folder)

    def set_mode(self, mode):
        assert mode == "processed"

    def load(self, folder):
        """What an RL framework does on V0: hand every tensor to load_weights."""
        from pathlib import Path

        from safetensors.torch import load_file

        for path in sorted(Path(folder).glob("*.safetensors")):
            self.model.load_weights(load_file(path).items())

    load_quietly = load

    def reset_cache(self):
        self.engine.reset_prefix_cache()

    def end_requests(self):
        """Leave nothing behind of a job that failed."""
        for scheduler in self.engine.scheduler:
            self.engine.abort_request([group.request_id for group in (*scheduler.running, *scheduler.waiting)])

    def add(self, name, prompt, params, lora=None):
        self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
