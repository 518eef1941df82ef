"""What products alone allow: the naive side's matrix products over ours, both at one rate and with nothing beside them.

Counted are a body's linears for each token that goes through it (the naive side's padding among them), the head's rows,
and the pairs of positions that attention multiplies. Norms, casts and log-softmax are not: who spends more on them than
the other stays below the bound, and who spends less may pass it.
"""

from lengths import repeated_prompts
from naive import Plan
from torch import nn

from tracekit.scoring.types import Sequence


def bounds(model: nn.Module, sequences: list[Sequence], plan: Plan) -> tuple[float, float]:
    """The naive side's products over ours, with sharing and without."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight.numel()
    linears = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear))
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    a_pair = 2 * width * config.num_hidden_layers  # queries by keys, and weights by values

    def products(lengths: list[int], rows: int, without: list[int]) -> int:
        tokens, pairs = sum(lengths), sum(map(_causal, lengths))
        for prefix in without:
            tokens, pairs = tokens - prefix, pairs - _causal(prefix)
        return tokens * linears + rows * head + pairs * a_pair

    lengths = [len(s.prompt_token_ids) + len(s.token_ids) for s in sequences]
    scored = sum(len(s.token_ids) for s in sequences)
    padded = [max(lengths[i] for i in batch) for batch in plan(lengths) for _ in batch]
    theirs = products(padded, sum(padded), [])
    return theirs / products(lengths, scored, repeated_prompts(sequences)), theirs / products(lengths, scored, [])


def _causal(num: int) -> int:
    return num * (num + 1) // 2
