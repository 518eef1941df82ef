"""Further recordings with nothing wrong: what people run, again and again, for the rate of false alarms alone."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

from corpus.case import Ask, Case
from corpus.rows.building import row, tune

K = "clean-more"
HIT = (Ask(num=2, tokens=2, prompt="shared:96"), Ask(num=8, tokens=16, prompt="shared:96"))
PLAIN = Ask(num=8, tokens=16)


def sampled(**sampling: Any) -> tuple[Ask, ...]:
    return (Ask(num=8, tokens=16, sampling=sampling),)


# what differs between two of the same settings is the seed: another choice of prompts, other tokens
SETTINGS: tuple[dict[str, Any], ...] = (
    {"steps": (PLAIN,)},
    {"steps": sampled(temperature=0.6, top_p=0.95)},
    {"steps": sampled(temperature=0.8)},
    {"steps": (Ask(num=2, tokens=64),)},
    {"steps": sampled(temperature=1.0, top_p=0.9, top_k=50)},
    {"steps": HIT},
    {"steps": sampled(temperature=0.3)},
    {"steps": (Ask(num=3, tokens=16, sampling={"n": 4}),)},
    {"steps": sampled(temperature=0.9, min_p=0.05)},
    {"steps": sampled(temperature=1.0, repetition_penalty=1.1)},
    {"steps": (Ask(num=4, tokens=16, prompt="long:120"),)},
    {"steps": sampled(temperature=1.0, top_k=5)},
    {"steps": sampled(temperature=1.2)},
    {"steps": (Ask(num=16, tokens=12),)},
    {"steps": sampled(temperature=0.7, presence_penalty=0.5, frequency_penalty=0.2)},
    {"steps": sampled(temperature=1.0, stop=["."])},
    {"steps": sampled(temperature=0.05)},
    {"steps": (Ask(num=6, tokens=16, prompt="spread:30"),)},
    {"steps": sampled(temperature=1.0, min_tokens=8, ignore_eos=False)},
    {"steps": (Ask(num=1, tokens=32),)},
)


LONG: tuple[dict[str, Any], ...] = (
    {"steps": (Ask(num=6, tokens=1500),)},
    {"steps": (Ask(num=6, tokens=1500, sampling={"temperature": 0.7, "top_p": 0.9}),)},
    {"steps": (Ask(num=2, tokens=3000),)},
)


def clean(make: Any, group: str, num: int) -> list[Case]:
    """So many recordings on one engine."""
    every = islice(cycle(LONG if group.endswith("long") else SETTINGS), num)
    return [make(f"more-{number:02}", K, group=group, **settings) for number, settings in enumerate(every)]


ROWS: list[Case] = [
    *clean(tune, "v1-bf16", 20),
    *clean(tune, "latest-bf16", 10),
    *clean(row, "v1-bf16", 40),
    *clean(row, "latest-bf16", 30),
    *clean(row, "v1-fp32", 30),
    *clean(row, "latest-fp32", 20),
    *clean(row, "v0-fp32", 20),
    *clean(row, "v1-long", 3),
    *clean(row, "latest-long", 3),
]
