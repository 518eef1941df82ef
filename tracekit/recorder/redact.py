"""Prompts and tokens as keyed hashes: what spells text is replaced before it leaves the process that recorded it.

A token's hash depends on its position too, so that counting tokens tells nothing: the same id at the same position has
the same hash under one key, and at another position another one. What compares texts from their beginning (prompts of
a group, cached prefixes, turns of a dialogue, two recordings) compares as before. Hashes of ids are SipHash-2-4
(Aumasson and Bernstein 2012), a keyed function for short inputs, here over whole columns; those of texts are BLAKE2b.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import UsageError
from tracekit.rpc.columns import Tables
from tracekit.rpc.credentials import read_secret

MIN_KEY_BYTES = 32
NOWHERE = 0xFFFFFFFF  # in the place of a position: ids of sampling parameters have none

Words = npt.NDArray[np.uint64]


class Redaction:
    """Replaces ids and texts of tables; the rows stay as many as they are.

    What callers name stays: ids of requests, runs and groups of rollouts, adapters.

    Args:
        key: a secret of any length.

    Attributes:
        name: eight hex digits that tell this key from others, and nothing of what is in it.
    """

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, person=b"tracekit").digest()
        self.name = self._digest(b"name", b"", 4).hex()
        self._ids, self._blocks = self._half(b"ids"), self._half(b"blocks")

    def redact(self, tables: Tables) -> Tables:
        """Return tables in which no prompt, no token and no text of a request can be read."""
        done = {name: dict(columns) for name, columns in tables.items()}
        for columns in done.values():
            if "token_id" in columns:
                columns["token_id"] = self.ids(columns["token_id"], columns["position"])
        if requests := done.get("requests"):
            requests["prompt_token_ids"] = [self._sequence(ids) for ids in requests["prompt_token_ids"]]
            requests["cache_salt"] = [text and self.text(text) for text in requests["cache_salt"]]
            for name in ("sampling_params", "labels"):
                requests[name] = [self._object(text) for text in requests[name]]
        if joined := done.get("joined"):
            # its request came in the same event, so it is in the same tables
            numbers = np.asarray(tables["requests"]["request"]).tolist()
            lengths = dict(zip(numbers, map(len, tables["requests"]["prompt_token_ids"]), strict=True))
            begins = [lengths[number] for number in np.asarray(joined["request"]).tolist()]
            joined["token_ids"] = [self._sequence(*pair) for pair in zip(joined["token_ids"], begins, strict=True)]
        if annotations := done.get("annotations"):
            annotations["token_ids"] = [self._sequence(ids) for ids in annotations["token_ids"]]
        if cache := done.get("cache"):
            # the engine's own hash of a block is made of its tokens, without a key
            known = np.ma.asarray(cache["hash"])
            hashes = _siphash(self._blocks, known.filled(0).astype(np.uint64))
            cache["hash"] = np.ma.MaskedArray(hashes, mask=np.ma.getmaskarray(known))
        return done

    def ids(self, token_ids: Any, positions: Any) -> npt.NDArray[np.uint32]:
        """Return the hashes [N] of token ids [N] at their positions [N]."""
        words = np.asarray(positions, np.uint64) << np.uint64(32) | np.asarray(token_ids, np.uint64)
        return _siphash(self._ids, words).astype(np.uint32)

    def text(self, text: str) -> str:
        """Return the hash of a text: sixteen hex digits."""
        return self._digest(b"text", text.encode("utf-8", "backslashreplace"), 8).hex()

    def _sequence(self, token_ids: Any, begin: int = 0) -> npt.NDArray[np.uint32]:
        return self.ids(token_ids, np.arange(begin, begin + len(token_ids)))

    def _object(self, text: str) -> str:
        """Return a JSON object without its texts but for the names of its own fields."""
        fields = {name: self._value(value, is_id="token_id" in name) for name, value in json.loads(text).items()}
        return json.dumps(fields, separators=(",", ":"))

    def _value(self, value: Any, is_id: bool) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):  # logit_bias by id, the JSON schema that an output has to follow
            names = (str(self._id(int(name))) if name.isdecimal() else self.text(name) for name in value)
            return dict(zip(names, (self._value(one, is_id) for one in value.values()), strict=True))
        if isinstance(value, list):
            return [self._value(one, is_id=True) for one in value]  # which numbers, if not ids?
        return self._id(value) if is_id and type(value) is int else value

    def _id(self, token_id: int) -> int:
        return int(self.ids([token_id % (1 << 32)], [NOWHERE])[0])

    def _half(self, what: bytes) -> tuple[int, int]:
        digest = self._digest(what, b"", 16)
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")

    def _digest(self, what: bytes, data: bytes, size: int) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=size, person=what).digest()


def redaction(path: str | Path | None) -> Redaction | None:
    """Return the redaction by the key in a file, which its owner alone can read; None where there is no file.

    Raises:
        UsageError: it cannot be read, others can read it, or it is short: then nothing may be sent at all.
    """
    if path is None:
        return None
    key = read_secret(path)
    if len(key) < MIN_KEY_BYTES:
        raise UsageError(f"a key to redact with has at least {MIN_KEY_BYTES} bytes: {path}")
    return Redaction(key)


def _siphash(key: tuple[int, int], words: Words) -> Words:
    """Return SipHash-2-4 of messages of eight bytes each, little-endian words [N]."""
    k0, k1 = (np.uint64(half) for half in key)
    start = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    v0, v1, v2, v3 = (
        np.full(words.shape, np.uint64(s) ^ k, np.uint64) for s, k in zip(start, (k0, k1, k0, k1), strict=True)
    )

    def rotate(v: Words, by: int) -> Words:
        return v << np.uint64(by) | v >> np.uint64(64 - by)

    for word, rounds in ((words, 2), (np.uint64(8 << 56), 2), (None, 4)):
        if word is None:
            v2 = v2 ^ np.uint64(0xFF)
        else:
            v3 = v3 ^ word
        for _ in range(rounds):
            v0, v2 = v0 + v1, v2 + v3
            v1, v3 = rotate(v1, 13) ^ v0, rotate(v3, 16) ^ v2
            v0, v2 = rotate(v0, 32) + v3, v2 + v1
            v1, v3 = rotate(v1, 17) ^ v2, rotate(v3, 21) ^ v0
            v2 = rotate(v2, 32)
        if word is not None:
            v0 = v0 ^ word
    return v0 ^ v1 ^ v2 ^ v3
