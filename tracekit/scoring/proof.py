"""Proof, when a model is loaded, that packed pieces come out as the model's own forward has them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tracekit.scoring.head import SplitModel
from tracekit.scoring.kv import KV
from tracekit.scoring.loading import quiet
from tracekit.scoring.packing import PackedRun, switch_to_packed
from tracekit.scoring.params import Params
from tracekit.scoring.spans import Span, whole
from tracekit.scoring.types import Sequence

LONGEST_MATTERS = "its rotary frequencies depend on the longest sequence of a batch"
_CUT = 5
# What rounding moves a hidden state by, relative to its length; a mistake moves it more.
_TOLERANCE_FLOAT32 = 1e-4
_TOLERANCE_HALF = 0.1  # bfloat16 moves Gemma 3 by 0.035; a state that leaks from piece to piece moves Qwen3-Next by 0.2


def why_not_packed(model: SplitModel) -> str | None:
    """Return in a few words why an architecture cannot be packed; None where it was proved that it can.

    A few short sequences that share prefixes, one of them nested, and one cut in two over its own KV, are compared
    with the plain forward of each alone. The body is left as it was.
    """
    body = model.body
    if _rope_type(body.config) in ("dynamic", "longrope"):
        return LONGEST_MATTERS
    sequences = _sequences(model.vocab_size)
    before = body.config._attn_implementation
    with torch.inference_mode(), quiet():
        try:
            own = [model.hidden_states(_ids(sequence).to(model.device))[0] for sequence in sequences]
            switch_to_packed(body)
            packed = _packed(model, sequences)
        except Exception as error:  # an architecture's own code, fed with something it does not expect
            body.set_attn_implementation(before)
            return f"packed sequences do not go through it ({str(error).splitlines()[0] if str(error) else error!r})"
        body.set_attn_implementation(before)
        if all(_same(ours, theirs) for ours, theirs in zip(packed, [*own, own[0]], strict=True)):
            return None
    return "packed sequences do not come out as they do alone"


def _packed(model: SplitModel, sequences: list[Sequence]) -> list[Tensor]:
    """Hidden states of each sequence from one pack with shared prefixes; last, those of the first cut in two."""
    run = PackedRun(model, [whole(sequence) for sequence in sequences], 1 << 20, share=True, min_saved=1)
    (pack,) = run.packs
    hidden = run.forward(pack, {})
    ends = np.cumsum([len(run.forest.pieces[i].ids) for i in pack])
    rows = {i: hidden[end - len(run.forest.pieces[i].ids) : end] for i, end in zip(pack, ends, strict=True)}
    found = [torch.cat([rows[i] for i in run.forest.chain(leaf)]) for leaf in run.forest.leaves]
    first, kvs = sequences[0], dict[int, KV]()
    head = Span(sequence=first, readings=(Params(),), stop=_CUT, keep_kv=True)
    begin = PackedRun(model, [head], 1 << 20, share=True).forward([0], kvs)
    tail = Span(sequence=first, readings=(Params(),), start=_CUT, stop=first.num_inputs, past=kvs[0])
    return [*found, torch.cat([begin, PackedRun(model, [tail], 1 << 20, share=True).forward([0], {})])]


def _sequences(vocab_size: int) -> list[Sequence]:
    """Low ids, because the high ones of multimodal models stand for images."""
    ids = np.random.default_rng(0).integers(0, min(vocab_size, 256), (5, 8)).astype(np.uint32)
    prefix, nested = ids[0], np.concatenate([ids[0], ids[1][:3]])
    inputs = [
        np.concatenate([nested, ids[2]]),
        np.concatenate([nested, ids[3][:4]]),
        np.concatenate([prefix, ids[4]]),
        ids[1],
    ]
    return [Sequence(0, i, tokens[:1], tokens[1:], Params()) for i, tokens in enumerate(inputs)]


def _ids(sequence: Sequence) -> Tensor:
    return torch.from_numpy(sequence.input_ids).unsqueeze(0)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether hidden states [L, H] agree; in reduced precision most, as a rounding may turn to another expert."""
    off = (ours - theirs).float().norm(dim=-1) / theirs.float().norm(dim=-1)
    if ours.dtype == torch.float32:
        return bool(off.max() <= _TOLERANCE_FLOAT32)
    return bool(off.median() <= _TOLERANCE_HALF)


def _rope_type(config: object) -> str | None:
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if isinstance(found, dict):
            return found.get("rope_type") or found.get("type")
    return None
