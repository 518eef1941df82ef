"""Texts of token ids, from a model folder's own tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tracekit.errors import ModelError


def texts_of(token_ids: npt.NDArray[np.uint32], folder: Path) -> dict[int, str]:
    """Return the text of each id that occurs; one that the tokenizer does not have is left out.

    Raises:
        ModelError: the folder holds no tokenizer that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer can be loaded from {folder}: {str(error).splitlines()[0]}") from None
    ids = [int(i) for i in np.unique(token_ids) if i < len(tokenizer)]
    return dict(zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True))
