"""A job that starts dormant and stands still, between two steps, where the test attaches to it and detaches again.

attached.py MODEL FOLDER [PLACE=0]: at each place it touches FOLDER/at-NAME and waits for FOLDER/go-NAME; writes
FOLDER/view.json: each request's tokens with logprob and step, and what stood in place of the scheduler's methods.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # each step() of the engine is one step

from vllm import LLM, SamplingParams

import tracekit

PROMPT = 40


def scheduler_class():
    if os.environ.get("VLLM_USE_V1") == "0":
        from vllm.core.scheduler import Scheduler
    else:
        from vllm.v1.core.sched.scheduler import Scheduler
    return Scheduler


class Job:
    def __init__(self, model, folder):
        arguments = {"max_model_len": 512, "enforce_eager": True, "max_num_seqs": 16, "seed": 0, "dtype": "float32"}
        arguments |= {"block_size": 16 if os.environ.get("VLLM_USE_V1") == "0" else 32}
        self.engine = LLM(model=model, enable_prefix_caching=True, **arguments).llm_engine
        self.folder, self.step, self.seen, self.hooked = folder, 0, {}, {}

    def add(self, name, max_tokens, offset=0, logprobs=0):
        params = SamplingParams(temperature=0.9, max_tokens=max_tokens, logprobs=logprobs, ignore_eos=True, seed=7)
        prompt = {"prompt_token_ids": [1000 + offset * 100 + i for i in range(PROMPT)]}
        self.engine.add_request(name, prompt, params)
        self.seen[name] = []

    def steps(self, number=None):
        """Run so many steps, or until no request is left."""
        while self.engine.has_unfinished_requests() if number is None else number:
            number = None if number is None else number - 1
            self.step += 1
            for output in self.engine.step():
                (completion,) = output.outputs
                seen = self.seen[output.request_id]
                for at in range(len(seen), len(completion.token_ids)):
                    token_id = completion.token_ids[at]
                    told = completion.logprobs[at] if completion.logprobs else None
                    assert told is None or set(told) == {token_id}, told  # nothing of ours reaches a client
                    logprob = float(told[token_id].logprob).hex() if told else None
                    seen.append({"token_id": token_id, "logprob": logprob, "step": self.step})

    def wait(self, name):
        methods = vars(scheduler_class())
        names = ("schedule", "update_from_output", "add_request", "_preempt")
        self.hooked[name] = [method for method in names if hasattr(methods.get(method), "_tracekit")]
        (self.folder / f"at-{name}").touch()
        while not (self.folder / f"go-{name}").exists():
            time.sleep(0.02)


if __name__ == "__main__":
    job = Job(sys.argv[1], Path(sys.argv[2]))
    job.add("before", 4)
    job.steps()
    for i in range(3):
        job.add(f"joined-{i}", 30 + i, i)
    job.steps(6)
    job.add("waiting", 12, 4)
    job.wait("start")
    job.steps(8)
    job.add("within", 6, 0)  # finds the blocks of joined-0 computed, by nobody knows whom
    job.steps(10)
    job.wait("stop")
    job.add("after", 5, 6)
    job.steps()
    job.wait("rest")
    job.wait("again")
    job.add("unasked", 12, 8, logprobs=None)
    job.steps(4)
    job.add("second", 9, 7)
    job.steps()
    job.wait("idle")
    job.add("last", 3, 9)
    job.steps()
    job.wait("end")
    job.wait("over")
    view = {"seen": job.seen, "hooked": job.hooked, "recorder": tracekit.__file__}
    (job.folder / "view.json").write_text(json.dumps(view))
