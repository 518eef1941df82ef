"""An engine that does what a test says, a line of JSON at a time: driven.py MODEL FD; of vLLM V0 and V1.

Each line is [WORD, ARGUMENTS] with WORD a method of `Driven`; its answer is a line of JSON on the file descriptor FD.
"""

import importlib.metadata
import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # each step() of the engine is one step
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "all" if os.environ.get("VLLM_USE_V1") == "0" else "nobind"

from vllm import LLM, SamplingParams

import tracekit
from tracekit.recorder import pace
from tracekit.recorder.vllm import hooks, switch

V0 = os.environ.get("VLLM_USE_V1") == "0"


class Driven:
    def __init__(self, model):
        arguments = {"max_model_len": 512, "enforce_eager": True, "max_num_seqs": 16, "seed": 0, "dtype": "float32"}
        arguments |= {"block_size": 16 if V0 else 32, "disable_log_stats": False}
        self.engine = LLM(model=model, enable_prefix_caching=True, **arguments).llm_engine
        self.num_steps, self.seen = 0, {}

    def add(self, name, prompt, **params):
        """Ask for a completion."""
        params = {"temperature": 0.9, "max_tokens": 8, "logprobs": 0, "ignore_eos": True, "seed": 7, **params}
        self.engine.add_request(name, {"prompt_token_ids": prompt}, SamplingParams(**params))
        self.seen[name] = {"request_id": name, "index": 0, "prompt_token_ids": prompt, "token_ids": [], "logprobs": []}

    def steps(self, number=None):
        """Run so many steps, or until no request is left; return how many ran."""
        before = self.num_steps
        while self.engine.has_unfinished_requests() and number != self.num_steps - before:
            self.num_steps += 1
            for output in self.engine.step():
                (completion,) = output.outputs
                seen = self.seen[output.request_id]
                for at in range(len(seen["token_ids"]), len(completion.token_ids)):
                    token = completion.token_ids[at]
                    seen["token_ids"].append(token)
                    seen["logprobs"].append(completion.logprobs[at][token].logprob if completion.logprobs else None)
        return self.num_steps - before

    def view(self):
        """Return what the client received."""
        return list(self.seen.values())

    def net(self):
        core = self.engine if V0 else self.engine.engine_core.engine_core
        return core.model_executor.driver_worker.worker.model_runner.get_model()

    def scale(self, factor):
        """Multiply half of the final norm, which nobody is told of; all of it would be another temperature."""
        weight = self.net().model.norm.weight.data
        weight[: len(weight) // 2].mul_(factor)

    def told(self, window=256 << 20, ahead=256, close_secs=30):
        """Let recordings that begin now keep so many bytes, be so many steps behind, and take so long to end."""
        os.environ["TRACEKIT_WINDOW_BYTES"], pace.AHEAD, switch.CLOSE_SECS = str(window), ahead, close_secs

    def metrics(self):
        """Return what vLLM counts of itself."""
        from prometheus_client import generate_latest

        return generate_latest().decode()

    def ours(self):
        """Return what of ours a step runs through: wraps by name, and hooks on modules."""
        wraps = [f"{hook.owner.__name__}.{hook.name}" for hook in hooks.installed() if hook.name not in BIRTH]
        on_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.net().modules())
        return [sorted(wraps), on_modules]

    def found(self):
        """Return where the recorder was imported from, and the files of each distribution that has a plugin of vLLM."""
        points = importlib.metadata.entry_points(group="vllm.general_plugins")
        return [tracekit.__file__, [str(point.dist.locate_file("")) for point in points if point.name == "tracekit"]]


# there from the start, and not on a step's way
BIRTH = ("__init__", "tracekit_describe", "tracekit_fingerprint", "tracekit_arm", "tracekit_disarm", "sleep", "wake_up")


if __name__ == "__main__":
    driven, answers = Driven(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w")
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        word, arguments = json.loads(line)
        print(json.dumps(getattr(driven, word)(**arguments)), file=answers, flush=True)
