"""How often a clean run alarms, and which shifts are seen: seeded runs made in numpy (tests/helpers/synthetic.py).

    PYTHONPATH=tests python bench/noise.py [RUNS]

A run's logits get noise of 0.04 on either side; a fault adds noise of the given size to the engine's, from the middle
of each rollout on. docs/reading-a-verdict.md has figures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from helpers.synthetic import Made, make_run
from tracekit.diagnose.verdict import judge

KINDS: Mapping[str, Made] = {
    "T 1": Made(temperature=1.0, top_p=1.0),
    "T 0.7": Made(temperature=0.7, top_p=1.0),
    "T 0.7, top-p 0.9": Made(),
    "T 0.03": Made(temperature=0.03, top_p=1.0),
    "T 0.01, top-p 0.9": Made(temperature=0.01),
    "T 1, 95 % certain": Made(temperature=1.0, top_p=1.0, certain=0.95),
}
ROLLOUTS = (1, 4, 16, 64)
SIZES = (0.0, 0.04, 0.06, 0.08, 0.12, 0.2)


def main(num_runs: int) -> None:
    """Print a row for each kind and number of rollouts: the share of runs that diverge, by the size of the fault."""
    print(f"{'kind':<20}{'rollouts':>9}" + "".join(f"{size:>8}" for size in SIZES))
    for name, made in KINDS.items():
        for rollouts in ROLLOUTS:
            shares = [_share(replace(made, num_rollouts=rollouts, shift=s, shift_from=24), num_runs) for s in SIZES]
            print(f"{name:<20}{rollouts:>9}" + "".join(f"{share:>8.3f}" for share in shares), flush=True)


def _share(made: Made, num_runs: int) -> float:
    layers = [judge(make_run(replace(made, seed=seed))).verdict.layer for seed in range(num_runs)]
    return sum(layer != "none" for layer in layers) / num_runs


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
