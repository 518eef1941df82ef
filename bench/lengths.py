"""Sequences as a rollout has them: groups that share a prompt, prompts of all lengths, log-normal completions."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracekit.scoring.params import Params
from tracekit.scoring.types import Sequence

PROMPT = (64, 1024)
COMPLETION_MEDIAN, COMPLETION_SIGMA, COMPLETION_MOST = 256, 0.6, 1024


def text_ids(folder: Path, vocab_size: int, num: int) -> NDArray[np.uint32]:
    """Ids of English text by the model's tokenizer, so that its distributions are not flat; random without one."""
    if not (folder / "tokenizer.json").is_file():
        return np.random.default_rng(1).integers(0, vocab_size, num).astype(np.uint32)
    from pydoc_data import topics

    from transformers import AutoTokenizer

    text = "\n".join(topics.topics.values())
    ids = AutoTokenizer.from_pretrained(folder)(text[: num * 8], add_special_tokens=False)["input_ids"]
    return np.resize(np.asarray(ids, dtype=np.uint32), num)


def rollouts(folder: Path, vocab_size: int, *, groups: int, size: int, params: Params, seed: int = 0) -> list[Sequence]:
    """`groups` prompts with `size` completions each; every completion is another piece of text."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(PROMPT[0], PROMPT[1] + 1, groups)
    completions = rng.lognormal(np.log(COMPLETION_MEDIAN), COMPLETION_SIGMA, (groups, size))
    completions = completions.clip(8, COMPLETION_MOST).astype(int)
    ids = text_ids(folder, vocab_size, int(prompts.sum() + completions.sum()))
    made, offset = [], 0
    for group, num_prompt in enumerate(prompts):
        prompt, offset = ids[offset : offset + num_prompt], offset + num_prompt
        for number, num in enumerate(completions[group]):
            made.append(Sequence(0, group * size + number, prompt, ids[offset : offset + num], params))
            offset += num
    return made


def repeated_prompts(sequences: list[Sequence]) -> list[int]:
    """Lengths of the prompts that run again, for each rollout but the first of a prompt, where none is shared."""
    seen: set[bytes] = set()
    again = []
    for sequence in sequences:
        prompt = sequence.prompt_token_ids.tobytes()
        if prompt in seen:
            again.append(len(sequence.prompt_token_ids))
        seen.add(prompt)
    return again
