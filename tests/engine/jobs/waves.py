"""Waves of requests, the same each time; the daemon may be stopped behind the first and be back before the last.

waves.py MODEL FOLDER POLICY: behind the first wave it touches FOLDER/half and waits for FOLDER/go. Where POLICY is
"drop" it touches FOLDER/late before the last one and waits for FOLDER/on; where it is "lossless" the recorder is told
so, and keeps few steps. Writes FOLDER/wave as it goes, and FOLDER/tokens.json.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

from tracekit.recorder import pace

WAVES = 14


def meet(folder, said, awaited):
    (folder / said).touch()
    while not (folder / awaited).exists():
        time.sleep(0.05)


if __name__ == "__main__":
    model, folder, policy = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if policy == "lossless":
        os.environ["TRACEKIT_LOSSLESS"] = "1"
        pace.AHEAD = 16
    llm = LLM(model=model, max_model_len=512, enforce_eager=True, max_num_seqs=16, seed=0, dtype="float32")
    params = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=64, logprobs=1, ignore_eos=True)
    seen = []
    for wave in range(WAVES):
        (folder / "wave").write_text(str(wave))
        if wave == 1:
            meet(folder, "half", "go")
        if wave == WAVES - 1 and policy == "drop":
            meet(folder, "late", "on")
        prompts = [{"prompt_token_ids": [100 + 7 * i + wave, 200, 300]} for i in range(8)]
        seen += [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]
    (folder / "tokens.json").write_text(json.dumps(seen))
