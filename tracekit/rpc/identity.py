"""Who may speak for an engine: its id is a digest of a secret that only its own process has."""

from __future__ import annotations

import hashlib
import uuid


def new_token() -> str:
    """Return 32 random hex digits: the secret of one engine process."""
    return uuid.uuid4().hex


def id_of(token: str) -> str:
    """Return the engine id, 32 hex digits, of who holds this secret; everybody may know the id."""
    return hashlib.sha256(b"tracekit engine " + token.encode()).hexdigest()[:32]
