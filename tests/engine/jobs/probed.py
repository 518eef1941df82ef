"""Run prompts on an engine of one process, one of its modules put off by a hook: MODEL DTYPE MODULE|none FACTOR.

Of vLLM V0 and V1.
"""

import importlib.util
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    model, dtype, module, factor = sys.argv[1:]
    v0 = importlib.util.find_spec("vllm.core") is not None
    own = {"enable_chunked_prefill": True} if v0 else {"logprobs_mode": "raw_logprobs"}
    llm = LLM(
        model=model,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=128,
        max_num_batched_tokens=32,
        enable_prefix_caching=False,
        max_num_seqs=16,
        **own,
        skip_tokenizer_init=True,
    )
    if module != "none":
        core = llm.llm_engine if v0 else llm.llm_engine.engine_core.engine_core
        net = core.model_executor.driver_worker.worker.model_runner.get_model()

        def scaled(_module, _args, output):
            first = output[0] if isinstance(output, tuple) else output
            first *= float(factor)

        net.get_submodule(module).register_forward_hook(scaled)
    prompts = [list(range(10 + i, 10 + i + length)) for i, length in enumerate((7, 45, 12, 9, 20))]
    params = SamplingParams(temperature=1.0, max_tokens=12, logprobs=0, detokenize=False, ignore_eos=True)
    llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
