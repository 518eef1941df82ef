"""Dumps of a trainer for a real engine's rollouts, in each framework's shape: clean, and with a fault that is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.dumps import WRITERS, Trained, completions
from helpers.third import Scored, score
from helpers.traced import completions as recorded_completions

pytestmark = pytest.mark.engine

SAME_AS_ENGINE = ("stream", "final", "many", "long", "stop-token", "greedy", "later")  # their clients received all


class Trainer:
    """transformers' own forward in float32, over what the clients of a recording received."""

    def __init__(self, model: Path, trace: Any, view: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        found = recorded_completions(trace)
        self.sequences = {}
        for (name, index), seen in found.items():
            client = view[name][index]
            ids, count = client["token_ids"], len(client["token_ids"])
            engine = [float.fromhex(value) for value in client["logprobs"]]
            own = self.forward([*seen["prompt"], *ids])[-count:]
            self.sequences[name, index] = Trained(seen["prompt"], ids, own, engine)
        self.tops = {key: view[key[0]][key[1]].get("tops", []) for key in self.sequences}

    def forward(self, ids: list[int], temperature: float = 1.0) -> list[float]:
        with torch.inference_mode():
            logprobs = (self.model(torch.tensor([ids])).logits[0, :-1] / temperature).log_softmax(-1)
        return [0.0, *logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]


@pytest.fixture(scope="module")
def three(client_recorded: Any, tiny_model: Path) -> tuple[Scored, Trainer]:
    trace, view = client_recorded
    return score(trace.path, tiny_model, expect="raw"), Trainer(tiny_model, trace, view)


@pytest.mark.parametrize("name", WRITERS)
def test_a_trainer_without_a_fault_is_clean(three: tuple[Scored, Trainer], tmp_path: Path, name: str) -> None:
    scored, trainer = three
    verdict = scored.verdict(WRITERS[name](tmp_path, list(trainer.sequences.values())))
    assert (verdict.layer, verdict.causes, verdict.withheld) == ("none", [], [])
    assert verdict.party is not None and verdict.party.fault == "none"
    assert verdict.party.num_rollouts == len(trainer.sequences) and verdict.party.num_unknown == 0


def test_what_the_clients_received_is_what_the_engine_reported(three: tuple[Scored, Trainer], tmp_path: Path) -> None:
    scored, trainer = three
    verdict = scored.verdict(completions(tmp_path, list(trainer.sequences.values())))
    assert verdict.causes == [] and [remark.code for remark in verdict.withheld] == ["not compared"]


def double_bos(trainer: Trainer, key: Any, s: Trained) -> Trained:
    ids = [s.prompt[0], *s.ids]
    return replace(s, prompt=ids[: len(s.prompt) + 1], old=trainer.forward(ids)[-len(s.completion) :])


def divided_by_temperature(trainer: Trainer, key: Any, s: Trained) -> Trained:
    return replace(s, old=trainer.forward(s.ids, 0.7)[-len(s.completion) :])


def shifted(trainer: Trainer, key: Any, s: Trained) -> Trained:
    return replace(s, old=trainer.forward(s.ids)[-len(s.completion) - 1 : -1])


def wrong_entry(trainer: Trainer, key: Any, s: Trained) -> Trained:
    if key[0] != "many":
        return s
    best = [next(float.fromhex(value) for rank, _, value in sorted(top) if rank == 1) for top in trainer.tops[key]]
    return replace(s, rollout=best)


def truncated(trainer: Trainer, key: Any, s: Trained) -> Trained:
    if key[0] not in SAME_AS_ENGINE or len(s.completion) < 12:
        return s
    return Trained(s.prompt, s.completion[:-4], s.old[:-4], s.rollout[:-4])


def sentinel(trainer: Trainer, key: Any, s: Trained) -> Trained:
    return replace(s, rollout=[*s.rollout[:-1], -9999.0])


FAULTS: dict[str, tuple[Callable[[Trainer, Any, Trained], Trained], str]] = {
    "prime-rl token export": (double_bos, "trainer double bos"),
    "prime-rl annotations": (shifted, "trainer shifted"),
    "slime debug dump": (wrong_entry, "trainer wrong entry"),
    "TRL batch": (divided_by_temperature, "trainer reading"),
    "verl batch": (truncated, "trainer completion truncated"),
    "rows": (sentinel, "trainer sentinel"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(three: tuple[Scored, Trainer], tmp_path: Path, name: str) -> None:
    scored, trainer = three
    change, code = FAULTS[name]
    verdict = scored.verdict(WRITERS[name](tmp_path, [change(trainer, key, s) for key, s in trainer.sequences.items()]))
    assert [cause.code for cause in verdict.causes] == [code]
    assert verdict.party is not None and verdict.party.fault == "trainer"
    assert np.isfinite(verdict.party.engine_scorer.d_abs_max) and verdict.party.engine_scorer.d_abs_max < 1e-3
