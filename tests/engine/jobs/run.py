"""Jobs one after another in this process, which imports vLLM once: run.py JOB [ARG...] [-- JOB [ARG...]]...

A job that is written as plain:JOB runs before the recorder is attached, and has to come first.
"""

import os
import runpy
import sys
from itertools import groupby

PLAIN = "plain:"


def know_llama():
    """Hand vLLM the class of the tiny model: else it asks a process of its own, which imports everything anew."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.llama import LlamaForCausalLM

    ModelRegistry.register_model("LlamaForCausalLM", LlamaForCausalLM)


def attach(daemon):
    """Wake the plugin, which vLLM loads once a process and which does nothing where no daemon is named."""
    from tracekit.recorder.plugin import register

    os.environ["TRACEKIT_DAEMON"] = daemon
    register()


def main(words):
    jobs = [list(part) for is_end, part in groupby(words, "--".__eq__) if not is_end]
    if os.environ.get("VLLM_USE_V1") != "0":
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # or every engine of a machine runs on the same core
    asleep = jobs[0][0].startswith(PLAIN)
    daemon = os.environ.pop("TRACEKIT_DAEMON") if asleep else None
    know_llama()
    for name, *arguments in jobs:
        if asleep and not name.startswith(PLAIN):
            attach(daemon)
            asleep = False
        sys.argv = [name.removeprefix(PLAIN), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
