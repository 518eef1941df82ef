"""States that `record --probe` kept, joined with the rollouts they are of, and each module replayed on them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tracekit.diagnose.modules import (
    ATTENTION,
    LINE,
    Boundary,
    Modules,
    OfFolder,
    RotaryBase,
    Start,
    first_off,
    layer_of,
    suspects,
    weigh,
)
from tracekit.diagnose.modules import kinds_off as kinds
from tracekit.errors import ReplayRefused
from tracekit.replay.rollouts import Rollout
from tracekit.replay.stages import Group
from tracekit.scoring.joints import joint_errors
from tracekit.scoring.loading import load_model, pick_device
from tracekit.scoring.modules import F8, HEAD, ModuleErrors, graft, module_errors, narrow_head, raw_logprobs
from tracekit.scoring.rotary import fit_base

_HIGHER = {"bfloat16": "float32", "float16": "float32", "float32": "float64"}


@dataclass(frozen=True, eq=False)
class Probed:
    """One request with its states: those of its first T positions, and the T + 1 ids of them and of the next."""

    rollout: Rollout
    token_ids: Tensor
    states: dict[str, Tensor]
    head_rows: Tensor  # [R] positions of the rows of the head


def probe_modules(
    folder: str | os.PathLike[str],
    rollouts: Seq[Rollout],
    folders: Mapping[int, Path],
    group: Group,
    known: Mapping[Path, str],
    *,
    dtype: str | None,
    device: str | None,
) -> Modules:
    """Replay every probed module on its recorded input, of each set of weights; that which has the worst is returned.

    Args:
        folder: that was probed into.
        rollouts: of the trace.
        folders: with the weights of each version.
        group: weight version to the oldest one with the same weights.
        known: all folders with weights, and what a verdict calls them.
        dtype: that the engines received the weights in; None where the trace does not tell.
        device: torch's; None for the fastest.

    Raises:
        ReplayRefused: the states are none, are damaged, or belong to no rollout of one version's weights.
        ModelError: the model has none of the modules.
    """
    probed = [p for p in read_probes(folder, rollouts) if len({group(v) for v in p.rollout.versions}) == 1]
    if not probed:
        raise ReplayRefused(f"no probed request is a rollout of one version's weights: {folder}")
    dtype = dtype or str(probed[0].states[next(iter(probed[0].states))].dtype).removeprefix("torch.")
    where = pick_device(device)
    versions = dict.fromkeys(group(p.rollout.versions[0]) for p in probed)
    found = (
        _under(folders[version], [p for p in probed if group(p.rollout.versions[0]) == version], known, dtype, where)
        for version in versions
    )
    return max(found, key=lambda modules: modules.modules[0].excess)


def _under(folder: Path, same: Seq[Probed], known: Mapping[Path, str], dtype: str, where: torch.device) -> Modules:
    """What probing finds of the requests of one set of weights."""
    errors: dict[str, list[tuple[F8, F8]]] = {}
    of: dict[str, list[Probed]] = {}
    low, exact = load_model(folder, dtype=dtype, device=where), _exact(folder, dtype, where)
    for one in same:
        for found in _errors(low, exact, one):
            errors.setdefault(found.name, []).append((found.error, found.noise))
            of.setdefault(found.name, []).append(one)
    modules = weigh([(name, *_joined(own)) for name, own in errors.items()])
    named, off = suspects(modules), kinds(modules)
    others = ((name, _exact(path, dtype, where)) for path, name in known.items() if path != folder.resolve())
    worst = next((m.name for m in modules if m.name in named or m.kind in off), None)
    return Modules(
        num_requests=len(same),
        num_positions=sum(len(p.token_ids) - 1 for p in same),
        dtype=dtype,
        suspects=named,
        kinds=off,
        modules=modules,
        graft=list(_grafts(exact, same, named)),
        scored_with=known.get(folder.resolve(), ""),
        kept=list(_kept(others, same[0], errors, named)),
        starts=[] if worst is None else list(_starts(of[worst], errors[worst])),
        rotary=_rotary(exact, same[0]) if ATTENTION in off else None,
        narrow_head=narrow_head(exact, same[0].states) if HEAD in named else float("nan"),
    )


def _errors(low: Any, exact: Any, one: Probed) -> Iterator[ModuleErrors]:
    """What each module makes of its recorded input, and what arrives at it."""
    ids = one.token_ids[:-1]
    yield from module_errors(low, exact, ids, one.states)
    yield from joint_errors(low, exact, ids, one.states, one.head_rows)


def check_probes(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that is not there, before anything is scored.

    Raises:
        ReplayRefused: there is none.
    """
    if not Path(folder).is_dir():
        raise ReplayRefused(f"there is no folder of probed states: {folder}")


