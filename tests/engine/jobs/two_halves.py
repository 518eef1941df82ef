"""A deterministic job in two halves; between them it waits until the test has done its harm to the daemon.

two_halves.py MODEL FOLDER: writes FOLDER/tokens.json; touches FOLDER/half, waits for FOLDER/go where FOLDER/wait is.
FOLDER/freed says whether the engine is, once nobody has it.
"""

import gc
import json
import os
import sys
import time
import weakref
from pathlib import Path

# in one process requests enter in one order and batches are the same each time
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model, folder = sys.argv[1], Path(sys.argv[2])
    llm = LLM(model=model, max_model_len=512, enforce_eager=True, max_num_seqs=16, seed=0, dtype="float32")
    params = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=40, logprobs=0, ignore_eos=True)
    seen = []
    for half in range(2):
        prompts = [{"prompt_token_ids": [100 + 7 * i + half, 200, 300]} for i in range(8)]
        for output in llm.generate(prompts, params, use_tqdm=False):
            (completion,) = output.outputs
            logprobs = [
                float(row[t].logprob).hex() for t, row in zip(completion.token_ids, completion.logprobs, strict=True)
            ]
            seen.append({"token_ids": list(completion.token_ids), "logprobs": logprobs})
        if half == 0:
            (folder / "half").touch()
            while (folder / "wait").exists() and not (folder / "go").exists():
                time.sleep(0.05)
    (folder / "tokens.json").write_text(json.dumps(seen))
    engine = llm.llm_engine
    v1 = hasattr(engine, "engine_core")
    scheduler = weakref.ref(engine.engine_core.engine_core.scheduler if v1 else engine.scheduler[0])
    del llm, engine
    gc.unfreeze()  # vLLM freezes what is there once it is built
    gc.collect()
    (folder / "freed").write_text(str(scheduler() is None))
