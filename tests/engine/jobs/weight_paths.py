"""Weights that change on every path while two requests run, on LLMEngine; writes what the worker itself saw.

weight_paths.py MODEL OUT.json: in this process where VLLM_ENABLE_V1_MULTIPROCESSING=0, else through an engine process.
"""

import json
import os
import sys
import time

import torch
from vllm import EngineArgs, SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

IN_PROCESS = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"


def watch_forwards(worker):
    """Note for each forward the weights it runs on, as read there and then, and its requests."""
    runner, model = worker.model_runner, worker.get_model()
    runner.job_log, execute = [], runner.execute_model

    def execute_model(scheduler_output, *args, **kwargs):
        if scheduler_output.total_num_scheduled_tokens:
            norms = [model.model.norm, *(layer.input_layernorm for layer in model.model.layers)]
            now = [float(norm.weight.data.float().sum()).hex() for norm in norms]
            runner.job_log.append([now, sorted(scheduler_output.num_scheduled_tokens)])
            if not IN_PROCESS:
                time.sleep(0.1)  # or all is over before the client has seen the first token
        return execute(scheduler_output, *args, **kwargs)

    runner.execute_model = execute_model


def scale_norm(worker, scale):
    worker.get_model().model.norm.weight.data.mul_(scale)


def do_nothing(worker):
    pass


def get_log(worker):
    return worker.model_runner.job_log


def scale_layers(model):
    for layer in model.model.layers:
        layer.input_layernorm.weight.data.mul_(1.5)


def run(engine, names, at_tokens=None):
    """Generate for these requests; call at_tokens[n] when the first of them has n tokens."""
    at_tokens = dict(at_tokens or {})
    for i, name in enumerate(names):
        params = SamplingParams(temperature=0.8, logprobs=0, max_tokens=40, ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": [100 + 9 * i + j for j in range(20)]}, params)
    done = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            num_tokens = len(output.outputs[0].token_ids)
            for due in [n for n in at_tokens if output.request_id == names[0] and n <= num_tokens]:
                at_tokens.pop(due)()
            if output.finished:
                done[output.request_id] = list(output.outputs[0].token_ids)
    assert not at_tokens
    return done


def main(model, out):
    import weight_paths  # the functions that vLLM pickles by name must not be of __main__

    args = {"max_model_len": 128, "enforce_eager": True, "seed": 0, "max_num_seqs": 4}
    engine = LLMEngine.from_engine_args(EngineArgs(model=model, **args))
    view = {"requests": {}}
    engine.collective_rpc(watch_forwards)

    def reload():
        engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
        if hasattr(engine, "set_weight_version"):
            engine.set_weight_version("step-7")

    changes = {
        6: lambda: engine.collective_rpc(scale_norm, args=(1.5,)),
        12: lambda: engine.apply_model(weight_paths.scale_layers),
        18: reload,
        24: lambda: engine.collective_rpc(do_nothing),
    }
    if IN_PROCESS:
        weights = engine.engine_core.engine_core.model_executor.driver_worker.worker.get_model()
        norm = weights.model.norm.weight

        def load():
            for scale in (1.5, 1.25):
                weights.load_weights([("model.norm.weight", torch.full(norm.shape, scale))])

        changes[30] = load
    view["requests"] |= run(engine, ["a", "b"], changes)
    if IN_PROCESS:
        norm.data.mul_(0.5)
    view["requests"] |= run(engine, ["c"])
    view["requests"] |= run(engine, ["d"])
    engine.sleep(1)
    engine.wake_up()
    view["requests"] |= run(engine, ["e"])
    (view["log"],) = engine.collective_rpc(get_log)
    with open(out, "w") as file:
        json.dump(view, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