def read_probes(folder: str | os.PathLike[str], rollouts: Seq[Rollout]) -> Iterator[Probed]:
    """Yield the probed requests that are among the rollouts.

    Raises:
        ReplayRefused: a file in it is not what the recorder wrote.
    """
    by_id = {rollout.request_id: rollout for rollout in rollouts}
    for place in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        parts: dict[str, list[Tensor]] = {}
        request_id, length, head_rows = "", 0, []
        for path in sorted(place.glob("*.safetensors")):
            own, request_id, num = _read(path)
            if int(path.stem) != length or any(len(state) > num for state in own.values()):
                raise ReplayRefused(f"positions are missing among the probed states: {path}")
            length += num
            if f"{HEAD}.output" in own:
                head_rows.append(length - 1)
            for name, state in own.items():
                parts.setdefault(name, []).append(state)
        rollout = by_id.get(request_id)
        if rollout is None:
            continue
        ids = np.concatenate([rollout.sequence.prompt_token_ids, rollout.sequence.token_ids]).astype(np.int64)
        if length >= len(ids):
            raise ReplayRefused(f"more positions were probed than request {request_id} has: {place}")
        states = {name: torch.cat(own) for name, own in parts.items()}
        _check_rows(states, ids[:length], place)
        whole = {n: s for n, s in states.items() if n.startswith(HEAD) or len(s) == length}
        yield Probed(rollout, torch.from_numpy(ids[: length + 1]), whole, torch.tensor(head_rows))


def _read(path: Path) -> tuple[dict[str, Tensor], str, int]:
    """The states of a file, whose they are, and of how many positions."""
    try:
        with safe_open(path, framework="pt") as file:
            states = {name: file.get_tensor(name) for name in file.keys()}
            about = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ReplayRefused(f"these are not states that a recorder kept: {path}: {error}") from None
    rows = [len(state) for name, state in states.items() if not name.startswith(HEAD)]
    if not rows or any(state.dim() != 2 for state in states.values()):
        raise ReplayRefused(f"these are not states that a recorder kept: {path}")
    return states, about.get("request_id", ""), max(rows)


def _starts(probed: Seq[Probed], errors: Seq[tuple[F8, F8]]) -> Iterator[Start]:
    """The first position at which a module is off, in each request."""
    for one, (error, noise) in zip(probed, errors, strict=True):
        row = first_off(error, noise)
        if row is not None:
            # of the head, the rows that were sampled from alone are recorded
            position = row if error.size == len(one.token_ids) - 1 else int(one.head_rows[row])
            yield Start(one.rollout.sequence.engine, one.rollout.sequence.request, position)
        if row is not None:  # of the head, the last rows alone are recorded
            position = len(one.token_ids) - 1 - error.size + row
            yield Start(one.rollout.sequence.engine, one.rollout.sequence.request, position)


def _check_rows(states: Mapping[str, Tensor], ids: Any, place: Path) -> None:
    """The self-test: an embedding depends on its token alone, so equal ids have equal rows in front of the model."""
    rows = states.get("layers.0.input_layernorm.input")
    if rows is None or len(rows) != len(ids):
        return
    _, first, same_as = np.unique(ids, return_index=True, return_inverse=True)
    if not torch.equal(rows, rows[torch.from_numpy(first[same_as])]):
        raise ReplayRefused(f"the probed states are not those of the recorded tokens: {place}")


def _joined(own: Seq[tuple[F8, F8]]) -> tuple[F8, F8]:
    """Error and noise of one module over the positions of all requests."""
    errors, noises = zip(*own, strict=True)
    return np.concatenate(errors), np.concatenate(noises)


def _exact(folder: Path, dtype: str, device: torch.device) -> Any:
    """A model of the weights as an engine received them, one precision higher."""
    model = load_model(folder, dtype="float32", weights=dtype, device=device)
    return model.double() if _HIGHER[dtype] == "float64" else model


def _kept(
    others: Iterable[tuple[str, Any]], one: Probed, errors: Mapping[str, Seq[tuple[F8, F8]]], named: Seq[str]
) -> Iterator[OfFolder]:
    """The suspects that are no suspects under the weights of another folder."""
    for folder, model in others if named else ():
        for found in _errors(model, model, one):
            if found.name in named:
                noise = np.concatenate([noise for _, noise in errors[found.name]])
                if found.error.mean() < LINE * noise.mean():
                    yield OfFolder(found.name, folder)


def _rotary(model: Any, one: Probed) -> RotaryBase | None:
    found = fit_base(model, one.token_ids[:-1], one.states, ATTENTION)
    return None if found is None else RotaryBase(*found)


def _grafts(model: Any, probed: Seq[Probed], named: Seq[str]) -> Iterator[Boundary]:
    """The mismatch that is left with the engine's state put in before and behind the first suspect that has a layer."""
    one = next((p for p in probed if f"{HEAD}.output" in p.states), None)
    at = next((layer for name in named if (layer := layer_of(name)) is not None), None)
    if one is None or at is None or f"layers.{at}.input_layernorm.input" not in one.states:
        return  # a layer that never ran has no input
    theirs = raw_logprobs(one.states[f"{HEAD}.output"], one.token_ids, one.head_rows)
    for boundary in (at, at + 1):
        ours = graft(model, one.token_ids, one.states, one.head_rows, boundary)
        yield Boundary(boundary, float(np.abs(ours - theirs).mean()))
