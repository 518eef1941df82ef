"""A causal LM cut in two: a body in the trainer's dtype, and everything after it in float32.

What an architecture does after its body (soft-capping, scaling, a bias) stays its own code: the model's forward is
run again for each chunk of rows with the body replaced by a stub that hands out hidden states, and with an output
embedding that gives float32 logits. `SplitModel` proves on construction that this gives the model's own logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from tracekit.errors import ModelError
from tracekit.scoring.float32_head import Float32Head, RoundedHead

_PROBE_LENGTH = 12


class SplitModel:
    """Body and head of a causal LM, to be run one after the other.

    Takes the model over: its forward is of no other use afterwards. A tied embedding keeps the
    body's dtype. A `head` in another dtype than float32 is put in once the cut is proved; of its
    rows the first `rows` are used.

    Raises:
        ModelError: the architecture cannot be cut this way, or the two halves do not give the model's own logits.
    """

    def __init__(self, model: PreTrainedModel, *, head: str = "float32", rows: int | None = None) -> None:
        self.architecture = type(model).__name__
        self._model: Any = model
        self.body: Any = model.base_model
        embedding = model.get_output_embeddings()
        if self.body is model or embedding is None or getattr(embedding, "weight", None) is None:
            raise ModelError(f"{self.architecture} has no separate body and output embedding to score with")
        self.vocab_size = int(embedding.weight.shape[0])
        self.device: torch.device = embedding.weight.device
        self.num_positions = _learned_positions(self.body)
        """That the model has learned an embedding of; None where it goes by angles or distances."""
        self.dtype = str(model.dtype).removeprefix("torch.")
        with torch.inference_mode():
            self._head: Float32Head | RoundedHead = Float32Head(embedding)
            self._split_and_prove()
            if head != "float32":
                self._head = RoundedHead(self._head, head)
                model.set_output_embeddings(self._head)
        self.vocab_size = min(rows or self.vocab_size, self.vocab_size)

    def hidden_states(self, token_ids: Tensor) -> Tensor:
        """Run the body: [B, L] token ids to [B, L, H] hidden states in the body's dtype.

        No attention mask is given: the model is causal (proved at construction), so that rows padded on the right
        never see their padding.
        """
        output = self.body(input_ids=token_ids, use_cache=False)
        hidden: Tensor = output[0]
        return hidden

    def logits(self, hidden: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Run what comes after the body: [R, H] hidden states to [R, V] float32 logits.

        Args:
            hidden: in the body's dtype.
            token_ids: [R] int64, the token of each row whose logit has to be as exact as the largest ones.
        """
        self._stub.hidden, self._head.token_ids = hidden.unsqueeze(0), token_ids
        rows = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: Tensor = self._model(input_ids=rows, use_cache=False).logits[0]
        self._stub.hidden = self._head.token_ids = None
        return logits.float()[:, : self.vocab_size].contiguous()

    def _split_and_prove(self) -> None:
        model = self._model
        ids = _probe_ids(self.vocab_size).to(self.device)
        try:
            own = model(input_ids=ids, use_cache=False).logits.float()
            model.set_output_embeddings(self._head)
            in_fp32 = model(input_ids=ids, use_cache=False).logits.float()
            hidden = self.hidden_states(ids)
            self._stub = _Body(self.body)
            setattr(model, model.base_model_prefix, self._stub)
            ours = torch.stack([self.logits(row) for row in hidden])
        except Exception as error:  # an architecture's own code, fed with something it does not expect
            raise ModelError(f"{self.architecture} cannot be run as a body and a head: {error}") from error
        if not in_fp32.isfinite().all():
            raise ModelError(
                f"{self.architecture} gives logits that are not finite in {hidden.dtype}: "
                "look for NaN in the weights, or take another --dtype"
            )
        if ours.shape != in_fp32.shape or not _close(ours, in_fp32, 1e-4):
            raise ModelError(f"{self.architecture} scored as a body and a head does not give its own logits")
        of_its_dtype = 1e-4 if hidden.dtype == torch.float32 else 0.1
        if not _close(in_fp32, own, of_its_dtype):
            raise ModelError(f"{self.architecture} uses its output embedding in a way that float32 cannot replace")
        same = hidden[:, : _PROBE_LENGTH // 2].float()
        if not _close(same[1], same[0], of_its_dtype):
            raise ModelError(f"{self.architecture} is not causal: a token's score would depend on later ones")


def _learned_positions(body: nn.Module) -> int | None:
    """As many as the config says, where there is such a table: GPT-2's `wpe`, OPT's `embed_positions`."""
    tables = (name.rpartition(".")[2] for name, module in body.named_modules() if isinstance(module, nn.Embedding))
    has_one = any(name == "wpe" or "position" in name for name in tables)
    return getattr(body.config, "max_position_embeddings", None) if has_one else None


def _probe_ids(vocab_size: int) -> Tensor:
    """[2, L] ids, low ones because the high ones of multimodal models stand for images; the first halves agree."""
    ids = torch.randint(min(vocab_size, 256), (2, _PROBE_LENGTH), generator=torch.Generator().manual_seed(0))
    ids[1, : _PROBE_LENGTH // 2] = ids[0, : _PROBE_LENGTH // 2]
    return ids


class _BodyOutput(BaseModelOutputWithPast):  # type: ignore[misc]
    """Output of a body that has nothing but hidden states; what an architecture asks beyond them is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Body(nn.Module):
    """Stands where the body was and hands out the hidden states it was given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.config = body.config
        self.hidden: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> _BodyOutput:
        return _BodyOutput(last_hidden_state=self.hidden)

    def __getattr__(self, name: str) -> Any:
        # OPT and its like call self.model.decoder: the stub is its own decoder.
        return self if name == "decoder" else super().__getattr__(name)


def _close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Whether two tensors are the same up to a share of their spread."""
    spread = theirs.std().clamp(min=1e-6)
    return bool((ours - theirs).abs().max() <= tolerance * spread)
