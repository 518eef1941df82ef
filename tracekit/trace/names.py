"""By what ids a caller may know a request of a trace."""

from __future__ import annotations

Name = tuple[str, int | None]  # an id with which of the n completions it is; without, where the id is of one alone


def names_of(external_id: str, index: int, request_id: str) -> tuple[Name, ...]:
    """Return the names of a request, of columns of the table `requests`: its caller's, and the engine's own."""
    return (external_id, index), (request_id, None)


def is_meant(engine: tuple[str, str | None], engine_id: str | None, run: str | None) -> bool:
    """Say whether who names this engine and this run may mean a request of `engine`, its id and its run.

    What one side does not name, None, speaks against nothing.
    """
    own_id, own_run = engine
    return engine_id in (None, own_id) and (None in (own_run, run) or own_run == run)


def names_said(request_id: str, index: int) -> tuple[Name, ...]:
    """Return the names that a caller may mean, the likeliest first.

    The answer of `/v1/completions` has the id `cmpl-…`, and its first prompt is the request `cmpl-…-0` (vllm,
    entrypoints/openai, `request_id_item`).
    """
    return (request_id, index), (f"{request_id}-0", index), (request_id, None)
