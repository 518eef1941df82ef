"""Plain offline inference, with nothing of tracekit in it.

tracekit record --engine v1 -o trace.arrow -- python examples/llm_generate.py MODEL
"""

import sys

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(model=sys.argv[1], max_model_len=512, enforce_eager=True)
    params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=24, logprobs=0, n=2)
    for output in llm.generate(["The capital of France is", "def fibonacci(n):"], params):
        for completion in output.outputs:
            print(output.request_id, completion.index, completion.token_ids, repr(completion.text))
