"""What a page is made of, without a browser."""

import base64
import gzip
import hashlib
import json
import re
from importlib import resources

import numpy as np
import pytest

from helpers.replays import replay_of, write
from helpers.synthetic import Made, make_run
from tracekit.cli.main import main
from tracekit.cli.pages import shown
from tracekit.report.page.figures import along, histogram
from tracekit.report.page.markup import visible
from tracekit.report.page.render import to_html
from tracekit.report.page.tokens import choose

VENDORED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}


def asset(name):
    return (resources.files("tracekit.report.page") / "assets" / name).read_bytes()


def test_what_is_vendored_is_what_its_page_of_sources_says():
    for name, digest in VENDORED.items():
        assert hashlib.sha256(asset(name)).hexdigest() == digest, name
    sources = asset("SOURCES.md").decode()
    assert all(f"`{name}`" in sources for name in VENDORED) and b"MIT" in asset("uPlot.LICENSE")


@pytest.fixture(scope="module")
def replay():
    return replay_of(make_run(Made(shift=0.8, shift_from=20, shift_rollouts=5)))


@pytest.fixture(scope="module")
def page(replay):
    return to_html(shown(replay, {}))


def test_a_page_without_its_data_is_small_and_names_nobody(page):
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert len(page) - len(data[1]) < 300_000
    assert "http" not in page.replace("http-equiv", "") or not re.search(r'(src|href)="?http', page)


def test_its_policy_lets_through_its_own_scripts_and_styles_and_nothing_else(page):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_data_are_the_columns_of_the_replay(page, replay):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    values = np.frombuffer(gzip.decompress(base64.b64decode(data["columns"]["recorded"])), "<f4")
    assert np.array_equal(values, replay.tokens.column("rollout_logprob").to_numpy())
    assert [r["count"] for r in data["rollouts"]] == [48] * 16
    assert sum(data["histogram"]["counts"]) + data["histogram"]["below"] + data["histogram"]["above"] == 768


def test_a_long_run_keeps_its_worst_rollouts_and_a_fair_sample_of_the_rest():
    rollout = np.repeat(np.arange(1000), 10)
    d = np.full(10_000, 0.01)
    beyond = np.zeros(10_000, bool)
    beyond[[123, 4567]] = True
    d[9991] = 5.0
    d[17] = np.nan
    chosen = choose(rollout, beyond, d, most=1000)
    assert {12, 456, 999} <= set(chosen.rollouts.tolist())
    assert chosen.rows.size <= 1000 and not chosen.is_all
    spread = np.diff(chosen.rollouts[chosen.rollouts > 460])
    assert spread.max() < 60  # no part of the run is missing
    assert choose(rollout, beyond, d, most=5).rows.size == 10  # one is there in any case


def test_figures_leave_out_what_is_not_finite_and_say_where_they_end():
    d = np.r_[np.linspace(-0.1, 0.1, 9990), np.full(5, 40.0), np.full(5, np.nan)]
    found = histogram(d)
    assert found.not_finite == 5 and sum(found.counts) + found.below + found.above == 9995
    assert found.edges[-1] < 1 and found.above >= 5  # five sentinels do not set the scale
    parts = along("x", np.r_[np.zeros(9000, int), np.ones(1000, int)], d, np.isnan(d)).rows
    assert sum(row[2] for row in parts) == 9995
    assert [row[:2] for row in parts] == [(0, 0), (1, 1)]


def test_unseen_characters_are_shown_as_escapes():
    assert visible("a\u202eb\x1b\u200b\n") == "a\\u202eb\\u001b\\u200b\\u000a"
    assert visible("déjà 中文 🙂") == "déjà 中文 🙂"


def test_the_command_writes_one_new_file_and_refuses_what_is_no_replay(tmp_path, capsys):
    write(tmp_path / "replay.arrow")

    def run(*args):
        with pytest.raises(SystemExit) as done:
            main(["report", *map(str, args)])
        return done.value.code, capsys.readouterr().err

    code, err = run(tmp_path / "replay.arrow", "-o", tmp_path / "page.html")
    assert code == 0 and "bytes" in err
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    code, err = run(tmp_path / "replay.arrow", "-o", tmp_path / "page.html")
    assert code == 1 and "exists already" in err
    code, err = run(tmp_path / "none.arrow", "-o", tmp_path / "b.html")
    assert code == 1 and "cannot read" in err
    code, err = run(tmp_path / "page.html", "-o", tmp_path / "b.html")
    assert code == 1 and "not an Arrow file" in err
    code, err = run(tmp_path / "replay.arrow", "-o", tmp_path / "b.html", "--tokenizer", tmp_path)
    assert code == 1 and "no tokenizer can be loaded" in err and not (tmp_path / "b.html").exists()
