"""The demo shows, from its own measurement, the picture that the article's authors saw."""

import json
import os
from pathlib import Path

import pytest

from helpers.engine import run_cli

pytestmark = pytest.mark.engine


@pytest.mark.timeout(1800)  # a CPU without bfloat16 takes many times as long
def test_demo_tells_raw_from_processed_on_a_real_engine(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # all cores score
    done = run_cli(
        "demo", "--max-tokens", "32", "--json", "--html", str(tmp_path / "demo.html"), env=environ, timeout_secs=1800
    )
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout)
    defaults, parity = facts["defaults"]["verdict"], facts["parity"]["verdict"]
    assert facts["defaults"]["data"]["num_rollouts"] == 16
    assert (defaults["layer"], defaults["semantic"]["kind"]) == ("semantic", "raw")
    assert defaults["since"]["output_index"] == 0
    assert defaults["before"]["ratio_mean"] > 1.1 and defaults["before"]["mismatch_kl"] > 0.02
    # the same recorded values, read as what they are, agree
    assert abs(defaults["after"]["ratio_mean"] - 1) < 0.03
    assert (parity["layer"], parity["semantic"]["kind"]) == ("none", "processed")
    assert abs(parity["before"]["ratio_mean"] - 1) < 0.03 and parity["before"]["mismatch_kl"] < 0.01
    assert parity["before"]["clip_rate"] < defaults["before"]["clip_rate"] / 5
    page = (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert all(f'<h2 class="of">{name}</h2>' in page for name in ("V1 defaults", "parity settings"))
    assert page.count('class="k-decode"') == 2  # each with the engine's timeline
