"""The sampling parameters of a V0 request as they were asked for."""

from __future__ import annotations

import functools
from typing import Any

from tracekit.recorder.vllm.snapshot import jsonable


def sampling_of(params: Any) -> dict[str, Any]:
    """The sampling parameters of one request as JSON types.

    V0 turns biases, allowed ids and bad words into functions and forgets the first two (LLMEngine.
    _build_logits_processors); they are read back from the functions, so that only the caller's own remain as such.
    """
    sampling = {name.lstrip("_"): value for name, value in (jsonable(params) or {}).items()}
    others = []
    for processor in getattr(params, "logits_processors", None) or ():
        name = type(processor).__name__
        if isinstance(processor, functools.partial) and processor.func.__name__ == "logit_bias_logits_processor":
            sampling["logit_bias"] = jsonable(processor.args[0])
        elif name == "AllowedTokenIdsLogitsProcessor":
            # its first call replaces the ids by a mask of all others
            ids = processor.allowed_ids
            sampling["allowed_token_ids"] = jsonable(
                ids if ids is not None else (~processor.mask).nonzero().flatten().tolist()
            )
        elif name == "NoBadWordsLogitsProcessor":
            sampling["bad_words_token_ids"] = jsonable(processor.bad_words_ids)
        else:
            others.append(jsonable(processor))
    sampling["logits_processors"] = others or None
    return sampling
