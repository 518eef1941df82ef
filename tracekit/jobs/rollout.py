"""Generate with `vllm.LLM` inside an engine environment: `python -m tracekit.jobs.rollout JOB.json`.

The job is what a user's own script would do, so nothing here knows of the recorder. JOB.json::

    {"model": "/models/m", "engine_args": {"max_model_len": 2048, "enforce_eager": true},
     "sampling": {"temperature": 0.7, "max_tokens": 32},            defaults for all requests
     "prompts": [{"prompt": "Hi", "sampling": {"seed": 1}}, ...],   as from prompts.parse_prompts
     "output": "/tmp/client.jsonl"}

The output holds the client's own view, one JSON object per completion, written whole or not at all::

    {"request": 0, "request_id": "0", "index": 0, "prompt_token_ids": [..], "token_ids": [..],
     "logprobs": [-0.25, ..] or null, "prompt_logprobs": [null, -3.5, ..] or null, "text": "..",
     "finish_reason": "stop"}

`logprobs` are those of the sampled tokens and `prompt_logprobs` of the prompt's, float32 values as Python prints them,
so that they round-trip bit for bit.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sampling_params(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge one request's sampling fields over the defaults; the sampled token's logprob is always asked for."""
    merged = {"logprobs": 0, **defaults, **own}
    if merged.get("logit_bias"):
        merged["logit_bias"] = {int(token): bias for token, bias in merged["logit_bias"].items()}
    return merged


def engine_prompt(request: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return what LLM.generate takes; messages go through the model's chat template to token ids."""
    if "messages" in request:
        ids = tokenizer.apply_chat_template(
            request["messages"], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return {"prompt_token_ids": list(ids)}
    key = "prompt" if "prompt" in request else "prompt_token_ids"
    return {key: request[key]}


def client_view(number: int, output: Any) -> list[dict[str, Any]]:
    """Return one row per completion of a vllm.RequestOutput."""
    rows = []
    prompt = output.prompt_logprobs
    if prompt is not None:
        # the prompt's own token comes first
        prompt = [at and next(iter(at.values())).logprob for at in prompt]
    for completion in output.outputs:
        token_ids = list(completion.token_ids)
        logprobs = None
        if completion.logprobs is not None:
            logprobs = [at[token].logprob for at, token in zip(completion.logprobs, token_ids, strict=True)]
        rows.append(
            {
                "request": number,
                "request_id": output.request_id,
                "index": completion.index,
                "prompt_token_ids": list(output.prompt_token_ids),
                "token_ids": token_ids,
                "logprobs": logprobs,
                "prompt_logprobs": prompt,
                "text": completion.text,
                "finish_reason": completion.finish_reason,
            }
        )
    return rows


def read_view(path: Path) -> list[dict[str, Any]]:
    """Return the rows that a finished job wrote to its `output`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines()]


def write_view(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows beside `path` and rename: the file is there with all rows or not at all."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    os.replace(part, path)


def run(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Build the engine, generate all prompts in one call, and return the client's view."""
    if Path(job["model"]).is_dir():
        # all there is to load is in the folder: without this, a machine without network waits for the hub's time-outs
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], **job.get("engine_args", {}))
    tokenizer = llm.get_tokenizer()
    prompts = [engine_prompt(request, tokenizer) for request in job["prompts"]]
    defaults = job.get("sampling", {})
    params = [SamplingParams(**sampling_params(defaults, request.get("sampling", {}))) for request in job["prompts"]]
    outputs = llm.generate(prompts, params, use_tqdm=sys.stderr.isatty())
    return [row for number, output in enumerate(outputs) for row in client_view(number, output)]


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line: pydantic's first line only counts what the next one names."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join(lines[: 2 if " validation error" in "".join(lines[:1]) else 1]) or "no reason given"


def main() -> int:
    """Run the job of argv[1]; what vLLM refuses is said in one line, with the traceback under TRACEKIT_DEBUG."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        rows = run(job)
    except Exception as error:
        if os.environ.get("TRACEKIT_DEBUG"):
            raise
        print(f"tracekit rollout: error: {type(error).__name__}: {reason_of(error)}", file=sys.stderr)
        return 1
    write_view(Path(job["output"]), rows)
    return 0


# vLLM starts its engine process by running this file again: without the guard each would start another
if __name__ == "__main__":
    sys.exit(main())
