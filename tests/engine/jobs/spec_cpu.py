"""Speculative decoding on 0.18's CPU build, whose model runner refuses it and whose verification needs Triton.

`allow` lifts the refusal and verifies greedy drafts in plain torch, to the same rule; scheduler, proposer, logprobs and
model runner are vLLM's. A build that supports it (0.32's does) is left as it is.
"""

import inspect


class _VerifyGreedy:
    """Stands for the Triton kernel: called as kernel[grid](...)."""

    def __getitem__(self, _grid):
        return self.verify

    @staticmethod
    def verify(output, ends, drafted, argmax, bonus, _is_greedy, _max_len):
        begin = 0
        for row, end in enumerate(ends.tolist()):
            accepted = 0
            while begin + accepted < end and drafted[begin + accepted] == argmax[begin + accepted]:
                accepted += 1
            output[row, :accepted] = drafted[begin : begin + accepted]
            # the target's own token: in place of the first rejected draft, or after the last accepted one
            output[row, accepted] = bonus[row, 0] if begin + accepted == end else argmax[begin + accepted]
            begin = end


def allow():
    """Let greedy requests of an engine with n-gram speculation run."""
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if "spec decode is not supported" not in inspect.getsource(CPUModelRunner.__init__):
        return
    rejection_sampler.rejection_greedy_sample_kernel = _VerifyGreedy()
    build, build_cpu = GPUModelRunner.__init__, CPUModelRunner.__init__

    def hide(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.speculative_config = None

    def show(self, vllm_config, *args, **kwargs):
        build_cpu(self, vllm_config, *args, **kwargs)
        self.speculative_config = vllm_config.speculative_config

    GPUModelRunner.__init__, CPUModelRunner.__init__ = hide, show
